"""Media that are named by their digest."""

import asyncio

import grpc
from diptych.v1 import chat_service_pb2 as pb
from diptych.v1 import content_pb2 as content

from gateway.prompt import PromptBuilder
from services.common.checkpoint import Checkpoint
from tests.gateway.client import GREEDY, IMAGE_FIELD, chat, failing, says, script
from tests.gateway.conftest import picture
from tests.gateway.fakes import Stage, staged


async def test_media_are_named_by_digest_afterwards(stage: Stage, prompts: PromptBuilder, png: bytes) -> None:
    """A picture that was sent or uploaded once need not be sent again; an unknown digest is NOT_FOUND."""
    stage.decoder.scripts = [script(prompts, "ok")]
    first = await chat(stage, says(content.Image(data=png)))
    again = await chat(stage, says(content.Image(digest=first.started.media[0].digest)))
    assert again.started.media[0].grid == first.started.media[0].grid
    other = picture(84, 84)
    chunks = [pb.UploadMediaRequest(chunk=other[start : start + 50]) for start in range(0, len(other), 50)]
    uploaded = await stage.stub.UploadMedia(iter(chunks), timeout=20)
    assert (uploaded.num_bytes, uploaded.ttl_seconds) == (len(other), 900)
    await chat(stage, says(content.Image(digest=uploaded.digest)))
    unknown = chat(stage, says(content.Image(digest="sha256:" + "0" * 64)))
    code, reason, metadata, _ = await failing(unknown)
    assert (code, reason) == (grpc.StatusCode.NOT_FOUND, "MEDIA_NOT_FOUND")
    assert metadata["field"] == f"{IMAGE_FIELD}.digest"


async def test_media_are_named_while_their_answer_goes_on(stage: Stage, prompts: PromptBuilder, png: bytes) -> None:
    """From the answer's beginning on, not only after its end."""
    stage.decoder.scripts, stage.decoder.endless = [script(prompts, "ok")], True
    call = stage.stub.StreamChat(pb.StreamChatRequest(conversation=says(content.Image(data=png)), generation=GREEDY))
    events = aiter(call)
    digest = (await anext(events)).started.media[0].digest
    while not (await anext(events)).HasField("text_delta"):
        pass
    named = pb.CountTokensRequest(conversation=says(content.Image(digest=digest)))
    async with asyncio.timeout(10):
        while await stage.stub.CountTokens(named).code() is not grpc.StatusCode.OK:
            pass
    call.cancel()


async def test_uploads_are_bounded(model: Checkpoint) -> None:
    """An upload that is empty or larger than allowed is refused."""
    async with staged(model, max_media_bytes=100) as stage:
        for chunks in ([], [b"x" * 60, b"x" * 60]):
            requests = iter([pb.UploadMediaRequest(chunk=chunk) for chunk in chunks])
            code, _, _, fields = await failing(stage.stub.UploadMedia(requests, timeout=20))
            assert code == grpc.StatusCode.INVALID_ARGUMENT
            assert list(fields) == ["chunk"]
