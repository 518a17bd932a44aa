"""Many conversations in one call: each finishes or fails on its own, so many at a time."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

import structlog
from diptych.v1 import chat_service_pb2 as pb

from services.common.errors import DiptychError, to_status

from .caller import Caller
from .pipeline import Pipeline
from .telemetry import Event

_QUEUE_LENGTH = 64

log = structlog.get_logger()


async def run_batch(
    pipeline: Pipeline, items: Sequence[pb.BatchChatItem], callers: Sequence[Caller], concurrency: int
) -> AsyncGenerator[pb.BatchChatResponse]:
    """Events of all items, tagged by index; each item ends with `finished` or `failed`."""
    queue: asyncio.Queue[pb.BatchChatResponse] = asyncio.Queue(_QUEUE_LENGTH)
    gate = asyncio.Semaphore(concurrency)

    async def run(index: int, item: pb.BatchChatItem, caller: Caller) -> None:
        async with gate, aclosing(_item_events(pipeline, item, caller)) as events:
            async for event in events:
                event.index = index
                await queue.put(event)

    tasks = [
        asyncio.create_task(run(index, item, caller))
        for index, (item, caller) in enumerate(zip(items, callers, strict=True))
    ]
    try:
        num_open = len(items)
        while num_open:
            event = await queue.get()
            num_open -= event.WhichOneof("event") in ("finished", "failed")
            yield event
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _item_events(
    pipeline: Pipeline, item: pb.BatchChatItem, caller: Caller
) -> AsyncGenerator[pb.BatchChatResponse]:
    try:
        async with aclosing(pipeline.run(item.conversation, item.generation, caller)) as events:
            async for event in events:
                yield _tagged(event)
    except Exception as error:
        if not isinstance(error, DiptychError):
            log.error("internal error", method="BatchChat", request_id=caller.request_id, exc_info=error)
        yield pb.BatchChatResponse(failed=to_status(error))


def _tagged(event: Event) -> pb.BatchChatResponse:
    if isinstance(event, pb.Started):
        return pb.BatchChatResponse(started=event)
    if isinstance(event, pb.TextDelta):
        return pb.BatchChatResponse(text_delta=event)
    return pb.BatchChatResponse(finished=event)
