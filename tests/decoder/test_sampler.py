"""Sampling against transformers' own processors, and the promises around it."""

from collections.abc import Collection, Iterable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from services.decoder.sampler import Sampler, _greatest, uniform
from services.decoder.sequence import SamplingParams, TokenCounts

VOCAB = 50


def sequence(prompt: Iterable[int] = (1, 2, 3), answer: Collection[int] = (), index: int = 0, **params: Any) -> Any:
    """As much of a sequence as the sampler looks at."""
    options = SamplingParams(max_tokens=100, **params)
    counts = None
    if options.counts_tokens:
        counts = TokenCounts(list(prompt))
        for token in answer:
            counts.add(token)
    request = SimpleNamespace(params=options)
    return SimpleNamespace(
        request=request, counts=counts, matcher=None, num_output_tokens=len(answer), index=index, num_prompt_tokens=3
    )


def logits(seed: int, rows: int = 1) -> torch.Tensor:
    """Random logits."""
    return torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(seed)) * 3


@pytest.mark.parametrize(
    ("params", "warpers"),
    [
        ({"temperature": 0.7, "top_k": 5}, [TemperatureLogitsWarper(0.7), TopKLogitsWarper(5)]),
        ({"temperature": 1.0, "top_p": 0.6}, [TopPLogitsWarper(0.6)]),
        ({"temperature": 1.5, "min_p": 0.2}, [TemperatureLogitsWarper(1.5), MinPLogitsWarper(0.2)]),
        (
            {"temperature": 1.3, "top_k": 8, "top_p": 0.8, "min_p": 0.05},
            [TemperatureLogitsWarper(1.3), TopKLogitsWarper(8), TopPLogitsWarper(0.8), MinPLogitsWarper(0.05)],
        ),
    ],
)
def test_filters_are_those_of_transformers(params: dict[str, Any], warpers: list[Any]) -> None:
    """Tokens come out with the probabilities that transformers' warpers leave them."""
    values = logits(1)
    expected = values.clone()
    for warper in warpers:
        expected = warper(None, expected)
    probabilities = torch.softmax(expected, dim=-1)[0].numpy()
    num_draws = 4000
    sampler = Sampler([], torch.device("cpu"))
    rows = [sequence(seed=seed, **params) for seed in range(num_draws)]
    drawn = [sample.token_id for sample in sampler.sample(values.repeat(num_draws, 1), rows)]
    shares = np.bincount([token for token in drawn if token is not None], minlength=VOCAB) / num_draws
    assert set(np.flatnonzero(shares)) <= set(np.flatnonzero(probabilities))
    assert np.abs(shares - probabilities).max() < 0.04


@given(st.lists(st.integers(0, VOCAB - 1), max_size=20), st.floats(0.5, 2.0), st.integers(0, 1000))
def test_repetition_penalty_is_transformers(answer: list[int], penalty: float, seed: int) -> None:
    """Greedy under a repetition penalty, over prompt and answer, takes the token that transformers would."""
    values = logits(seed)
    expected = RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor([[1, 2, 3, *answer]]), values.clone()).argmax()
    row = sequence(answer=answer, repetition_penalty=penalty)
    assert Sampler([], torch.device("cpu")).sample(values, [row])[0].token_id == int(expected)


@given(st.lists(st.integers(0, VOCAB - 1), max_size=20), st.floats(-2, 2), st.floats(-2, 2), st.integers(0, 1000))
def test_presence_and_frequency_look_at_the_answer(
    answer: list[int], presence: float, frequency: float, seed: int
) -> None:
    """They are subtracted once, and once for each occurrence, of the answer's tokens alone."""
    values = logits(seed)
    expected = values.clone()
    for token in set(answer):
        expected[0, token] -= presence + frequency * answer.count(token)
    row = sequence(answer=answer, presence_penalty=presence, frequency_penalty=frequency)
    chosen = Sampler([], torch.device("cpu")).sample(values, [row])[0].token_id
    assert expected[0, chosen] >= expected.max() - 1e-4


