"""Encoders and decoders that are not there, go away, or run something else."""

import asyncio

import grpc
import pytest
from diptych.v1 import chat_service_pb2 as pb
from diptych.v1 import content_pb2 as content

from gateway.prompt import PromptBuilder
from services.common.checkpoint import Checkpoint
from services.common.errors import Overloaded
from tests.gateway.client import GREEDY, chat, failing, says, script, until
from tests.gateway.conftest import picture
from tests.gateway.fakes import Stage, expected_rows, staged


async def test_no_decoder(stage: Stage) -> None:
    """Without a decoder the answer is UNAVAILABLE and names it."""
    await stage.servers["decoder"].stop(0)
    code, reason, _, _ = await failing(chat(stage, says("?")))
    assert (code, reason) == (grpc.StatusCode.UNAVAILABLE, "DECODER_UNAVAILABLE")


async def test_no_encoder(stage: Stage, prompts: PromptBuilder, png: bytes) -> None:
    """Without an encoder text is answered and pictures are UNAVAILABLE, also once it was there."""
    stage.decoder.scripts = [script(prompts, "ok")]
    await chat(stage, says(content.Image(data=png)))
    await stage.servers["encoder"].stop(0)
    assert (await chat(stage, says("?"))).choices[0].text == "ok"
    code, reason, _, _ = await failing(chat(stage, says(content.Image(data=png))))
    assert (code, reason) == (grpc.StatusCode.UNAVAILABLE, "ENCODER_UNAVAILABLE")
    await until(stage.decoder.cancelled.is_set)


async def test_an_encoder_that_never_was(stage: Stage, png: bytes) -> None:
    """Nothing is known of the encoder: pictures are UNAVAILABLE and the encoder is named."""
    await stage.servers["encoder"].stop(0)
    code, reason, _, _ = await failing(chat(stage, says(content.Image(data=png))))
    assert (code, reason) == (grpc.StatusCode.UNAVAILABLE, "ENCODER_UNAVAILABLE")


@pytest.mark.parametrize("fail_after", [None, 700])
async def test_the_encoder_is_tried_twice(
    stage: Stage, model: Checkpoint, prompts: PromptBuilder, png: bytes, fail_after: int | None
) -> None:
    """An encoder that goes away, even amid its rows, is asked once more; no row is lost or doubled."""
    stage.encoder.num_failures, stage.encoder.fail_after = 1, fail_after
    stage.decoder.scripts = [script(prompts, "ok")]
    assert (await chat(stage, says(content.Image(data=png)))).choices[0].text == "ok"
    assert stage.decoder.rows[0] == expected_rows(stage.encoder.headers[0], model)
    assert len(stage.encoder.headers) == 2


async def test_the_encoder_is_not_tried_three_times(stage: Stage, png: bytes) -> None:
    """A second failure is the answer."""
    stage.encoder.num_failures = 5
    assert (await failing(chat(stage, says(content.Image(data=png)))))[1] == "ENCODER_UNAVAILABLE"
    assert len(stage.encoder.headers) == 2


async def test_the_decoder_is_tried_twice_before_its_first_token(stage: Stage, prompts: PromptBuilder) -> None:
    """A decoder that goes away before it says anything is asked once more."""
    stage.decoder.num_failures, stage.decoder.scripts = 1, [script(prompts, "ok")]
    assert (await chat(stage, says("?"))).choices[0].text == "ok"
    assert len(stage.decoder.prompts) == 2


async def test_a_decoders_refusal_is_heard_while_rows_are_on_their_way(stage: Stage) -> None:
    """Each time: it is never taken for an outage, so the decoder is not asked twice and its circuit stays closed."""
    stage.decoder.refusal = Overloaded(retry_after_s=3)
    for number in range(1, 21):
        stage.encoder.sends_rows = stage.decoder.may_refuse = asyncio.Event()
        found = await failing(chat(stage, says(content.Image(data=picture(224, 224, shade=number)))))
        assert found[:2] == (grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED")
        assert len(stage.decoder.prompts) == number


async def test_a_decoder_lost_amid_an_answer_is_said(stage: Stage, prompts: PromptBuilder) -> None:
    """After the first token a lost decoder is UNAVAILABLE, never a silent end or a second answer."""
    stage.decoder.fail_after_tokens, stage.decoder.scripts = 1, [script(prompts, "one two three")]
    request = pb.StreamChatRequest(conversation=says("?"), generation=GREEDY)
    call = stage.stub.StreamChat(request, timeout=20)

    async def drain() -> None:
        async for _ in call:
            pass

    code, reason, _, _ = await failing(drain())
    assert (code, reason) == (grpc.StatusCode.UNAVAILABLE, "DECODER_UNAVAILABLE")
    assert len(stage.decoder.prompts) == 1


@pytest.mark.parametrize("digests", [("another", ""), ("", "another")])
async def test_other_checkpoints_are_refused(model: Checkpoint, png: bytes, digests: tuple[str, str]) -> None:
    """Services that run different checkpoints are never mixed."""
    async with staged(model, digests=digests) as stage:
        code, reason, _, _ = await failing(chat(stage, says(content.Image(data=png))))
        assert (code, reason) == (grpc.StatusCode.FAILED_PRECONDITION, "VERSION_MISMATCH")
