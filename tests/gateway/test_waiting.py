"""Who waits for an encode, who does not, and what becomes of it when they leave."""

import asyncio

import grpc
import pytest
from diptych.v1 import chat_service_pb2 as pb
from diptych.v1 import content_pb2 as content

from gateway.prompt import PromptBuilder
from tests.gateway.client import GREEDY, chat, says, script, until
from tests.gateway.fakes import Stage


async def test_a_client_that_leaves_cancels_everything(stage: Stage, png: bytes) -> None:
    """Cancelling a stream cancels the decoder's and the encoder's calls."""
    stage.encoder.gate.clear()
    request = pb.StreamChatRequest(conversation=says(content.Image(data=png)), generation=GREEDY)
    call = stage.stub.StreamChat(request, timeout=20)
    assert (await call.read()).WhichOneof("event") == "started"
    await asyncio.wait_for(stage.encoder.started.wait(), 10)
    call.cancel()
    await asyncio.wait_for(stage.encoder.cancelled.wait(), 5)
    await asyncio.wait_for(stage.decoder.cancelled.wait(), 5)


async def test_a_cancelled_leader_leaves_its_turn_to_the_next(stage: Stage, prompts: PromptBuilder, png: bytes) -> None:
    """When the request that encodes for others goes away, another one encodes."""
    stage.encoder.gate.clear()
    stage.decoder.scripts = [script(prompts, "ok")]
    leader = asyncio.create_task(chat(stage, says(content.Image(data=png))))
    await asyncio.wait_for(stage.encoder.started.wait(), 10)
    follower = asyncio.create_task(chat(stage, says(content.Image(data=png))))
    await until(lambda: len(stage.decoder.prompts) == 2)
    leader.cancel()
    await asyncio.wait_for(stage.encoder.cancelled.wait(), 5)
    stage.encoder.gate.set()
    assert (await follower).choices[0].text == "ok"


async def test_deadlines_are_passed_on(stage: Stage, png: bytes) -> None:
    """A request whose time is over ends as DEADLINE_EXCEEDED, and its encode is cancelled."""
    stage.encoder.gate.clear()
    await stage.stub.GetModel(pb.GetModelRequest(), timeout=20)
    picture = says(content.Image(data=png))
    await stage.stub.CountTokens(pb.CountTokensRequest(conversation=picture), timeout=20)  # its reader runs by now
    call = stage.stub.Chat(pb.ChatRequest(conversation=picture, generation=GREEDY), timeout=0.5)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    await asyncio.wait_for(stage.encoder.cancelled.wait(), 5)


async def test_a_decoder_that_needs_no_embeddings_is_not_held_up(
    stage: Stage, prompts: PromptBuilder, png: bytes
) -> None:
    """A decoder that has the prompt from before answers at once; the encode that it does not need is cancelled."""
    stage.encoder.gate.clear()
    stage.decoder.scripts, stage.decoder.has_prompt = [script(prompts, "known")], True
    response = await chat(stage, says(content.Image(data=png)))
    assert response.choices[0].text == "known"


async def test_slow_encodes_hold_up_only_their_own_request(stage: Stage, prompts: PromptBuilder, png: bytes) -> None:
    """While one request waits for its picture, others are answered."""
    stage.encoder.gate.clear()
    stage.decoder.scripts = [script(prompts, "ok")]
    waiting = asyncio.create_task(chat(stage, says(content.Image(data=png))))
    await asyncio.wait_for(stage.encoder.started.wait(), 10)
    assert (await chat(stage, says("?"))).choices[0].text == "ok"
    stage.encoder.gate.set()
    assert (await waiting).choices[0].text == "ok"
