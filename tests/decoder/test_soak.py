"""Thousands of requests through one engine with too little memory, many of them cancelled."""

import random
from collections import deque
from pathlib import Path

import pytest

from tests.decoder.harness import UNPACED, Answer, Case, Model, Start

MIB = 1 << 20
NUM_CASES = 40
NUM_OPEN = 24
NUM_WARM = 2000  # torch and malloc grow to their working size first
MEMORY_BAR = 20 * MIB


def resident_bytes() -> int:
    """Of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) * 1024


def mixed_cases(model: Model) -> list[Case]:
    """Prompts of 3 to 200 tokens, some with pictures."""
    rng = random.Random(0)  # noqa: S311 -- no secret
    cases = []
    for seed in range(NUM_CASES):
        parts: list[int | tuple[str, tuple[int, int, int]]] = [rng.randint(3, 200)]
        if seed % 3 == 0:
            parts += [("image", (1, rng.randint(2, 5), rng.randint(2, 5))), rng.randint(2, 20)]
        cases.append(model.case(*parts, seed=seed))
    return cases


@pytest.mark.parametrize(
    "count", [pytest.param(300, id="300"), pytest.param(10_000, id="10000", marks=pytest.mark.soak)]
)
def test_blocks_memory_and_answers_survive_cancels_and_preemptions(gqa_model: Model, start: Start, count: int) -> None:
    """Requests of mixed lengths, a quarter cancelled: all blocks come back, memory is flat, each answer is its own."""
    cases = mixed_cases(gqa_model)
    lengths = [4 + 5 * (number % 9) for number in range(NUM_CASES)]
    roomy = start(gqa_model)
    alone = [roomy.submit(case, max_tokens=n).wait().ids for case, n in zip(cases, lengths, strict=True)]
    assert alone[:5] == [gqa_model.generate(case, n) for case, n in zip(cases[:5], lengths[:5], strict=True)]
    harness = start(gqa_model, paused=True, kv_cache_tokens=320, block_size=4, max_step_tokens=128, **UNPACED)
    rng = random.Random(1)  # noqa: S311
    open_answers: deque[tuple[int, Answer]] = deque()

    def settle() -> None:
        number, answer = open_answers.popleft()
        if number < 0:
            harness.engine.cancel(answer.request)
        else:
            assert answer.wait().ids == alone[number]

    resident = 0
    for done in range(count):
        number = rng.randrange(NUM_CASES)
        answer = harness.submit(cases[number], max_tokens=lengths[number], tenant=rng.choice("ab"))
        open_answers.append((number if rng.random() < 0.75 else -1, answer))
        if done + 1 == NUM_OPEN:
            harness.engine.start()
        if len(open_answers) == NUM_OPEN:  # in crowds: one at a time, a fast engine would never run out of blocks
            for _ in range(rng.randint(1, NUM_OPEN)):
                settle()
        if done == NUM_WARM:
            resident = resident_bytes()
    while open_answers:
        settle()
    harness.until(lambda: harness.pool.num_used == 0 and harness.engine.load.num_running == 0)
    assert harness.engine.load.num_preemptions > count // 100
    assert harness.pool.num_available == harness.pool.num_blocks
    assert not resident or resident_bytes() - resident < MEMORY_BAR
