"""What a cache over a broken server does: it misses, at once, and is back within two seconds of the server."""

import asyncio
import os
import signal
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pytest
from redis.asyncio import Redis
from structlog.testing import capture_logs

from cli.local_redis import LocalRedis
from services.common.cache import EmbeddingCache, open_cache
from services.common.cache.chunks import MAX_VALUE_BYTES
from services.common.cache.pulse import INTERVAL_S
from services.common.embedding import Slice
from tests import redis_servers
from tests.loading_redis import loading

Eventually: TypeAlias = Callable[[Callable[[], Awaitable[bool]], float], Awaitable[None]]
KEY = b"k" * 32
NUM_HANGS = 5
ROWS = Slice(4, 8, "float32", np.ones((4, 8), dtype=np.float32).data.cast("B"))


@pytest.fixture
async def cache(redis_server: LocalRedis) -> AsyncIterator[EmbeddingCache]:
    """A cache that has met its server, patient as the machine is busy."""
    opened = open_cache(redis_server.url, ttl_s=60, max_bytes=0, timeout_s=0.5)
    assert await opened.put_slices({KEY: ROWS})
    yield opened
    await opened.close()


@pytest.fixture
async def hasty(redis_server: LocalRedis, eventually: Eventually) -> AsyncIterator[EmbeddingCache]:
    """A cache with the patience that services have."""
    opened = open_cache(redis_server.url, ttl_s=60, max_bytes=0)
    await eventually(is_back(opened), 5)
    yield opened
    await opened.close()


@pytest.fixture
async def admin(redis_server: LocalRedis) -> AsyncIterator[Redis]:
    """A plain client, to hurt the server with."""
    client = Redis.from_url(redis_server.url)
    yield client
    await client.aclose()


def is_back(cache: EmbeddingCache) -> Callable[[], Awaitable[bool]]:
    """Whether the cache takes and gives again."""

    async def check() -> bool:
        return await cache.put_slices({KEY: ROWS}) and await cache.get_slices([KEY]) == [ROWS]

    return check


def has_rows(cache: EmbeddingCache) -> Callable[[], Awaitable[bool]]:
    """Whether the cache gives what was put there, without being given it again."""

    async def check() -> bool:
        return await cache.get_slices([KEY]) == [ROWS]

    return check


async def sleep(admin: Redis, seconds: str) -> None:
    """Keep the server from answering."""
    await admin.execute_command("DEBUG", "SLEEP", seconds)  # type: ignore[no-untyped-call]


def misses(cache: EmbeddingCache) -> Callable[[], Awaitable[bool]]:
    """Whether a look-up finds nothing."""

    async def check() -> bool:
        return await cache.get_slices([KEY]) == [None]

    return check


async def misses_at_once(cache: EmbeddingCache) -> None:
    """Every operation fails without an exception and without its time-out: a hundred would take ten seconds."""
    start = time.perf_counter()
    for _ in range(25):
        assert await cache.get_slices([KEY]) == [None]
        assert await cache.has_slices([KEY]) == [False]
        assert await cache.get_manifest(KEY) is None
        assert not await cache.put_slices({KEY: ROWS})
    assert time.perf_counter() - start < 1


async def test_killed(redis_server: LocalRedis, cache: EmbeddingCache, eventually: Eventually) -> None:
    """A server that dies is a miss without a wait, and is used again within two seconds of its return."""
    os.kill(redis_server.pid, signal.SIGKILL)
    assert await cache.get_slices([KEY]) == [None]
    await misses_at_once(cache)
    redis_server.stop()
    redis_server.start()
    await eventually(is_back(cache), 2)


async def test_loading(redis_server: LocalRedis, cache: EmbeddingCache, tmp_path: Path, eventually: Eventually) -> None:
    """A server that reads its dump refuses everything without a wait, and is used as soon as it has what it had."""
    with loading(redis_server, tmp_path, seconds=20) as server:
        await eventually(misses(cache), 2)
        await misses_at_once(cache)
    assert server.port == redis_server.port
    await eventually(has_rows(cache), 1)
    server.stop()


async def test_stopped(redis_server: LocalRedis, hasty: EmbeddingCache, eventually: Eventually) -> None:
    """A server that hangs costs the first caller a few milliseconds, the next ones none, whatever they ask for."""
    waits = []
    for _ in range(NUM_HANGS):
        os.kill(redis_server.pid, signal.SIGSTOP)
        try:
            start = time.perf_counter()
            assert await hasty.get_slices([KEY] * 16) == [None] * 16
            waits.append(time.perf_counter() - start)
            await misses_at_once(hasty)
        finally:
            os.kill(redis_server.pid, signal.SIGCONT)
        await eventually(is_back(hasty), 2)
    assert statistics.median(waits) < 0.02


async def test_a_hang_is_noticed_without_a_caller(
    redis_server: LocalRedis, hasty: EmbeddingCache, eventually: Eventually
) -> None:
    """The watch finds a hung server by itself, so that most requests never wait for it."""
    os.kill(redis_server.pid, signal.SIGSTOP)
    try:
        store = hasty._store

        async def is_down() -> bool:
            return not store._pulse.up  # type: ignore[attr-defined]

        await eventually(is_down, INTERVAL_S + 2)
        await misses_at_once(hasty)
    finally:
        os.kill(redis_server.pid, signal.SIGCONT)


