"""How a conversation becomes the model's input, for people who want to see why."""

from collections.abc import Sequence

from diptych.v1 import chat_service_pb2, content_pb2, generation_pb2

from services.common.mrope import Run, Span, delta, position_runs

from .caller import Caller
from .media import MediaItem
from .pipeline import Prepared
from .reach.kinds import Encoder
from .rooms import Rooms

Response = chat_service_pb2.ExplainResponse


async def explain(rooms: Rooms, prepared: Prepared, asked: generation_pb2.Generation, caller: Caller) -> Response:
    """Nothing is encoded or decoded; what only a service that is down knows is left empty."""
    encoder, _ = await rooms.ask_services(caller)
    prompt, merge = prepared.prompt, rooms.merge_size
    spans = [Span(offset, item.plan.grid, merge) for item, offset in zip(prepared.items, prompt.offsets, strict=True)]
    num_tokens = len(prompt.token_ids)
    free = max(1, rooms.reports.max_context_tokens - num_tokens)
    return Response(
        rendered_prompt=prompt.rendered,
        token_ids=prompt.token_ids,
        media=await _media(rooms, prepared, encoder, caller),
        positions=[_position_run(run) for run in position_runs(num_tokens, spans)],
        position_delta=delta(num_tokens, spans),
        generation=rooms.generation.effective(asked, free),
        versions=rooms.reports.versions(),
        num_text_tokens=num_tokens - prompt.num_media_tokens,
        num_media_tokens=prompt.num_media_tokens,
    )


async def _media(
    rooms: Rooms, prepared: Prepared, encoder: Encoder | None, caller: Caller
) -> Sequence[Response.MediaSpan]:
    spans = []
    for item, offset in zip(prepared.items, prepared.prompt.offsets, strict=True):
        span = Response.MediaSpan(report=item.report(), offset=offset)
        if encoder is not None:
            await _look_up(rooms, span, item, encoder, caller)
        spans.append(span)
    return spans


async def _look_up(rooms: Rooms, span: Response.MediaSpan, item: MediaItem, encoder: Encoder, caller: Caller) -> None:
    key = rooms.media_key(item, encoder, caller)
    span.cache_key = key.hex()
    if rooms.cache.shared:
        found = await rooms.encoding.find(item, key, encoder.width, caller.tenant)
        span.cached = content_pb2.CACHE_RESULT_MISS if found is None else content_pb2.CACHE_RESULT_HIT


def _position_run(run: Run) -> Response.PositionRun:
    grid = None if run.shape is None else content_pb2.Grid(t=run.shape[0], h=run.shape[1], w=run.shape[2])
    return Response.PositionRun(offset=run.offset, length=run.num_tokens, start=run.start, merged_grid=grid)
