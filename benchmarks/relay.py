"""Servers that stream rows: bytes alone, and the encoder's chunks on their way through a gateway to a decoder."""

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

from gateway.encoding import _Rows
from services.common.embedding import Slice
from services.decoder.embeddings import ItemRows, RowsFormat
from services.encoder.outcome import Outcome
from services.encoder.slices import EncodedSlice

PIECE_BYTES = 1 << 20
BARE, ENCODE, GENERATE = "/benchmark.Rows/Bare", "/benchmark.Rows/Encode", "/benchmark.Rows/Generate"
OPTIONS = [("grpc.max_receive_message_length", 4 << 20), ("grpc.so_reuseport", 0)]

Move = Callable[[], Awaitable[None]]


@asynccontextmanager
async def plain_stream(num_bytes: int) -> AsyncIterator[Move]:
    """A client of this process reads the bytes into one place, in messages of 1 MiB, from a server of another."""
    async with _server("bare", num_bytes) as address, grpc.aio.insecure_channel(address, OPTIONS) as channel:
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
    num_bytes = form.num_rows * form.slice_bytes // form.slice_rows
    job: Any = SimpleNamespace(index=0, num_slices=1, slice_bytes=lambda _dtype: num_bytes)
    async with (
        _server("encoder", num_bytes) as encoder,
        _server("decoder", form) as decoder,
        grpc.aio.insecure_channel(encoder, OPTIONS) as from_encoder,
        grpc.aio.insecure_channel(decoder, OPTIONS) as to_decoder,
    ):
        encode: Any = from_encoder.unary_stream(
            ENCODE, response_deserializer=encoder_service_pb2.EncodeResponse.FromString
        )
        generate: Any = to_decoder.stream_unary(
            GENERATE, request_serializer=decoder_service_pb2.GenerateRequest.SerializeToString
        )

        async def move() -> None:
            call = generate()
            await _Rows(job, call.write).relay_rest(encode(b""))
            await call.done_writing()
            if await call != b"whole":
                raise RuntimeError("the decoder has no tensor")

        yield move


async def _bare(num_bytes: int, _request: bytes, _context: object) -> AsyncIterator[bytes]:
    data = memoryview(bytes(num_bytes))
    for start in range(0, num_bytes, PIECE_BYTES):
        yield bytes(data[start : start + PIECE_BYTES])


async def _encoded(
    num_bytes: int, _request: bytes, _context: object
) -> AsyncIterator[encoder_service_pb2.EncodeResponse]:
    rows = Slice(1, 1, "bfloat16", memoryview(bytes(num_bytes)))
    item: Any = SimpleNamespace(streams=False)
    for response in Outcome(item).parts([EncodedSlice(b"", rows, cached=False, stored=False)]):
        yield response


async def _assembled(
    form: RowsFormat, requests: AsyncIterator[decoder_service_pb2.GenerateRequest], _context: object
) -> bytes:
    item = ItemRows(form)
    async for request in requests:
        item.add_chunk(request.chunk)
    return b"whole" if item.is_complete else b""


def _methods(kind: str, what: Any) -> "dict[str, grpc.RpcMethodHandler[Any, Any]]":
    match kind:
        case "bare":
            return {"Bare": grpc.unary_stream_rpc_method_handler(partial(_bare, what))}
        case "encoder":
            serialize = encoder_service_pb2.EncodeResponse.SerializeToString
            return {
                "Encode": grpc.unary_stream_rpc_method_handler(partial(_encoded, what), response_serializer=serialize)
            }
        case _:
            parse = decoder_service_pb2.GenerateRequest.FromString
            return {
                "Generate": grpc.stream_unary_rpc_method_handler(partial(_assembled, what), request_deserializer=parse)
            }


async def _serve(kind: str, what: Any, ready: Connection) -> None:
    server = grpc.aio.server(options=OPTIONS)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("benchmark.Rows", _methods(kind, what)),))
    ready.send(server.add_insecure_port("127.0.0.1:0"))
    await server.start()
    await server.wait_for_termination()


def _run(kind: str, what: Any, ready: Connection) -> None:
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
