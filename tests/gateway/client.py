"""What the gateway's tests ask it, and how they read its answers."""

import asyncio
from typing import Any

import grpc
import pytest
from diptych.v1 import chat_service_pb2 as pb
from diptych.v1 import content_pb2 as content
from diptych.v1 import generation_pb2
from google.rpc import error_details_pb2 as details
from google.rpc import status_pb2
from grpc_status import rpc_status

from gateway.prompt import PromptBuilder
from tests.gateway.fakes import Stage

IMAGE_FIELD = "conversation.messages[0].parts[0].image"
Generation = generation_pb2.Generation
GREEDY = Generation(temperature=0, max_tokens=50)


def says(*parts: str | content.Image | content.Video) -> content.Conversation:
    made = [
        content.Part(text=part)
        if isinstance(part, str)
        else content.Part(image=part)
        if isinstance(part, content.Image)
        else content.Part(video=part)
        for part in parts
    ]
    return content.Conversation(messages=[content.Message(role=content.ROLE_USER, parts=made)])


async def chat(stage: Stage, conversation: content.Conversation, generation: Generation = GREEDY) -> pb.ChatResponse:
    response: pb.ChatResponse = await stage.stub.Chat(
        pb.ChatRequest(conversation=conversation, generation=generation), timeout=20
    )
    return response


async def failing(call: Any) -> tuple[grpc.StatusCode, str, dict[str, str], dict[str, str]]:
    """Code, reason, metadata, and violations by field of a call that must fail."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    status = rpc_status.from_call(caught.value)
    assert status is not None, caught.value
    reason, metadata, fields = rich(status)
    return caught.value.code(), reason, metadata, fields


def rich(status: status_pb2.Status) -> tuple[str, dict[str, str], dict[str, str]]:
    info, bad = details.ErrorInfo(), details.BadRequest()
    for detail in status.details:
        detail.Unpack(info)
        detail.Unpack(bad)
    return info.reason, dict(info.metadata), {item.field: item.reason for item in bad.field_violations}


def script(prompts: PromptBuilder, text: str) -> list[int]:
    return prompts.tokenizer.encode_text(text)


async def stream(stage: Stage, conversation: content.Conversation) -> list[pb.StreamChatResponse]:
    request = pb.StreamChatRequest(conversation=conversation, generation=GREEDY)
    return [event async for event in stage.stub.StreamChat(request, timeout=20)]


async def until(condition: Any, timeout_s: float = 10) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 -- other tasks tell nobody
            await asyncio.sleep(0.01)
