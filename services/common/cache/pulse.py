"""Whether a server answers now, by a PING four times a second, and at once when somebody is in doubt.

While it does not, by one ten times a second.

A PONG that is late makes everybody do without the cache until it comes, which may be a moment later: a server that is
slow for a moment costs misses and nothing else. Only one that stays silent is called lost.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

import structlog

from services.common.cache.clients import NO_ANSWER, Client

INTERVAL_S = 0.25
RETRY_S = 0.1  # of a server that is down: what it takes to be used again once it is back
LOST_S = 0.25  # silent for so long, the connection is given up; a new one may lead to another server
TICKS = 4

log = structlog.get_logger()


class Pulse:
    """Watches the server behind `client`, which is its own. A PONG may take `timeout_s`.

    `up`: the last PONG was not late. `is_lost`: none came for so long that it is taken for gone. `on_return` is awaited
    when a lost server, or one in its place, has answered.
    """

    def __init__(self, client: Client, timeout_s: float, on_return: Callable[[], Awaitable[None]]) -> None:
        self._client, self._timeout_s, self._on_return = client, timeout_s, on_return
        self._is_open = self.up = True
        self.is_lost = False
        self._in_doubt = asyncio.Event()
        self._watch: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to watch; safe to call again."""
        if self._watch is None:
            self._watch = asyncio.create_task(self._run())

    def doubt(self) -> None:
        """Something is late: ask the server now."""
        self._in_doubt.set()

    def lose(self) -> None:
        """Something has failed: the server counts as down until it answers."""
        self.up = False
        self._in_doubt.set()

    async def close(self) -> None:
        """Stop watching."""
        self._is_open = False  # ends the watch even where a time-out inside the client swallows its cancellation
        if self._watch is not None:
            self._watch.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watch
        await self._client.close()

    async def _run(self) -> None:
        while self._is_open:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(INTERVAL_S if self.up else RETRY_S):
                    await self._in_doubt.wait()
            self._in_doubt.clear()
            answers = await self._answers()
            if self.is_lost and answers:
                await self._on_return()
            self.up = answers
            if self.is_lost == answers:
                log.warning("cache is back" if answers else "cache is lost")
                self.is_lost = not answers

    async def _answers(self) -> bool:
        ping = asyncio.create_task(self._client.ping())
        ping.add_done_callback(lambda done: done.cancelled() or done.exception())  # nobody may be left to hear it
        try:
            if not await done_within(ping, self._timeout_s):
                self.up = False
            async with asyncio.timeout(LOST_S):
                await ping
        except NO_ANSWER:
            with contextlib.suppress(*NO_ANSWER):
                await self._client.reset()
            return False
        finally:
            ping.cancel()
        return True


async def done_within(task: "asyncio.Task[Any]", limit_s: float) -> bool:
    """Whether a task ends in time. Waits in parts, so that a stall of this process's loop does not pass for silence."""
    for _ in range(TICKS):
        if (await asyncio.wait({task}, timeout=limit_s / TICKS))[0]:
            return True
    return False
