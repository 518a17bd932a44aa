"""A store in Redis or Valkey, bounded in time whatever the server does.

An operation that is late is a miss for whoever asked, and ends by itself: it may be the connection that takes long.
While the server is silent (see pulse.py) every operation fails without waiting. So an outage costs the few requests
that meet it first some milliseconds, and is over a tenth of a second after the server is back.
"""

import asyncio
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from redis.exceptions import ResponseError

from services.common.cache.chunks import Head, batches, split
from services.common.cache.clients import NO_ANSWER, Command, connect
from services.common.cache.errors import StoreDown, StoreError
from services.common.cache.held import RESERVE, held_keys
from services.common.cache.lease import Claim
from services.common.cache.pulse import TICKS, Pulse
from services.common.cache.store import Removed, Value
from services.common.cache_url import parse_cache_url

MAX_CONNECTIONS = 8
WRITE_PAUSE_S = 0.5  # after the server has refused a write: full or read-only
REPLY_TIMEOUT_S = 0.008  # for an answer of no size, unless configured
VALUE_TIMEOUT_S = 0.1  # more for each value, while the server answers: 40 MB/s is the slowest that is no failure
CLAIM_TIMEOUT_S = 0.1  # more for a lease, unless the server is lost: work done twice costs more than the wait
CONNECT_TIMEOUT_S = 1.0  # nobody waits for it
KEYS_PER_READ = 16
CHUNKS_PER_READ = 4  # held twice for a moment
KEYS_PER_SCAN = 1000  # a server's millisecond
WRITE_S = 1  # a value may be written so much later than it was counted


CLAIM = """
if redis.call('EXISTS', KEYS[2]) == 1 then return 'done' end
if redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) then return 'mine' end
return 'taken'
"""
RENEW = "return redis.call('GET', KEYS[1]) == ARGV[1] and redis.call('PEXPIRE', KEYS[1], ARGV[2]) or 0"
RELEASE = "return redis.call('GET', KEYS[1]) == ARGV[1] and redis.call('DEL', KEYS[1]) or 0"


