"""A store in Redis or Valkey, bounded in time whatever the server does.

A task of its own asks the server for a PONG four times a second, and at once after a failure. While the answer stays
out, every operation fails without waiting; so an outage costs the few requests that meet it first a bounded wait, and
is over a quarter of a second after the server is back.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import structlog
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError
from redis.maint_notifications import MaintNotificationsConfig

from services.common.cache.base import StoreDown, StoreError
from services.common.cache.chunks import Head, batches, split

MAX_CONNECTIONS = 8
PROBE_INTERVAL_S = 0.25
WRITE_PAUSE_S = 1.0  # after the server has refused a write: full or read-only
REPLY_TIMEOUT_S = 0.1  # to connect, and for an answer of no size, unless configured
VALUE_TIMEOUT_S = 0.1  # more for each value: the slowest transfer that is no failure is 40 MB/s
KEYS_PER_READ = 16

Command: TypeAlias = tuple[Any, ...]
PING: Command = ("PING",)

log = structlog.get_logger()


class RedisStore:
    """Values in the server at `url` (redis://, rediss:// or unix://), each for `ttl_s` seconds."""

    shared = True

    def __init__(
        self,
        url: str,
        *,
        ttl_s: int,
        timeout_s: float = REPLY_TIMEOUT_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ttl_s, self._timeout_s, self._clock = ttl_s, timeout_s, clock
        self._redis, self._probe = _client(url, MAX_CONNECTIONS, timeout_s), _client(url, 1, timeout_s)
        self._connections = asyncio.Semaphore(MAX_CONNECTIONS)
        self._up = self._open = True
        self._writes_from = clock()
        self._doubt = asyncio.Event()
        self._watch: asyncio.Task[None] | None = None

    async def get(self, keys: Sequence[str]) -> list[bytes | None]:
        values = await self._read(keys)
        for i, (key, value) in enumerate(zip(keys, values, strict=True)):
            if head := Head.of(value):
                values[i] = head.joined(await self._read(head.chunk_keys(key)))
        return values

    async def contains(self, keys: Sequence[str]) -> list[bool]:
        return [bool(count) for count in await self._run([("EXISTS", key) for key in keys])]

    async def put(self, values: Mapping[str, bytes]) -> None:
        if self._clock() < self._writes_from:
            raise StoreDown("the server refuses writes")
        try:
            for batch in batches(split(values)):
                await self._run([("SET", key, value, "EX", self._ttl_s) for key, value in batch], num_values=1)
        except StoreError as error:
            if isinstance(error.__cause__, ResponseError):
                self._writes_from = self._clock() + WRITE_PAUSE_S
            raise

    async def delete(self, keys: Sequence[str]) -> None:
        await self._run([("UNLINK", *keys)])

    async def ping(self) -> None:
        await self._run([PING])

    async def close(self) -> None:
        self._open = False  # ends the watch even where a time-out inside the client swallows its cancellation
        if self._watch is not None:
            self._watch.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watch
        for client in (self._redis, self._probe):
            await client.aclose()

    async def _read(self, keys: Sequence[str]) -> list[bytes | None]:
        values: list[bytes | None] = []
        for start in range(0, len(keys), KEYS_PER_READ):
            some = keys[start : start + KEYS_PER_READ]
            values += await self._run([("GET", key) for key in some], num_values=len(some))
        return values

    async def _run(self, commands: Sequence[Command], num_values: int = 0) -> list[Any]:
        """The replies to `commands`, sent together. StoreError after a bounded time, at once while down."""
        if self._watch is None:
            self._watch = asyncio.create_task(self._watch_server())
        try:
            async with self._connections:  # waiting for one is the callers' storm, not the server's fault
                if not self._up:
                    raise StoreDown("the server does not answer")
                async with asyncio.timeout(self._timeout_s + VALUE_TIMEOUT_S * num_values):
                    return await _execute(self._redis, commands)
        except ResponseError as error:  # the server is well, it only refused
            raise StoreError("refused") from error
        except (RedisError, OSError) as error:
            self._up = False
            self._doubt.set()
            raise StoreError("no answer") from error

    async def _watch_server(self) -> None:
        while self._open:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PROBE_INTERVAL_S):
                    await self._doubt.wait()
            self._doubt.clear()
            was_up, self._up = self._up, await self._answers()
            if was_up != self._up:
                log.warning("cache is back" if self._up else "cache is lost")

    async def _answers(self) -> bool:
        try:
            async with asyncio.timeout(self._timeout_s):
                await _execute(self._probe, [PING])
        except (RedisError, OSError):
            return False
        return True


async def _execute(client: Redis, commands: Sequence[Command]) -> list[Any]:
    async with client.pipeline(transaction=False) as pipe:
        for command in commands:
            pipe.execute_command(*command)
        replies: list[Any] = await pipe.execute(raise_on_error=False)
    for i, reply in enumerate(replies):
        if isinstance(reply, ResponseError) and str(reply).startswith("WRONGTYPE"):
            replies[i] = b""  # a foreign value under our key: verifies as nothing, and so is deleted
        elif isinstance(reply, Exception):
            raise reply
    return replies


def _client(url: str, max_connections: int, timeout_s: float) -> Redis:
    """A client that never retries: what fails is a miss, and the next request may try."""
    pool = BlockingConnectionPool.from_url(
        url,
        max_connections=max_connections,
        timeout=timeout_s,
        socket_connect_timeout=timeout_s,
        socket_timeout=timeout_s + VALUE_TIMEOUT_S,
        retry=Retry(NoBackoff(), 0),
        maint_notifications_config=MaintNotificationsConfig(enabled=False),
    )
    return Redis(connection_pool=pool)
