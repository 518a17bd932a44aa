"""An answer taken up where another decoder has left it: the tokens are those of the uninterrupted one."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from diptych.v1 import decoder_service_pb2

from services.common.errors import InvalidRequest
from tests.decoder.harness import Model
from tests.decoder.serving import Message, Service, chunks, prompt, serving

SAMPLED = {"temperature": 1.2, "seed": 11, "max_tokens": 20, "ignore_eos": True}
WAYS: dict[str, dict[str, Any]] = {
    "greedy": {"max_tokens": 20, "ignore_eos": True},
    "seeded": SAMPLED,
    "penalties": {**SAMPLED, "repetition_penalty": 1.4, "presence_penalty": 0.5, "frequency_penalty": 0.7},
    "three choices": {**SAMPLED, "num_choices": 3},
    "ending ids": {
        "temperature": 3.0,
        "seed": 4,
        "max_tokens": 20,
        "min_tokens": 6,
        "stop_token_ids": range(0, 400, 8),
    },
    "grammar": {"temperature": 1.0, "seed": 3, "max_tokens": 20, "regex": "[a-z]{4,12}", "num_choices": 2},
}


@pytest.fixture
async def service(gqa_model: Model) -> AsyncIterator[Service]:
    """A decoder that remembers no earlier prompts."""
    async with serving(gqa_model, prefix_cache=False) as service:
        yield service


def resumed(message: Message, answers: list[list[int]]) -> Message:
    """The same prompt with the answer so far."""
    found = Message()
    found.CopyFrom(message)
    for token_ids in answers:
        found.prompt.resumed.append(decoder_service_pb2.ResumedChoice(token_ids=token_ids))
    return found


@pytest.mark.parametrize("way", WAYS)
async def test_what_follows_is_what_would_have_followed(service: Service, gqa_model: Model, way: str) -> None:
    """From every place of the answer, the choices at different ones, rest and ends are the same."""
    case = gqa_model.case(5, ("image", (1, 2, 3)), 4)
    whole = prompt(case, **WAYS[way])
    tokens, finished = await service.generate(whole, *chunks(case, 0))
    answers = [tokens.get(index, []) for index in range(len(finished.ends))]
    for cut in range(0, 21, 4):
        kept = [answer[: cut + index] for index, answer in enumerate(answers)]
        rest, end = await service.generate(resumed(whole, kept), *chunks(case, 0))
        assert [kept[index] + rest.get(index, []) for index in range(len(answers))] == answers
        assert end == finished


async def test_only_an_answer_can_be_taken_up(service: Service, gqa_model: Model) -> None:
    """What no answer may hold, or could not be repeated, is refused at its field."""
    case = gqa_model.case(6)
    pad, end = gqa_model.pads["image"], next(iter(gqa_model.end_ids))
    sampled = {"temperature": 1.0, "max_tokens": 4}
    refusals: list[tuple[dict[str, Any], list[list[int]], str]] = [
        ({**sampled, "seed": 1}, [[1], [2]], "prompt.resumed"),
        ({**sampled, "seed": 1}, [[1] * 5], "prompt.resumed[0].token_ids"),
        ({**sampled, "seed": 1}, [[pad]], "prompt.resumed[0].token_ids"),
        ({**sampled, "seed": 1}, [[end]], "prompt.resumed[0].token_ids"),
        ({**sampled, "seed": 1}, [[1 << 20]], "prompt.resumed[0].token_ids"),
        (sampled, [[1]], "prompt.generation.seed"),
        ({"regex": "a+"}, [[1]], "prompt.resumed[0].token_ids"),
    ]
    for options, answers, field in refusals:
        error = await service.fails(resumed(prompt(case, **options), answers))
        assert isinstance(error, InvalidRequest)
        assert [violation.field for violation in error.violations] == [field]
