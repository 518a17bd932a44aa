"""What the service does not take, and what it says of it."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from diptych.v1 import embedding_pb2

from services.common.errors import InvalidRequest, PromptTooLong, VersionMismatch
from services.common.int8_rows import SCALE_BYTES, quantized
from tests.decoder.harness import Case, Model
from tests.decoder.serving import Message, Service, chunks, prompt


@pytest.mark.parametrize("scale", [np.nan, np.inf, -1.0, np.finfo(np.float32).max])
async def test_a_wrong_scale_is_refused(service: Service, gqa_model: Model, scale: float) -> None:
    """NaN, infinity, below zero, and what makes a value infinite."""
    case = gqa_model.case(("image", (1, 2, 2)), 3)
    data = np.float32(scale).tobytes() + quantized(case.rows[0].numpy())[SCALE_BYTES:]
    error = await service.fails(prompt(case, ignore_eos=True), *spoiled(case, 0, data=data, dtype="int8"))
    assert isinstance(error, InvalidRequest)
    assert error.violations[0].field == "chunk.data"
    await service.until_idle()


async def test_another_checkpoint_is_refused(service: Service) -> None:
    """A prompt made for another checkpoint fails with both digests."""
    message = prompt(service.model.case(3))
    message.prompt.checkpoint_digest = "sha256:other"
    error = await service.fails(message)
    assert isinstance(error, VersionMismatch)


async def test_prompt_that_can_never_fit_is_refused(service: Service) -> None:
    """Prompt and answer beyond the context are refused at once."""
    error = await service.fails(prompt(service.model.case(2000), max_tokens=49))
    assert isinstance(error, PromptTooLong | InvalidRequest)
    assert error.reason == "PROMPT_TOO_LONG"
    assert error.violations[0].field == "prompt.token_ids"


WRONG: dict[str, Callable[[Any], None]] = {
    "prompt.token_ids": lambda m: m.prompt.ClearField("token_ids"),
    "prompt.token_ids ": lambda m: m.prompt.token_ids.__setitem__(0, 1 << 30),
    "prompt.token_ids  ": lambda m: m.prompt.token_ids.__setitem__(4, 7),
    "prompt.media[0].grid.t": lambda m: setattr(m.prompt.media[0].grid, "t", 0),
    "prompt.media[1].grid.h": lambda m: setattr(m.prompt.media[1].grid, "h", 3),
    "prompt.media[1].grid.w": lambda m: setattr(m.prompt.media[1].grid, "w", 0),
    "prompt.media[0].offset": lambda m: setattr(m.prompt.media[0], "offset", 4_000_000_000),
    "prompt.media[0].offset ": lambda m: setattr(m.prompt.media[0].grid, "w", 4_000_000_000),
    "prompt.media": lambda m: setattr(m.prompt.media[1], "offset", 5),
    "prompt.media[0].kind": lambda m: setattr(m.prompt.media[0], "kind", 0),
    "prompt.media[1].media_key": lambda m: m.prompt.media[1].ClearField("media_key"),
    "prompt.generation.temperature": lambda m: setattr(m.prompt.generation, "temperature", float("nan")),
    "prompt.generation.top_p": lambda m: setattr(m.prompt.generation, "top_p", 1.5),
    "prompt.generation.min_p": lambda m: setattr(m.prompt.generation, "min_p", -0.1),
    "prompt.generation.num_choices": lambda m: setattr(m.prompt.generation, "num_choices", 1000),
    "prompt.generation.top_logprobs": lambda m: setattr(m.prompt.generation, "top_logprobs", 1000),
    "prompt.generation.priority": lambda m: setattr(m.prompt.generation, "priority", 10),
    "prompt.generation.max_tokens": lambda m: setattr(m.prompt.generation, "max_tokens", 0),
    "prompt.generation.logit_bias": lambda m: m.prompt.generation.logit_bias.update({1 << 30: 1.0}),
    "prompt.generation.stop_token_ids": lambda m: m.prompt.generation.stop_token_ids.append(1 << 30),
    "prompt.generation.repetition_penalty": lambda m: setattr(m.prompt.generation, "repetition_penalty", 0.0),
    "prompt.generation.json_schema": lambda m: setattr(m.prompt.generation, "json_schema", '{"type": 3'),
    "prompt.generation.regex": lambda m: setattr(m.prompt.generation, "regex", "["),
    "prompt.generation.choice": lambda m: m.prompt.generation.choice.SetInParent(),
    "prompt.generation.grammar": lambda m: setattr(m.prompt.generation, "grammar", "start: nothing"),
}


async def test_wrong_prompts_name_their_field(service: Service, mixed: Case) -> None:
    """Every wrong field is refused by its path, and the engine goes on."""
    for field, spoil in WRONG.items():
        message = prompt(mixed)
        spoil(message)
        error = await service.fails(message)
        assert isinstance(error, InvalidRequest), field
        assert field.strip() in [violation.field for violation in error.violations], field
    case = service.model.case(4)
    tokens, _ = await service.generate(prompt(case))
    assert tokens[0] == service.model.generate(case, 12)


async def test_all_violations_at_once(service: Service) -> None:
    """Two wrong fields are both named."""
    error = await service.fails(prompt(service.model.case(3), top_p=2.0, min_p=2.0))
    assert isinstance(error, InvalidRequest)
    assert {violation.field for violation in error.violations} == {"prompt.generation.top_p", "prompt.generation.min_p"}


def spoiled(case: Case, index: int, **changes: Any) -> list[Message]:
    """An item's only chunk, changed."""
    message = chunks(case, index)[0]
    for name, value in changes.items():
        setattr(message.chunk, name, value)
    return [message]


async def test_wrong_embeddings_are_refused(service: Service, gqa_model: Model) -> None:
    """Gaps, surplus, NaN, unknown items, a second prompt, and items left out."""
    case = gqa_model.case(("image", (1, 2, 2)), 3)
    data = case.rows[0].numpy().tobytes()
    nan = np.full(len(data) // 4, np.nan, dtype=np.float32).tobytes()
    wrong = {
        "chunk.byte_offset": spoiled(case, 0, byte_offset=4),
        "chunk.data": spoiled(case, 0, data=data + b"1234"),
        "chunk.data ": spoiled(case, 0, data=nan),
        "chunk.dtype": spoiled(case, 0, dtype="float64"),
        "chunk.media_index": spoiled(case, 0, media_index=1),
        "chunk.media_index ": chunks(case, 0) + chunks(case, 0),
        "prompt": [prompt(case)],
        "prompt.media[0]": spoiled(case, 0, data=data[:-4]),
        "message": [Message()],
        "reference.slice_keys": [Message(reference=embedding_pb2.EmbeddingReference(media_index=0))],
    }
    for field, messages in wrong.items():
        # The prefix cache must not answer before the fault is seen: the call is held open by a long answer.
        error = await service.fails(prompt(case, max_tokens=1500, ignore_eos=True), *messages)
        assert isinstance(error, InvalidRequest), field
        assert error.violations[0].field == field.strip()
    await service.until_idle()


async def test_first_message_must_be_the_prompt(service: Service, mixed: Case) -> None:
    """Embeddings before the prompt, or nothing at all, are refused."""
    for messages in (chunks(mixed, 0), []):
        assert isinstance(await service.fails(*messages), InvalidRequest)
