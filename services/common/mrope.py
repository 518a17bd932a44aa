"""Positions of a multimodal prompt (M-RoPE, Qwen2-VL, arXiv:2409.12191 section 2.1).

Text advances all three axes (time, height, width) by one. A media item counts its slices, merged rows and merged
columns from where it starts, and what follows starts at the maximum over the three axes + 1: the rule the model was
trained with. (transformers 5.x advances by `max(rows, columns)` only, which puts text after a long video inside it.)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Span:
    """One media item: the index of its first pad, its grid of patches (t, h, w), and patches merged per side."""

    offset: int
    grid: tuple[int, int, int]
    merge: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """Slices, rows and columns after merging."""
        t, h, w = self.grid
        return t, h // self.merge, w // self.merge

    @property
    def num_tokens(self) -> int:
        """Pads that the item takes in the prompt."""
        t, h, w = self.shape
        return t * h * w


@dataclass(frozen=True, slots=True)
class Run:
    """A stretch of tokens whose positions follow one rule; `shape` is None for text and (t, h, w) merged for media."""

    offset: int
    num_tokens: int
    start: int
    shape: tuple[int, int, int] | None = None

    @property
    def end(self) -> int:
        """The position after this run, on all three axes."""
        return self.start + (self.num_tokens if self.shape is None else max(self.shape))


def position_runs(num_tokens: int, spans: Sequence[Span]) -> list[Run]:
    """Describe a prompt's positions compactly, in order. ValueError if the spans do not fit in `num_tokens`."""
    _check(num_tokens, spans)
    runs: list[Run] = []
    offset = start = 0
    for span in spans:
        if span.offset > offset:
            runs.append(Run(offset, span.offset - offset, start))
            start = runs[-1].end
        runs.append(Run(span.offset, span.num_tokens, start, span.shape))
        offset, start = span.offset + span.num_tokens, runs[-1].end
    if offset < num_tokens:
        runs.append(Run(offset, num_tokens - offset, start))
    return runs


def positions(num_tokens: int, spans: Sequence[Span]) -> NDArray[np.int64]:
    """Positions [3, num_tokens] of a whole prompt: time, height, width."""
    result = np.empty((3, num_tokens), dtype=np.int64)
    for run in position_runs(num_tokens, spans):
        local = np.arange(run.num_tokens) if run.shape is None else np.indices(run.shape).reshape(3, -1)
        result[:, run.offset : run.offset + run.num_tokens] = run.start + local
    return result


def delta(num_tokens: int, spans: Sequence[Span]) -> int:
    """What to add to a generated token's index to get its position: the next free position less the prompt's length."""
    runs = position_runs(num_tokens, spans)
    return (runs[-1].end if runs else 0) - num_tokens


def _check(num_tokens: int, spans: Sequence[Span]) -> None:
    for span in spans:
        t, h, w = span.grid
        if min(t, h, w, span.merge) < 1 or h % span.merge or w % span.merge:
            raise ValueError(f"grid {span.grid} is not positive or not a multiple of {span.merge} patches a side")
        if span.offset < 0 or span.offset + span.num_tokens > num_tokens:
            raise ValueError(f"media of {span.num_tokens} tokens at {span.offset} does not fit in {num_tokens} tokens")
    for before, after in pairwise(spans):
        if before.offset + before.num_tokens > after.offset:
            raise ValueError(f"media at {after.offset} overlaps or precedes the one at {before.offset}")
