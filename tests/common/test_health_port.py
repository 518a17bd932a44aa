"""The plain port for health, beside a main port that speaks TLS."""

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, TypeAlias

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from pydantic import ValidationError

from services.common.server import ServerSettings, serve
from tests.certificates import Authority

Context: TypeAlias = "grpc.aio.ServicerContext[bytes, bytes]"
Handlers: TypeAlias = "dict[str, grpc.RpcMethodHandler[bytes, bytes]]"
Status = health_pb2.HealthCheckResponse


@pytest.fixture
def health_address() -> str:
    """An address of this machine that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


@pytest.fixture
def closed(tmp_path: Path) -> dict[str, Path]:
    """Settings of a main port that speaks TLS and asks for certificates."""
    authority = Authority(tmp_path / "authority")
    files = authority.issue("service")
    return {"tls_cert": files.cert, "tls_key": files.key, "tls_client_ca": authority.ca}


def check(name: str) -> health_pb2.HealthCheckRequest:
    """The question that a probe asks."""
    return health_pb2.HealthCheckRequest(service=name)


async def test_a_probe_without_tls_is_answered(serving: Any, closed: dict[str, Path], health_address: str) -> None:
    """As the kubelet asks, in the clear, while the main port takes nobody without a certificate."""
    async with (
        serving({}, health_listen=health_address, **closed) as server,
        grpc.aio.insecure_channel(health_address) as plain,
        grpc.aio.insecure_channel(server.address) as main,
    ):
        for name in ("", "test.Service"):
            assert (await health_pb2_grpc.HealthStub(plain).Check(check(name), timeout=5)).status == Status.SERVING
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await health_pb2_grpc.HealthStub(main).Check(check(""), timeout=5)
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_nothing_but_health_is_served(serving: Any, closed: dict[str, Path], health_address: str) -> None:
    """The service and reflection are not there, and a long message is refused: it is no way around the main port."""

    async def who(_: bytes, __: Context) -> bytes:
        return b"anybody"

    handlers: Handlers = {"who": grpc.unary_unary_rpc_method_handler(who)}
    async with (
        serving(handlers, health_listen=health_address, **closed),
        grpc.aio.insecure_channel(health_address) as plain,
    ):
        call: Any = plain.unary_unary("/test.Service/who")
        reflected = reflection_pb2_grpc.ServerReflectionStub(plain).ServerReflectionInfo(
            iter([reflection_pb2.ServerReflectionRequest(list_services="")])
        )
        long = health_pb2_grpc.HealthStub(plain).Check(check("a" * 5000), timeout=5)
        for attempt, code in (
            (call(b"", timeout=5), grpc.StatusCode.UNIMPLEMENTED),
            (reflected.read(), grpc.StatusCode.UNIMPLEMENTED),
            (long, grpc.StatusCode.RESOURCE_EXHAUSTED),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await attempt
            assert refused.value.code() is code


async def test_the_drain_is_told_to_its_end(serving: Any, closed: dict[str, Path], health_address: str) -> None:
    """On stop a watcher hears NOT_SERVING and is let go; the port answers so until the last stream is done."""
    go, begun = asyncio.Event(), asyncio.Event()

    async def count(_: bytes, __: Context) -> AsyncIterator[bytes]:
        begun.set()
        yield b"1"
        await go.wait()
        yield b"2"

    handlers: Handlers = {"count": grpc.unary_stream_rpc_method_handler(count)}
    trusted = grpc.ssl_channel_credentials(
        closed["tls_client_ca"].read_bytes(), closed["tls_key"].read_bytes(), closed["tls_cert"].read_bytes()
    )
    async with (
        serving(handlers, health_listen=health_address, **closed) as server,
        grpc.aio.insecure_channel(health_address) as plain,
        grpc.aio.secure_channel(server.address, trusted) as main,
    ):
        stub = health_pb2_grpc.HealthStub(plain)
        counting: Any = main.unary_stream("/test.Service/count")
        running = counting(b"")
        await asyncio.wait_for(begun.wait(), 5)
        watch = stub.Watch(check("test.Service"))
        assert (await watch.read()).status == Status.SERVING
        server.stop.set()
        assert (await watch.read()).status == Status.NOT_SERVING
        assert await watch.read() is grpc.aio.EOF
        assert (await stub.Check(check("test.Service"), timeout=5)).status == Status.NOT_SERVING
        go.set()
        assert [message async for message in running] == [b"1", b"2"]
        await asyncio.wait_for(server.task, 3)
        with pytest.raises(grpc.aio.AioRpcError):
            await stub.Check(check(""), timeout=2)


async def test_a_health_port_in_use_is_refused_by_name(serving: Any) -> None:
    """The process does not come up without the probes' port."""
    async with serving({}) as server:
        settings = ServerSettings(listen="127.0.0.1:0", health_listen=server.address)
        with pytest.raises(OSError, match=server.address):
            await serve(settings, lambda _: None, [], stop=asyncio.Event())


def test_the_health_port_alone_may_be_open() -> None:
    """Health may be asked for from other machines; the main port still needs TLS and known callers for that."""
    ServerSettings(listen="127.0.0.1:0", health_listen="0.0.0.0:50052")
    with pytest.raises(ValidationError, match="DIPTYCH_LISTEN"):
        ServerSettings(listen="0.0.0.0:50051", health_listen="0.0.0.0:50052")
