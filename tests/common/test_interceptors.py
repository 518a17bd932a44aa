"""Exceptions of handlers of all four shapes."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeAlias

import grpc
import pytest

from services.common.errors import InvalidRequest, Violation, from_rpc_error

Context: TypeAlias = "grpc.aio.ServicerContext[bytes, bytes]"
Handlers: TypeAlias = "dict[str, grpc.RpcMethodHandler[bytes, bytes]]"
BAD = [Violation("field", "is wrong", "BAD")]
SHAPES = ["unary_unary", "unary_stream", "stream_unary", "stream_stream"]


def handlers(error: Exception | None) -> Handlers:
    """One method a shape, named by it: answers b"1" and, where it streams, raises after that."""

    async def answer(_: Any, __: Context) -> bytes:
        if error:
            raise error
        return b"1"

    async def stream(_: Any, __: Context) -> AsyncIterator[bytes]:
        yield b"1"
        if error:
            raise error

    async def writer(_: Any, context: Context) -> None:
        await context.write(b"1")
        if error:
            raise error

    return {
        "unary_unary": grpc.unary_unary_rpc_method_handler(answer),
        "stream_unary": grpc.stream_unary_rpc_method_handler(answer),
        "unary_stream": grpc.unary_stream_rpc_method_handler(stream),
        "stream_stream": grpc.stream_stream_rpc_method_handler(stream),
        "unary_stream_writer": grpc.unary_stream_rpc_method_handler(writer),
        "stream_stream_writer": grpc.stream_stream_rpc_method_handler(writer),
    }


async def call(address: str, shape: str) -> list[bytes]:
    """All responses of one method."""
    async with grpc.aio.insecure_channel(address) as channel:
        request_side, response_side = shape.split("_")[:2]
        method: Callable[..., Any] = getattr(channel, f"{request_side}_{response_side}")(f"/test.Service/{shape}")
        running = method(iter([b"x"]) if request_side == "stream" else b"x", timeout=5)
        return [response async for response in running] if response_side == "stream" else [await running]


@pytest.mark.parametrize("shape", [*SHAPES, "unary_stream_writer", "stream_stream_writer"])
async def test_answers_pass_through(serving: Any, shape: str) -> None:
    """A handler that does not raise is not disturbed, generator or writer."""
    async with serving(handlers(None)) as server:
        assert await call(server.address, shape) == [b"1"]


@pytest.mark.parametrize("shape", [*SHAPES, "unary_stream_writer", "stream_stream_writer"])
async def test_domain_errors_become_statuses(serving: Any, shape: str) -> None:
    """A handler of any shape raises a domain error and the client gets its rich status."""
    async with serving(handlers(InvalidRequest(BAD))) as server:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(server.address, shape)
    error = from_rpc_error(caught.value, "test")
    assert isinstance(error, InvalidRequest)
    assert error.violations == tuple(BAD)


@pytest.mark.parametrize("shape", SHAPES)
async def test_unknown_errors_are_internal(serving: Any, shape: str) -> None:
    """Any other exception is INTERNAL with a fixed text."""
    async with serving(handlers(RuntimeError("secret"))) as server:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(server.address, shape)
    assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.INTERNAL, "internal error")


async def test_own_aborts_pass_through(serving: Any) -> None:
    """A handler may still end its call itself."""

    async def abort(_: bytes, context: Context) -> bytes:
        await context.abort(grpc.StatusCode.ABORTED, "mine")

    async with serving({"unary_unary": grpc.unary_unary_rpc_method_handler(abort)}) as server:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(server.address, "unary_unary")
    assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.ABORTED, "mine")


async def test_a_cancelled_handler_cleans_up_at_once(serving: Any) -> None:
    """When the client goes while a handler waits, the handler gets CancelledError there and then."""
    waiting, cancelled = asyncio.Event(), asyncio.Event()

    async def endless(_: bytes, __: Context) -> AsyncIterator[bytes]:
        yield b"1"
        waiting.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    async with serving({"watch": grpc.unary_stream_rpc_method_handler(endless)}) as server:
        await leave(server.address, waiting)
        await asyncio.wait_for(cancelled.wait(), 1)


async def test_a_handler_cut_off_while_it_writes_cleans_up_at_once(serving: Any) -> None:
    """When the client goes while a response is on its way, the handler's `finally` does not wait for the collector."""
    full, cleaned = asyncio.Event(), asyncio.Event()

    async def endless(_: bytes, __: Context) -> AsyncIterator[bytes]:
        try:
            while True:
                full.set()
                yield b"x" * (1 << 20)
        finally:
            cleaned.set()

    async with serving({"watch": grpc.unary_stream_rpc_method_handler(endless)}) as server:
        await leave(server.address, full)
        await asyncio.wait_for(cleaned.wait(), 1)


async def test_a_stream_that_is_not_read_is_cut_off(serving: Any) -> None:
    """Once a client's buffers are full its handler is ended, and the client is told why when it reads again."""
    cleaned = asyncio.Event()

    async def endless(_: bytes, __: Context) -> AsyncIterator[bytes]:
        try:
            while True:
                yield b"x" * (1 << 20)
        finally:
            cleaned.set()

    served = serving({"watch": grpc.unary_stream_rpc_method_handler(endless)}, slow_reader_timeout_s=0.2)
    async with served as server, grpc.aio.insecure_channel(server.address) as channel:
        watch: Any = channel.unary_stream("/test.Service/watch")
        running = watch(b"")
        await running.read()
        await asyncio.wait_for(cleaned.wait(), 5)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await read_all(running)
    assert from_rpc_error(caught.value, "test").reason == "SLOW_READER"


async def read_all(running: Any) -> None:
    """Read to the end, or to the error."""
    while await running.read() is not grpc.aio.EOF:
        pass


async def leave(address: str, when: asyncio.Event) -> None:
    """A client that starts the method "watch" and cancels it."""
    async with grpc.aio.insecure_channel(address) as channel:
        watch: Any = channel.unary_stream("/test.Service/watch")
        running = watch(b"")
        await running.read()
        await asyncio.wait_for(when.wait(), 1)
        running.cancel()