class RedisStore:
    """Values behind `url` (see cache_url.py), each for `ttl_s` seconds at most. An answer may take `timeout_s`."""

    shared = True

    def __init__(
        self,
        url: str,
        *,
        ttl_s: float,
        timeout_s: float = REPLY_TIMEOUT_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.ttl_s, self._timeout_s, self._clock = ttl_s, timeout_s, clock
        place, limit_s = parse_cache_url(url), CONNECT_TIMEOUT_S + timeout_s
        self._client = connect(place, limit_s)
        self._pulse = Pulse(connect(place, limit_s), timeout_s / 2, self._client.reset)
        self._connections = asyncio.Semaphore(MAX_CONNECTIONS)
        self._writes_from = clock()

    async def get(self, keys: Sequence[str]) -> list[Value | None]:
        values = await self._read(keys)
        for i, (key, value) in enumerate(zip(keys, values, strict=True)):
            if head := Head.of(value):
                values[i] = await self._joined(key, head)
        return values

    async def contains(self, keys: Sequence[str]) -> list[bool]:
        return [bool(count) for count in await self._run([("EXISTS", key) for key in keys])]

    async def put(self, values: Mapping[str, Value], ttl_s: float | None = None) -> None:
        ttl_ms = math.ceil(1000 * (self.ttl_s if ttl_s is None else ttl_s))
        for batch in batches(split(values)):
            await self._write([("SET", key, value, "PX", ttl_ms) for key, value in batch], num_values=1)

    async def reserve(self, prefix: str, sizes: Mapping[str, int], limit: int) -> float:
        arguments = [field for name, size in sizes.items() for field in (name.removeprefix(prefix), size)]
        ttl_ms = round(1000 * (self.ttl_s + WRITE_S))
        (wait_ms,) = await self._write([("EVAL", RESERVE, 2, *held_keys(prefix), ttl_ms, limit, *arguments)])
        return int(wait_ms) / 1000

    async def delete(self, keys: Sequence[str]) -> None:
        await self._run([("UNLINK", key) for key in keys])

    async def claim(self, names: Sequence[str], token: str, lease_s: float) -> list[Claim]:
        """Take the lease of each name whose value is not there and whose lease is nobody's."""
        lease_ms = round(lease_s * 1000)
        commands = [("EVAL", CLAIM, 2, _lease(name), name, token, lease_ms) for name in names]
        replies = await self._write(commands, patience_s=CLAIM_TIMEOUT_S)
        return [Claim(reply.decode()) for reply in replies]

    async def renew(self, tokens: Mapping[str, str], lease_s: float) -> list[bool]:
        """Prolong each lease that is still held under its token; whether it is."""
        lease_ms = round(lease_s * 1000)
        commands = [("EVAL", RENEW, 1, _lease(name), token, lease_ms) for name, token in tokens.items()]
        return [bool(reply) for reply in await self._run(commands)]

    async def release(self, tokens: Mapping[str, str]) -> None:
        """End each lease that is still held under its token."""
        await self._run([("EVAL", RELEASE, 1, _lease(name), token) for name, token in tokens.items()])

    async def delete_prefix(self, prefix: str) -> Removed:
        """Remove every value whose key begins so, a page of all keys at a time; new ones may come meanwhile."""
        removed = Removed()
        await self.delete(held_keys(prefix))
        try:
            async for keys in self._client.scan(f"{prefix}*", KEYS_PER_SCAN):
                removed += await self._delete_counted(keys)
        except NO_ANSWER as error:
            raise StoreError("no answer") from error
        return removed

    async def ping(self) -> None:
        await self._run([("PING",)])

    async def close(self) -> None:
        await self._pulse.close()
        await self._client.close()

    async def _joined(self, key: str, head: Head) -> Value:
        """A value in chunks, read into one place a few at a time; empty, which verifies as nothing, if one is gone."""
        value, end = bytearray(head.num_bytes), 0
        keys = head.chunk_keys(key)
        for start in range(0, len(keys), CHUNKS_PER_READ):
            for chunk in await self._read(keys[start : start + CHUNKS_PER_READ]):
                if chunk is None or end + len(chunk) > len(value):
                    return b""
                memoryview(value)[end : end + len(chunk)] = chunk
                end += len(chunk)
        return value if end == len(value) else b""

    async def _delete_counted(self, keys: Sequence[bytes]) -> Removed:
        if not keys:
            return Removed()
        sizes = await self._run([("STRLEN", key) for key in keys], num_values=1)
        gone = await self._run([("UNLINK", key) for key in keys], num_values=1)
        return Removed(sum(gone), sum(int(size or 0) for size, was in zip(sizes, gone, strict=True) if was))

    async def _read(self, keys: Sequence[str]) -> list[Value | None]:
        values: list[Value | None] = []
        for start in range(0, len(keys), KEYS_PER_READ):
            some = keys[start : start + KEYS_PER_READ]
            values += await self._run([("GET", key) for key in some], num_values=len(some))
        return values

    async def _write(self, commands: Sequence[Command], num_values: int = 0, patience_s: float = 0.0) -> list[Any]:
        if self._clock() < self._writes_from:
            raise StoreDown("the server refuses writes")
        try:
            return await self._run(commands, num_values, patience_s)
        except StoreError as error:
            if isinstance(error.__cause__, ResponseError):
                self._writes_from = self._clock() + WRITE_PAUSE_S
            raise

    async def _run(self, commands: Sequence[Command], num_values: int = 0, patience_s: float = 0.0) -> list[Any]:
        """The replies to `commands`, sent together. StoreError after a bounded time, at once while down.

        With `patience_s` a server that is only late is waited for so much longer; one that is lost is not.
        """
        self._pulse.start()
        await self._connections.acquire()  # waiting for one is the callers' storm, not the server's fault
        if self._is_away(patience_s):
            self._connections.release()
            raise StoreDown("the server does not answer")
        replies = asyncio.create_task(self._exchange(commands, num_values))
        replies.add_done_callback(self._release)
        return await self._in_time(replies, num_values, patience_s)

    async def _exchange(self, commands: Sequence[Command], num_values: int) -> list[Any]:
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S + self._timeout_s + VALUE_TIMEOUT_S * num_values):
                return await self._client.execute(commands)
        except ResponseError as error:  # the server is well, it only refused
            raise StoreError("refused") from error
        except NO_ANSWER as error:
            self._pulse.lose()
            raise StoreError("no answer") from error

    async def _in_time(self, replies: "asyncio.Task[list[Any]]", num_values: int, patience_s: float) -> list[Any]:
        """The replies, if they come in time. Values may take longer, as long as the server answers to a PING.

        Waits in parts, like pulse.done_within and for its reason.
        """
        part_s = self._timeout_s / TICKS
        for _ in range(TICKS + round((VALUE_TIMEOUT_S * num_values + patience_s) / part_s)):
            if (await asyncio.wait({replies}, timeout=part_s))[0]:
                return replies.result()
            self._pulse.doubt()
            if self._is_away(patience_s):
                replies.cancel()
                raise StoreDown("the server has gone silent")
        raise StoreError("late")

    def _is_away(self, patience_s: float) -> bool:
        return self._pulse.is_lost if patience_s else not self._pulse.up

    def _release(self, replies: "asyncio.Task[list[Any]]") -> None:
        self._connections.release()
        if not replies.cancelled():
            replies.exception()  # nobody may be left to hear it


def _lease(name: str) -> str:
    """The braces keep it on the node of a cluster that has the value."""
    return f"{{{name}}}:lease"
