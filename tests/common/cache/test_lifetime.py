"""How long a value stays, and what has to go for another."""

import time

import pytest

from services.common.cache import EmbeddingCache, open_cache
from services.common.cache.memory import MemoryStore
from tests.common.cache.values import KEY, LARGE_ROWS, Find, embedding


async def test_memory_has_an_absolute_time_to_live() -> None:
    """Reading does not prolong a value's life."""
    now = 0.0
    cache = EmbeddingCache(MemoryStore(ttl_s=10, max_bytes=1 << 20, clock=lambda: now))
    await cache.put_slices({KEY: embedding()})
    now = 9.0
    assert await cache.get_slices([KEY]) == [embedding()]
    now = 10.0
    assert await cache.get_slices([KEY]) == [None]


@pytest.mark.parametrize("kind", ["valkey", "cluster"])
async def test_a_server_keeps_the_time_to_live(backend_of: Find, kind: str) -> None:
    """Every key, the chunks' too, expires when it was said to, however often it is read."""
    backend = backend_of(kind)
    backend.empty()
    cache = open_cache(backend.url, ttl_s=60, timeout_s=5, max_bytes=0)
    await cache.put_slices({KEY: embedding(LARGE_ROWS)})
    expires = backend.expiries()
    await cache.get_slices([KEY])
    assert backend.expiries() == expires
    assert len(expires) == 4
    assert all(0 < at - time.time() <= 61 for at in expires.values())
    await cache.close()


async def test_memory_stays_within_its_bytes() -> None:
    """The least recently used values go first; one that is larger than all the room is refused."""
    store = MemoryStore(ttl_s=60, max_bytes=30)
    cache = EmbeddingCache(store)
    await store.put({"a": b"x" * 10, "b": b"x" * 10, "c": b"x" * 10})
    await store.get(["a"])
    await store.put({"d": b"x" * 10})
    assert await store.contains(["a", "b", "c", "d"]) == [True, False, True, True]
    assert not await cache.put_slices({KEY: embedding()})