def test_rows_do_not_touch_each_other() -> None:
    """Different options in one batch give what each gives alone."""
    sampler = Sampler([4], torch.device("cpu"))
    options: list[dict[str, Any]] = [
        {},
        {"temperature": 1.0, "seed": 3},
        {"temperature": 0.5, "top_k": 3, "seed": 4},
        {"repetition_penalty": 1.7, "answer": (5, 5, 6)},
        {"temperature": 2.0, "top_p": 0.4, "min_p": 0.1, "presence_penalty": 1.0, "answer": (7,)},
        {"logit_bias": ((9, 100.0),)},
        {"temperature": 1.0, "top_k": 1},
    ]
    values = logits(5, len(options))
    together = sampler.sample(values.clone(), [sequence(**o) for o in options])
    alone = [sampler.sample(values[i : i + 1].clone(), [sequence(**o)])[0] for i, o in enumerate(options)]
    assert together == alone
    assert together[0].token_id == int(values[0].index_fill(0, torch.tensor([4]), -torch.inf).argmax())
    assert together[5].token_id == 9


def test_forbidden_ids_never_come_out() -> None:
    """The likeliest token is not taken when it is forbidden."""
    values = logits(2)
    best = int(values.argmax())
    assert Sampler([best], torch.device("cpu")).sample(values, [sequence()])[0].token_id != best


def test_logprobs_are_of_the_model_itself() -> None:
    """Log probabilities are before temperature, penalties and filters."""
    values = logits(3)
    expected = torch.log_softmax(values, dim=-1)[0]
    row = sequence(temperature=3.0, top_k=2, repetition_penalty=1.5, top_logprobs=4)
    sample = Sampler([], torch.device("cpu")).sample(values, [row])[0]
    assert sample.token_id is not None
    assert sample.logprob is not None
    assert sample.logprob.logprob == pytest.approx(float(expected[sample.token_id]))
    assert [token for token, _ in sample.logprob.alternatives] == expected.topk(4).indices.tolist()


def test_not_finite_logits_give_no_token() -> None:
    """A row with NaN has no sample, its neighbour has."""
    values = logits(4, 2)
    values[0, 7] = torch.nan
    samples = Sampler([], torch.device("cpu")).sample(values, [sequence(), sequence()])
    assert samples[0].token_id is None
    assert samples[1].token_id is not None


@given(st.integers(0, 2**64 - 1), st.integers(0, 15), st.integers(0, 10_000))
def test_uniform_is_a_function_of_its_arguments(seed: int, choice: int, step: int) -> None:
    """The same place gives the same number in [0, 1), its neighbours others."""
    number = uniform(seed, choice, step)
    assert 0 <= number < 1
    assert number == uniform(seed, choice, step)
    assert number not in (uniform(seed, choice + 1, step), uniform(seed, choice, step + 1))


@given(st.lists(st.integers(0, 300), max_size=200), st.lists(st.integers(0, 300), max_size=300))
def test_token_counts(prompt: list[int], answer: list[int]) -> None:
    """Counts of the answer for every distinct token of both."""
    counts = TokenCounts(prompt)
    for token in answer:
        counts.add(token)
    found = dict(zip(counts.token_ids.tolist(), counts.counts.tolist(), strict=True))
    assert found == {token: answer.count(token) for token in {*prompt, *answer}}


def test_the_greatest_are_those_of_a_sort() -> None:
    """Looking in the blocks with the greatest maxima finds the same values, wherever they stand."""
    logits = torch.randn(5, 20_003)
    logits[0, 64:84] += 100  # all in one block
    logits[1, -3:] += 100  # beyond the last whole block
    logits[2] = torch.arange(20_003.0) % 7  # ties everywhere
    for count in (1, 20, 70, 300):
        assert torch.equal(_greatest(logits, count), logits.sort(dim=1, descending=True).values[:, :count])
