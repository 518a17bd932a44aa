"""Servers that stream rows: bytes alone, and the encoder's chunks on their way through a gateway to a decoder.

The relay is the services' own code from the encoder's rows to the decoder's tensor, on their own channels, each service
in a process.
"""
# ruff: noqa: N802 -- gRPC's own names

import asyncio
import multiprocessing
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from multiprocessing.connection import Connection
from types import SimpleNamespace
from typing import Any

import grpc
from diptych.v1 import decoder_service_pb2, encoder_service_pb2
from diptych.v1.decoder_service_pb2_grpc import DecoderServiceServicer
from diptych.v1.encoder_service_pb2_grpc import EncoderServiceServicer

from gateway.decoding import _Writer
from gateway.encoding import _Rows
from gateway.reach.stubs import decoder_stub, encoder_stub
from services.common.allocator import keep_freed_memory
from services.common.cache import open_cache
from services.common.channels import open_channel
from services.common.chunk_wire import Chunk
from services.common.embedding import Slice
from services.common.interceptors import ErrorInterceptor
from services.common.server import server_options
from services.decoder.embeddings import RowsFormat
from services.decoder.intake import EmbeddingIntake
from services.decoder.service import register as register_decoder
from services.encoder.outcome import Outcome
from services.encoder.service import register as register_encoder
from services.encoder.slices import EncodedSlice

PIECE_BYTES = 1 << 20
MAX_MESSAGE_BYTES = 4 << 20
BARE = "/benchmark.Rows/Bare"

Move = Callable[[], Awaitable[None]]


@asynccontextmanager
async def plain_stream(num_bytes: int) -> AsyncIterator[Move]:
    """A client of this process reads the bytes into one place, in messages of 1 MiB, from a server of another."""
    async with _server("bare", num_bytes) as address, grpc.aio.insecure_channel(address) as channel:
        call: Any = channel.unary_stream(BARE)

        async def move() -> None:
            received = bytearray()
            async for piece in call(b""):
                received += piece
            if len(received) != num_bytes:
                raise RuntimeError("the stream ended early")

        yield move


@asynccontextmanager
async def inline(form: RowsFormat) -> AsyncIterator[Move]:
    """This process is the gateway: it relays an encoder's chunks to a decoder, which answers when it has its tensor."""
    num_bytes = form.num_slices * form.slice_bytes
    job: Any = SimpleNamespace(index=0, num_slices=1, slice_bytes=lambda _dtype: num_bytes)
    async with (
        _server("encoder", form) as encoder,
        _server("decoder", form) as decoder,
        open_channel(encoder) as from_encoder,
        open_channel(decoder) as to_decoder,
    ):
        encode, generate = encoder_stub(from_encoder).Encode, decoder_stub(to_decoder).Generate

        async def move() -> None:
            call: Any = generate()
            await _Rows(job, _Writer(call).write).relay_rest(encode(iter(())))
            await call.done_writing()
            if [response.HasField("finished") async for response in call] != [True]:
                raise RuntimeError("the decoder has no tensor")

        yield move


async def _bare(num_bytes: int, _request: bytes, _context: object) -> AsyncIterator[bytes]:
    data = memoryview(bytes(num_bytes))
    for start in range(0, num_bytes, PIECE_BYTES):
        yield bytes(data[start : start + PIECE_BYTES])


class _Encoder(EncoderServiceServicer):
    """Has the rows already."""

    def __init__(self, form: RowsFormat) -> None:
        data = memoryview(bytearray(form.num_slices * form.slice_bytes))
        self._part = EncodedSlice(b"", Slice(form.num_rows, form.width, form.dtype, data), cached=False, stored=False)

    async def Encode(
        self, _requests: object, _context: object
    ) -> AsyncIterator[encoder_service_pb2.EncodeResponse | Chunk]:
        item: Any = SimpleNamespace(streams=False)
        for response in Outcome(item).parts([self._part]):
            yield response


class _Decoder(DecoderServiceServicer):
    """Computes nothing."""

    def __init__(self, form: RowsFormat) -> None:
        self._form = form

    async def Generate(
        self, requests: AsyncIterator[decoder_service_pb2.GenerateRequest | Chunk], _context: object
    ) -> AsyncIterator[decoder_service_pb2.GenerateResponse]:
        cache = open_cache("memory://", ttl_s=60, max_bytes=1)
        await EmbeddingIntake([self._form], cache, lambda *_: None, lambda _: None, lambda: None).run(requests)
        yield decoder_service_pb2.GenerateResponse(finished=decoder_service_pb2.GenerateFinished())


def _add_bare(num_bytes: int, server: grpc.aio.Server) -> None:
    handler: Any = grpc.unary_stream_rpc_method_handler(partial(_bare, num_bytes))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("benchmark.Rows", {"Bare": handler}),))


async def _serve(kind: str, what: Any, ready: Connection) -> None:
    if kind == "bare":
        server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        _add_bare(what, server)
    else:
        server = grpc.aio.server(interceptors=[ErrorInterceptor(10)], options=server_options(MAX_MESSAGE_BYTES))
        register_encoder(_Encoder(what), server) if kind == "encoder" else register_decoder(_Decoder(what), server)
    ready.send(server.add_insecure_port("127.0.0.1:0"))
    await server.start()
    await server.wait_for_termination()


def _run(kind: str, what: Any, ready: Connection) -> None:
    keep_freed_memory()
    asyncio.run(_serve(kind, what, ready))


@asynccontextmanager
async def _server(kind: str, what: Any) -> AsyncIterator[str]:
    """A server in a process of its own; yields its address."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_run, args=(kind, what, theirs), daemon=True)
    process.start()
    try:
        yield f"127.0.0.1:{await asyncio.to_thread(ours.recv)}"
    finally:
        process.kill()
        process.join()
