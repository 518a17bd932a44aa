"""The life of a server."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, TypeAlias

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from services.common.channels import open_channel
from services.common.server import READY_FILE_VARIABLE, ServerSettings, serve

Context: TypeAlias = "grpc.aio.ServicerContext[bytes, bytes]"
Handlers: TypeAlias = "dict[str, grpc.RpcMethodHandler[bytes, bytes]]"
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def counting(go: asyncio.Event) -> Handlers:
    """A stream of b"1", then b"2" once `go` is set."""

    async def count(_: bytes, __: Context) -> AsyncIterator[bytes]:
        yield b"1"
        await go.wait()
        yield b"2"

    return {"count": grpc.unary_stream_rpc_method_handler(count)}


def method(channel: grpc.aio.Channel, name: str) -> Any:
    """A streaming method of the test's service."""
    return channel.unary_stream(f"/test.Service/{name}")


async def rest(call: Any) -> list[bytes]:
    """What a stream that was begun with `read` still says."""
    messages = []
    while (message := await call.read()) is not grpc.aio.EOF:
        messages.append(message)
    return messages


async def test_a_running_stream_finishes_while_draining(serving: Any) -> None:
    """On stop a server is NOT_SERVING and takes no new calls, and what runs is finished."""
    go = asyncio.Event()
    async with serving(counting(go)) as server, grpc.aio.insecure_channel(server.address) as channel:
        running = method(channel, "count")(b"")
        assert await running.read() == b"1"
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service="test.Service"))
        assert (await watch.read()).status == SERVING
        server.stop.set()
        assert (await watch.read()).status == NOT_SERVING
        async with grpc.aio.insecure_channel(server.address) as other:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await method(other, "count")(b"", timeout=2).read()
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        go.set()
        assert await rest(running) == [b"2"]
        await asyncio.wait_for(server.task, 3)


async def test_a_stream_that_never_ends_is_cut_after_the_grace(serving: Any) -> None:
    """Draining is bounded."""
    async with serving(counting(asyncio.Event()), grace_s=0.1) as server, open_channel(server.address) as channel:
        running = method(channel, "count")(b"")
        assert await running.read() == b"1"
        server.stop.set()
        with pytest.raises(grpc.aio.AioRpcError):
            await running.read()
        await asyncio.wait_for(server.task, 3)


async def test_health_and_reflection_need_no_files(serving: Any) -> None:
    """grpcurl can list the services and ask for their health."""
    async with serving({}) as server, grpc.aio.insecure_channel(server.address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for name in ("", "test.Service"):
            assert (await health.Check(health_pb2.HealthCheckRequest(service=name))).status == SERVING
        asked = iter([reflection_pb2.ServerReflectionRequest(list_services="")])
        answers = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(asked)
        names = {service.name async for answer in answers for service in answer.list_services_response.service}
        assert {"test.Service", "grpc.health.v1.Health"} <= names


async def test_a_port_in_use_is_refused_by_name(serving: Any) -> None:
    """Two servers never share a port silently."""
    async with serving({}) as server:
        settings = ServerSettings(listen=server.address)
        with pytest.raises(OSError, match=server.address):
            await serve(settings, lambda _: None, [], stop=asyncio.Event())


async def test_tells_its_address_in_the_ready_file(
    serving: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A launcher learns the port from a file that is never half written."""
    path = tmp_path / "ready"
    monkeypatch.setenv(READY_FILE_VARIABLE, str(path))
    async with serving({}) as server:
        assert path.read_text() == f"{server.address}\n"
    assert [entry.name for entry in os.scandir(tmp_path)] == [path.name]


def named(name: bytes) -> Handlers:
    """A call that answers with the server's name."""

    async def who(_: bytes, __: Context) -> bytes:
        return name

    return {"who": grpc.unary_unary_rpc_method_handler(who)}


async def test_no_call_fails_while_one_of_two_servers_drains(serving: Any) -> None:
    """A client of two servers uses both, and goes on without a failure when one of them is stopped."""
    async with (
        serving(named(b"a"), notice_s=0.5) as first,
        serving(named(b"b")) as second,
        open_channel(f"ipv4:{first.address},{second.address}") as channel,
    ):
        who: Any = channel.unary_unary("/test.Service/who")
        async with asyncio.timeout(5):
            while await who(b"", wait_for_ready=True) != b"a":
                pass
            first.stop.set()
            while not first.task.done():
                await who(b"")
        assert {await who(b"") for _ in range(10)} == {b"b"}


async def test_a_new_channel_connects_at_once(serving: Any) -> None:
    """What another channel found at an address before is not held against who listens there now."""
    async with serving(named(b"first")) as first:
        address = first.address
    async with open_channel(address) as waiting:
        while (state := waiting.get_state(try_to_connect=True)) is not grpc.ChannelConnectivity.TRANSIENT_FAILURE:
            await waiting.wait_for_state_change(state)
        async with serving(named(b"second"), listen=address), open_channel(address) as channel:
            who: Any = channel.unary_unary("/test.Service/who")
            assert await who(b"", timeout=5) == b"second"


async def test_a_channel_comes_back(serving: Any) -> None:
    """Calls work again within two seconds of a server's return."""
    done = asyncio.Event()
    done.set()
    async with serving(counting(done)) as first:
        address = first.address
    async with open_channel(address) as channel:
        count = method(channel, "count")
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await count(b"", timeout=5).read()
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        stop, ready = asyncio.Event(), asyncio.Event()
        register = grpc.method_handlers_generic_handler("test.Service", counting(done))
        again = asyncio.create_task(
            serve(
                ServerSettings(listen=address),
                lambda server: server.add_generic_rpc_handlers((register,)),
                ["test.Service"],
                stop=stop,
                on_ready=lambda _: ready.set(),
            )
        )
        await asyncio.wait_for(ready.wait(), 5)
        assert [message async for message in count(b"", timeout=4, wait_for_ready=True)] == [b"1", b"2"]
        stop.set()
        await again


class AgeingSettings(ServerSettings):
    """Connections last a tenth of a second, and the calls on them as long as they need."""

    @property
    def connection_age_s(self) -> tuple[float, float] | None:
        return 0.1, 30.0


async def test_no_call_fails_when_connections_age_out(serving: Any) -> None:
    """Callers connect anew again and again: short calls go on, and a long one ends where it began."""
    peers, go = set(), asyncio.Event()

    async def who(_: bytes, context: Context) -> bytes:
        peers.add(context.peer())
        return b""

    handlers = {"who": grpc.unary_unary_rpc_method_handler(who), **counting(go)}
    async with (
        serving(handlers, settings_class=AgeingSettings) as server,
        open_channel(server.address) as channel,
    ):
        long = method(channel, "count")(b"")
        assert await long.read() == b"1"
        ask: Any = channel.unary_unary("/test.Service/who")
        async with asyncio.timeout(20):
            while len(peers) < 8:
                await asyncio.gather(*(ask(b"") for _ in range(20)))
        go.set()
        assert await rest(long) == [b"2"]
