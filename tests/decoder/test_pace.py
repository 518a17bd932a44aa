"""How far a prompt's chunks may stretch the steps of running streams, on machines that are made of arithmetic."""

from collections.abc import Callable

import numpy as np
import pytest

from services.decoder.pace import Pace
from services.decoder.settings import DecoderSettings

MAX_STRETCH = DecoderSettings.model_fields["max_stretch"].default
READ_S, ROW_S, CONTEXT_S = 0.090, 0.0125, 1.5e-6  # the weights, a row's multiplications, and attention to a token
MOST, PROMPT = 1024, 4096

Cost = Callable[[int, int, int], float]  # of streams, prompt tokens, and the tokens before them


def seconds(num_streams: int, num_tokens: int, context: int) -> float:
    """A step is as long as reading or multiplying takes, and attention comes on top."""
    return max(READ_S, (num_streams + num_tokens) * ROW_S) + num_tokens * context * CONTEXT_S


def prefill(pace: Pace, num_streams: int, cost: Cost = seconds) -> tuple[list[float], list[int]]:
    """The seconds of the steps until a prompt is computed, and their prompt tokens."""
    times: list[float] = []
    tokens: list[int] = []
    while (done := sum(tokens)) < PROMPT:
        tokens.append(min(pace.prefill_tokens(num_streams, MOST), PROMPT - done))
        times.append(cost(num_streams, tokens[-1], done))
        pace.note(num_streams, tokens[-1], times[-1])
    return times, tokens


def stream(pace: Pace, num_streams: int, num_steps: int = 20, cost: Cost = seconds) -> list[float]:
    """The seconds of steps of streams alone."""
    times = [cost(num_streams, 0, 0) for _ in range(num_steps)]
    for time in times:
        pace.note(num_streams, 0, time)
    return times


def seasoned(num_streams: int) -> Pace:
    """One that has seen a prompt alone, and then streams alone."""
    pace = Pace(MAX_STRETCH)
    pace.note(0, 64, seconds(0, 64, 0))
    stream(pace, num_streams)
    return pace


@pytest.mark.parametrize("num_streams", [1, 4, 16, 64])
def test_steps_take_what_the_stretch_allows_them(num_streams: int) -> None:
    """From the start of a prompt to its end, though a chunk's attention costs more and more; no less either."""
    times, tokens = prefill(seasoned(num_streams), num_streams)
    stretches = np.array([time for time, number in zip(times, tokens, strict=True) if number])[:-1]
    stretches /= seconds(num_streams, 0, 0)
    assert stretches.max() < 1.1 * MAX_STRETCH < 2
    assert np.median(stretches) > 0.9 * MAX_STRETCH


def test_noise_does_not_let_chunks_grow() -> None:
    """Where steps vary, and some take three times as long, the 99th percentile is under twice that without a prompt."""
    rng = np.random.default_rng(0)

    def noisy(*step: int) -> float:
        return seconds(*step) * rng.lognormal(0, 0.1) * (3 if rng.random() < 0.02 else 1)

    pace = seasoned(4)
    alone = stream(pace, 4, 1000, noisy)
    beside = [time for _ in range(4) for time in prefill(pace, 4, noisy)[0]]
    assert np.percentile(beside, 99) < 2 * np.percentile(alone, 99)


def test_more_streams_beside_endless_prompts() -> None:
    """Streams that are never alone are looked at: with 64 instead of one, prompts go on and steps are in bounds."""
    pace = seasoned(1)
    prefill(pace, 1)
    times, tokens = prefill(pace, 64)
    assert np.percentile(times[20:], 90) < 1.1 * MAX_STRETCH * seconds(64, 0, 0)
    assert np.mean(tokens) > 20


def test_fewer_streams_beside_endless_prompts() -> None:
    """When most streams have gone, the rest do not wait as long as all of them did."""
    pace = seasoned(64)
    prefill(pace, 64)
    times, _ = prefill(pace, 4)
    assert np.percentile(times[10:], 99) < 1.1 * MAX_STRETCH * seconds(4, 0, 0)


def test_what_streams_take_alone_is_seen_before_a_prompt_delays_them() -> None:
    """Where no step had these streams alone, the next one does; where nobody waits, a chunk is as large as can be."""
    pace = Pace(MAX_STRETCH)
    assert pace.prefill_tokens(0, MOST) == MOST
    pace.note(0, 300, seconds(0, 300, 0))
    assert pace.prefill_tokens(1, MOST) == 0
    pace.note(1, 0, seconds(1, 0, 0))
    assert 0 < pace.prefill_tokens(1, MOST) < 10
    assert pace.prefill_tokens(0, MOST) == MOST


def test_a_crowd_of_short_prompts_is_let_in_together() -> None:
    """Where a step takes as long for one row as for many, the first chunk beside streams has many."""
    pace = Pace(MAX_STRETCH)
    pace.note(0, 64, READ_S)
    stream(pace, 1)
    assert pace.prefill_tokens(1, MOST) > 40