async def test_a_storm_meets_a_hang(redis_server: LocalRedis, hasty: EmbeddingCache) -> None:
    """Hundreds that wait for a connection when the server hangs are all told so at once."""
    os.kill(redis_server.pid, signal.SIGSTOP)
    try:
        start = time.perf_counter()
        assert await asyncio.gather(*(hasty.get_slices([KEY]) for _ in range(300))) == [[None]] * 300
        assert time.perf_counter() - start < 1
    finally:
        os.kill(redis_server.pid, signal.SIGCONT)


async def test_slow_is_not_lost(admin: Redis, hasty: EmbeddingCache, eventually: Eventually) -> None:
    """A server that is busy for a moment costs misses; nobody says that it is lost."""
    with capture_logs() as logs:
        busy = asyncio.create_task(sleep(admin, "0.1"))
        await eventually(misses(hasty), 2)
        await busy
        await eventually(is_back(hasty), 2)
    assert "cache is lost" not in [line["event"] for line in logs]


async def test_never_there(eventually: Eventually) -> None:
    """Without a server at the start everything misses; when it comes, it is used."""
    server = LocalRedis()
    cache = open_cache(server.url, ttl_s=60, max_bytes=0)
    assert await cache.get_slices([KEY]) == [None]
    await misses_at_once(cache)
    with server:
        await eventually(is_back(cache), 2)
    await cache.close()


async def test_read_only(cache: EmbeddingCache, admin: Redis, eventually: Eventually) -> None:
    """A replica refuses writes, twice a second and not once a request; reads go on."""
    await admin.replicaof("127.0.0.1", "1")
    assert not await cache.put_slices({KEY: ROWS})
    assert await cache.get_slices([KEY]) == [ROWS]
    start = time.perf_counter()
    assert not any([await cache.put_slices({KEY: ROWS}) for _ in range(100)])
    assert time.perf_counter() - start < 1
    await admin.replicaof("NO", "ONE")
    await eventually(is_back(cache), 2)


async def test_full(cache: EmbeddingCache, admin: Redis, eventually: Eventually) -> None:
    """A full server refuses writes and still serves what it has."""
    await admin.config_set("maxmemory-policy", "noeviction")
    await admin.config_set("maxmemory", "1")
    assert not await cache.put_slices({b"n" * 32: ROWS})
    assert await cache.get_slices([KEY]) == [ROWS]
    await admin.config_set("maxmemory", "0")
    await eventually(is_back(cache), 2)


async def test_flushed(cache: EmbeddingCache, admin: Redis) -> None:
    """An emptied server is plain misses, no error."""
    await admin.flushall()
    assert await cache.get_slices([KEY]) == [None]
    assert await is_back(cache)()
    assert cache.stats().errors == 0


async def test_a_lost_chunk(cache: EmbeddingCache, admin: Redis) -> None:
    """A large value of which a chunk was evicted is a miss, and its head goes too, so that it is written anew."""
    rows = MAX_VALUE_BYTES // 32 * 2
    large = Slice(rows, 8, "float32", np.ones((rows, 8), dtype=np.float32).data.cast("B"))
    assert await cache.put_slices({KEY: large})
    (chunk,) = await admin.keys("*:1")
    await admin.delete(chunk)
    assert await cache.get_slices([KEY]) == [None]
    assert await cache.has_slices([KEY]) == [False]


async def test_a_foreign_type(cache: EmbeddingCache, admin: Redis) -> None:
    """A list or a hash under our key is a miss and is deleted."""
    name = cache._name("slice", KEY)
    await admin.delete(name)
    await admin.rpush(name, "x")
    assert await cache.get_slices([KEY]) == [None]
    assert await cache.has_slices([KEY]) == [False]


async def test_a_wrong_password(admin: Redis, redis_server: LocalRedis) -> None:
    """A server that does not let us in is a server that is down."""
    await admin.config_set("requirepass", "secret")
    cache = open_cache(redis_server.url, ttl_s=60, max_bytes=0)
    assert await cache.get_slices([KEY]) == [None]
    await misses_at_once(cache)
    await cache.close()


@pytest.mark.parametrize("harm", [signal.SIGKILL, signal.SIGSTOP])
async def test_sentinels_lead_to_another_primary(tmp_path: Path, eventually: Eventually, harm: signal.Signals) -> None:
    """When the primary dies or hangs everything misses, and within seconds its replica has taken over."""
    with redis_servers.sentinel(tmp_path) as backend:
        cache = open_cache(backend.url, ttl_s=60, max_bytes=0, timeout_s=0.1)
        await eventually(is_back(cache), 5)
        primary = backend.servers[0]
        os.kill(primary.pid, harm)
        try:
            assert await cache.get_slices([KEY]) == [None]
            await eventually(is_back(cache), 8)
            assert backend.admins[1].info("replication")["role"] == "master"
            assert backend.admins[1].dbsize() > 0
        finally:
            await cache.close()
            os.kill(primary.pid, signal.SIGCONT)


async def test_a_node_of_a_cluster_restarts(tmp_path: Path, eventually: Eventually) -> None:
    """A cluster that has lost a third of its slots misses, and is used again when they are back."""
    with redis_servers.cluster(tmp_path) as backend:
        cache = open_cache(backend.url, ttl_s=60, max_bytes=0, timeout_s=0.1)
        await eventually(is_back(cache), 5)
        os.kill(backend.servers[1].pid, signal.SIGSTOP)
        try:
            await eventually(misses(cache), 5)
            await misses_at_once(cache)
        finally:
            os.kill(backend.servers[1].pid, signal.SIGCONT)
        await eventually(is_back(cache), 5)
        await cache.close()
