"""A decoder on a free port, and what its tests send to it and read from it."""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import numpy as np
import pytest
import torch
from diptych.v1 import content_pb2, decoder_service_pb2, decoder_service_pb2_grpc, embedding_pb2, generation_pb2

from services.common.cache import EmbeddingCache, open_cache
from services.common.embedding import Slice
from services.common.errors import DiptychError, from_rpc_error
from services.common.server import serve
from services.common.settings import load
from services.common.telemetry.process import Telemetry
from services.decoder.assemble import build_decoder
from services.decoder.service import SERVICE_NAME, DecoderService, register
from services.decoder.settings import DecoderSettings
from tests.decoder.harness import Case, Model

CALL_S = 60
KINDS = {"image": content_pb2.MEDIA_KIND_IMAGE, "video": content_pb2.MEDIA_KIND_VIDEO}
Message = decoder_service_pb2.GenerateRequest
Result = tuple[dict[int, list[int]], decoder_service_pb2.GenerateFinished]


class Service:
    """A running decoder and a client of it."""

    def __init__(self, model: Model, cache: EmbeddingCache, stub: Any, servicer: DecoderService) -> None:
        self.model, self.cache, self.stub, self.servicer = model, cache, stub, servicer

    async def generate(self, *messages: Message) -> Result:
        """Send all messages, close, and return (tokens by choice, finished)."""
        call = self.stub.Generate(timeout=CALL_S)
        for message in messages:
            await call.write(message)
        await call.done_writing()
        return await collect(call)

    async def fails(self, *messages: Message) -> DiptychError:
        """The domain error that a call ends with."""
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await self.generate(*messages)
        return from_rpc_error(caught.value, "decoder")

    async def until_idle(self) -> None:
        """Wait until nothing runs and every block is back."""
        for _ in range(2000):
            load = await self.stub.GetLoad(decoder_service_pb2.GetLoadRequest())
            if load.num_running == load.num_waiting == load.num_used_blocks == 0:
                return
            await asyncio.sleep(0.005)
        raise AssertionError("the engine did not come to rest")


async def collect(call: AsyncIterable[decoder_service_pb2.GenerateResponse]) -> Result:
    """Tokens by choice, and the end, which must be the last event."""
    tokens: dict[int, list[int]] = {}
    finished = None
    async for response in call:
        assert finished is None, "something came after finished"
        match response.WhichOneof("event"):
            case "begun":
                assert not tokens, "tokens came before begun"
            case "tokens":
                tokens.setdefault(response.tokens.index, []).extend(response.tokens.token_ids)
            case kind:
                assert kind == "finished"
                finished = response.finished
    assert finished is not None
    return tokens, finished


async def first_missing(events: AsyncIterator[decoder_service_pb2.GenerateResponse]) -> int:
    """The item that the decoder asks for; the prompt's text may have begun before."""
    while (response := await anext(events)).WhichOneof("event") == "begun":
        pass
    assert response.WhichOneof("event") == "missing"
    return response.missing.media_index


def prompt(case: Case, **options: Any) -> Message:
    """The first message for a case."""
    defaults = {"max_tokens": 12, "temperature": 0.0}
    placements = [
        decoder_service_pb2.MediaPlacement(
            offset=span.offset,
            grid=content_pb2.Grid(t=span.grid[0], h=span.grid[1], w=span.grid[2]),
            media_key=key,
            kind=KINDS["image" if span.grid[0] == 1 else "video"],
        )
        for span, key in zip(case.spans, case.keys, strict=True)
    ]
    generation = generation_pb2.Generation(**{**defaults, **options})
    return Message(
        prompt=decoder_service_pb2.Prompt(
            request_id="r", tenant="a", token_ids=case.token_ids, media=placements, generation=generation
        )
    )


def chunks(case: Case, index: int, size: int = 1 << 20, dtype: torch.dtype = torch.float32) -> list[Message]:
    """An item's rows as chunk messages."""
    data = case.rows[index].to(dtype).view(torch.uint8).numpy().tobytes()
    name = str(dtype).removeprefix("torch.")
    pieces = ((at, data[at : at + size]) for at in range(0, len(data), size))
    return [
        Message(chunk=embedding_pb2.EmbeddingChunk(media_index=index, byte_offset=at, data=piece, dtype=name))
        for at, piece in pieces
    ]


async def put(service: Service, case: Case, index: int, dtype: torch.dtype = torch.float32) -> Message:
    """Put an item's slices into the cache; the reference to them."""
    t = case.spans[index].grid[0]
    keys = [np.random.default_rng((index, i)).bytes(32) for i in range(t)]
    parts = case.rows[index].to(dtype).chunk(t)
    name = str(dtype).removeprefix("torch.")
    slices = {}
    for key, part in zip(keys, parts, strict=True):
        data = memoryview(part.contiguous().view(torch.uint8).numpy().tobytes())
        slices[key] = Slice(len(part), part.shape[1], name, data)
    assert await service.cache.of("a").put_slices(slices)
    return Message(reference=embedding_pb2.EmbeddingReference(media_index=index, slice_keys=keys))


@asynccontextmanager
async def serving(model: Model, cache_url: str = "memory://", **settings: Any) -> AsyncIterator[Service]:
    """A decoder on a free port, with some settings of its own."""
    chosen = {"kv_cache_tokens": 2048, "listen": "127.0.0.1:0", "device": "cpu", **settings}
    loaded = load(DecoderSettings, model=str(model.path), **chosen)
    cache = open_cache(
        cache_url,
        ttl_s=60,
        max_bytes=1 << 20,
        timeout_s=5,  # on a busy machine
        secrets=[b"secret"],
        local_bytes=loaded.local_cache_bytes,
    )
    engine, servicer = build_decoder(loaded, model.checkpoint, cache, Telemetry("decoder"))
    engine.start()
    stop, ready = asyncio.Event(), asyncio.get_running_loop().create_future()
    running = asyncio.create_task(
        serve(loaded, lambda server: register(servicer, server), [SERVICE_NAME], stop=stop, on_ready=ready.set_result)
    )
    port = await asyncio.wait_for(ready, CALL_S)
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield Service(model, cache, decoder_service_pb2_grpc.DecoderServiceStub(channel), servicer)
    finally:
        stop.set()
        await running
        engine.stop()
        await cache.close()
