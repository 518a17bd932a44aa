"""Health as a server tells it while it drains."""

import contextlib
from collections.abc import Iterable
from typing import Any

from grpc_health.v1 import health, health_pb2


class DrainingHealth(health.aio.HealthServicer):  # type: ignore[misc]  # it comes without types
    """Ends a Watch after its last word, or its watcher would hold a draining server for the whole grace."""

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: Any) -> None:  # noqa: N802 -- the RPC's name
        with contextlib.suppress(_WatchEnded):
            await super().Watch(request, _WatchContext(context, self))

    async def set_all(self, names: Iterable[str], *, is_serving: bool) -> None:
        """Set the status of several services at once; a drain stands over it."""
        status = health_pb2.HealthCheckResponse
        for name in names:
            await self.set(name, status.SERVING if is_serving else status.NOT_SERVING)

    @property
    def is_draining(self) -> bool:
        return bool(self._gracefully_shutting_down)


class _WatchContext:
    """Writes a watcher's news, and stops the watch after the news of the drain."""

    def __init__(self, context: Any, servicer: DrainingHealth) -> None:
        self._context, self._servicer = context, servicer

    async def write(self, response: health_pb2.HealthCheckResponse) -> None:
        await self._context.write(response)
        if self._servicer.is_draining:
            raise _WatchEnded


class _WatchEnded(Exception):  # noqa: N818 -- no error
    pass
