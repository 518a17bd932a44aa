"""M-RoPE positions against a brute-force restatement of the trained rule."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.mrope import Run, Span, delta, position_runs, positions

grids = st.tuples(st.integers(1, 9), st.integers(1, 6), st.integers(1, 6))
pieces = st.lists(st.one_of(st.integers(1, 9), grids), min_size=1, max_size=8)


def layout(parts: list[int | tuple[int, int, int]], merge: int) -> tuple[int, list[Span]]:
    """Lay text lengths and merged grids one after another."""
    offset, spans = 0, []
    for part in parts:
        if isinstance(part, int):
            offset += part
        else:
            t, h, w = part
            spans.append(Span(offset, (t, h * merge, w * merge), merge))
            offset += t * h * w
    return offset, spans


def restatement(parts: list[int | tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """One token at a time: after anything, the next start is the largest position so far + 1."""
    result: list[tuple[int, int, int]] = []
    for part in parts:
        start = max((max(p) for p in result), default=-1) + 1
        if isinstance(part, int):
            result += [(start + i,) * 3 for i in range(part)]
        else:
            t, h, w = part
            result += [(start + i, start + j, start + k) for i in range(t) for j in range(h) for k in range(w)]
    return result


@given(pieces, st.integers(1, 3))
def test_positions_follow_the_rule(parts: list[int | tuple[int, int, int]], merge: int) -> None:
    """Positions equal a token-by-token restatement, for any order of text, images and videos."""
    num_tokens, spans = layout(parts, merge)
    assert positions(num_tokens, spans).T.tolist() == [list(p) for p in restatement(parts)]


@given(pieces)
def test_delta_continues_after_the_largest_position(parts: list[int | tuple[int, int, int]]) -> None:
    """The first generated token stands at the prompt's largest position + 1."""
    num_tokens, spans = layout(parts, 2)
    assert num_tokens + delta(num_tokens, spans) == positions(num_tokens, spans).max() + 1


@given(pieces)
def test_runs_cover_the_prompt(parts: list[int | tuple[int, int, int]]) -> None:
    """Runs follow each other without gaps and end at the prompt's end."""
    num_tokens, spans = layout(parts, 2)
    runs = position_runs(num_tokens, spans)
    ends = np.cumsum([run.num_tokens for run in runs]).tolist()
    assert [run.offset for run in runs] == [0, *ends[:-1]]
    assert ends[-1] == num_tokens


def test_long_video_advances_by_its_slices() -> None:
    """A video with more slices than rows and columns advances by its slices (transformers 5.x: by 16)."""
    num_tokens = 3 + 32 * 9 * 16 + 2
    runs = position_runs(num_tokens, [Span(3, (32, 18, 32), 2)])
    assert runs == [Run(0, 3, 0), Run(3, 32 * 9 * 16, 3, (32, 9, 16)), Run(3 + 32 * 9 * 16, 2, 35)]


@pytest.mark.parametrize(
    "spans",
    [
        [Span(0, (0, 2, 2), 2)],
        [Span(0, (1, 3, 2), 2)],
        [Span(0, (1, -2, 2), 2)],
        [Span(8, (1, 4, 4), 2)],
        [Span(-1, (1, 2, 2), 2)],
        [Span(0, (1, 4, 4), 2), Span(3, (1, 2, 2), 2)],
    ],
)
def test_spans_that_do_not_fit_are_refused(spans: list[Span]) -> None:
    """Zero or odd grids, spans outside the prompt and overlaps raise ValueError."""
    with pytest.raises(ValueError, match=r"grid|fit|overlaps"):
        positions(10, spans)


def test_empty_prompt() -> None:
    """No tokens have no positions and no delta."""
    assert positions(0, []).shape == (3, 0)
    assert delta(0, []) == 0
