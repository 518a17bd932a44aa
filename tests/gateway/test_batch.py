"""Many conversations in one call."""

from typing import Any

from diptych.v1 import chat_service_pb2 as pb
from diptych.v1 import content_pb2 as content

from gateway.prompt import PromptBuilder
from tests.gateway.client import GREEDY, IMAGE_FIELD, failing, rich, says, script
from tests.gateway.fakes import Stage


async def test_batches_fail_one_by_one(stage: Stage, prompts: PromptBuilder, png: bytes) -> None:
    """Each conversation of a batch finishes or fails on its own, its events tagged."""
    stage.decoder.scripts = [script(prompts, "yes")]
    items = [
        pb.BatchChatItem(conversation=says("a"), generation=GREEDY),
        pb.BatchChatItem(conversation=says(content.Image(data=b"junk")), generation=GREEDY),
        pb.BatchChatItem(conversation=says(content.Image(data=png)), generation=GREEDY),
    ]
    ends: dict[int, str] = {}
    texts = {0: "", 1: "", 2: ""}
    async for event in stage.stub.BatchChat(pb.BatchChatRequest(items=items), timeout=20):
        assert event.index not in ends, "events after the end"
        if event.WhichOneof("event") == "text_delta":
            texts[event.index] += event.text_delta.text
        elif event.WhichOneof("event") in ("finished", "failed"):
            ends[event.index] = event.WhichOneof("event")
            if event.WhichOneof("event") == "failed":
                assert list(rich(event.failed)[2]) == [IMAGE_FIELD]
    assert ends == {0: "finished", 1: "failed", 2: "finished"}
    assert texts == {0: "yes", 1: "", 2: "yes"}


async def test_an_empty_batch_is_refused(stage: Stage) -> None:
    """There must be something to answer."""

    async def first() -> Any:
        return await stage.stub.BatchChat(pb.BatchChatRequest(), timeout=20).read()

    assert list((await failing(first()))[3]) == ["items"]
