"""Greedy answers equal transformers', whatever the engine does meanwhile."""

from typing import Any

import pytest

from tests.decoder.harness import UNPACED, Case, Model, Start

Expected = dict[str, tuple[Case, list[int]]]

CONVERSATIONS: dict[str, tuple[Any, ...]] = {
    "text": (9,),
    "one token": (1,),
    "image": (5, ("image", (1, 4, 6)), 7),
    "images": (2, ("image", (1, 3, 3)), 4, ("image", (1, 2, 7)), 3),
    "adjacent": (("image", (1, 2, 2)), ("image", (1, 3, 2)), 1),
    "long video": (4, ("video", (12, 2, 3)), 6),
    "mixed": (3, ("video", (3, 3, 4)), 2, ("image", (1, 5, 2)), 9),
    "media last": (3, ("image", (1, 4, 4))),
    "long text": (150,),
}


@pytest.fixture(scope="module")
def expected(model: Model) -> Expected:
    """transformers' answers."""
    cases = {name: model.case(*parts, seed=i) for i, (name, parts) in enumerate(CONVERSATIONS.items())}
    return {name: (case, model.generate(case, 12)) for name, case in cases.items()}


@pytest.mark.parametrize("chunk", [1, 7, 64, 2048])
def test_alone(model: Model, expected: Expected, start: Start, chunk: int) -> None:
    """Each conversation alone, at any chunk size."""
    harness = start(model, max_step_tokens=chunk)
    for name, (case, tokens) in expected.items():
        assert harness.submit(case).wait().ids == tokens, name


@pytest.mark.parametrize("chunk", [7, 64, 2048])
def test_in_a_mixed_batch(model: Model, expected: Expected, start: Start, chunk: int) -> None:
    """All conversations at once."""
    harness = start(model, max_step_tokens=chunk)
    answers = harness.run([case for case, _ in expected.values()])
    assert [answer.ids for answer in answers] == [tokens for _, tokens in expected.values()]


@pytest.mark.parametrize("block_size", [1, 16, 64])
def test_at_any_block_size(model: Model, expected: Expected, start: Start, block_size: int) -> None:
    """The size of blocks changes nothing."""
    answers = start(model, block_size=block_size).run([case for case, _ in expected.values()])
    assert [answer.ids for answer in answers] == [tokens for _, tokens in expected.values()]


def test_warm_equals_cold(model: Model, expected: Expected, start: Start) -> None:
    """A second run finds its prefix computed and says the same."""
    harness = start(model)
    for case, tokens in expected.values():
        cold, warm = harness.submit(case).wait(), harness.submit(case).wait()
        assert cold.ids == warm.ids == tokens
        assert cold.begun.num_cached_tokens == 0
        assert warm.begun.num_cached_tokens == (len(case.token_ids) - 1) // 8 * 8


def test_preempted_and_resumed(model: Model, expected: Expected, start: Start) -> None:
    """With memory for hardly more than one, sequences are put back and still answer the same."""
    harness = start(model, paused=True, kv_cache_tokens=176, block_size=2, **UNPACED)
    answers = [harness.submit(case) for case, _ in expected.values()]
    harness.engine.start()
    assert [answer.wait().ids for answer in answers] == [tokens for _, tokens in expected.values()]
    assert harness.engine.load.num_preemptions > 0
