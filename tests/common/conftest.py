"""Real servers for the tests of the common room."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import grpc
import pytest

from cli.local_redis import LocalRedis
from services.common.server import ServerSettings, serve

Handlers: TypeAlias = "dict[str, grpc.RpcMethodHandler[bytes, bytes]]"
Serving: TypeAlias = Callable[..., AbstractAsyncContextManager["Running"]]
Guard: TypeAlias = grpc.aio.ServerInterceptor
SERVICE = "test.Service"


@dataclass
class Running:
    """A server in this process."""

    port: int
    stop: asyncio.Event
    task: asyncio.Task[None]

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"


@pytest.fixture
def serving() -> Serving:
    """Serves raw-bytes handlers of the service "test.Service" on a free port."""

    @asynccontextmanager
    async def start(
        handlers: Handlers,
        grace_s: float = 10,
        notice_s: float = 0,
        guards: Sequence[Guard] = (),
        listen: str = "127.0.0.1:0",
        settings_class: type[ServerSettings] = ServerSettings,
        **more: Any,
    ) -> AsyncIterator[Running]:
        def register(server: grpc.aio.Server) -> None:
            server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))

        bound: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        stop = asyncio.Event()
        settings = settings_class(listen=listen, drain_grace_s=grace_s, drain_notice_s=notice_s, **more)
        ready = bound.set_result
        task = asyncio.create_task(serve(settings, register, [SERVICE], stop=stop, on_ready=ready, guards=guards))
        yield Running(await asyncio.wait_for(bound, 5), stop, task)
        stop.set()
        await asyncio.wait_for(task, grace_s + 5)

    return start


@pytest.fixture
def redis_server() -> Iterator[LocalRedis]:
    """A server of the test's own, so that it may be hurt."""
    with LocalRedis(max_memory_bytes=64 << 20, arguments=["--enable-debug-command", "local"]) as server:
        yield server


@pytest.fixture(scope="session")
def eventually() -> Callable[[Callable[[], Awaitable[bool]], float], Awaitable[None]]:
    """Waits until a condition holds; fails after `within_s`."""

    async def wait(condition: Callable[[], Awaitable[bool]], within_s: float) -> None:
        async with asyncio.timeout(within_s):
            while not await condition():  # noqa: ASYNC110 -- the condition is another process's
                await asyncio.sleep(0.01)

    return wait
