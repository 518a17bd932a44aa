"""A tenant's own: its media, its purge, its quota."""

import asyncio
import time

import pytest

from services.common.cache import EmbeddingCache
from services.common.cache.memory import MemoryStore
from services.common.cache.redis import RedisStore
from services.common.cache.store import ByteStore, Removed
from services.common.errors import QuotaExceeded
from services.common.keys import digest_of, tenant_key
from tests.common.cache.values import KEY, LARGE_ROWS, MANIFEST, OTHER, TENANT, Find, embedding


async def test_media_is_kept_by_digest_and_tenant(cache: EmbeddingCache) -> None:
    """Uploaded media come back to the tenant that sent them and to no other, whatever their size and content."""
    for data in (b"picture", b"", b"DpCh" + b"x" * 12, bytes(9 << 20)):
        digest = digest_of(data)
        assert await cache.put_media(TENANT, digest, data)
        same = await cache.get_media(TENANT, digest) == data
        assert same
        assert await cache.get_media(tenant_key(b"", "other"), digest) is None


async def test_a_purge_takes_all_of_one_tenant(cache: EmbeddingCache, store: ByteStore) -> None:
    """Values of every kind and size go and are counted, of that tenant alone; nothing is left but the new epoch."""
    other = cache.of("globex")
    for owner in (cache, other):
        assert await owner.put_slices({KEY: embedding(), OTHER: embedding(LARGE_ROWS)})
        assert await owner.put_manifest(KEY, MANIFEST)
        assert await owner.put_media(TENANT, digest_of(b"a picture"), b"a picture")
    removed = await cache.purge(b"e" * 16)
    assert removed is not None
    assert removed.num_values == (
        4 if isinstance(store, MemoryStore) else 7
    )  # there, a large slice is a head and three
    assert removed.num_bytes > LARGE_ROWS * 8 * 4
    assert await cache.has_slices([KEY, OTHER]) == [False, False]
    assert (await cache.get_manifest(KEY), await cache.get_media(TENANT, digest_of(b"a picture"))) == (None, None)
    assert await other.has_slices([KEY, OTHER]) == [True, True]
    assert (await cache.epoch(), await other.epoch()) == (b"e" * 16, b"")
    assert await cache.purge(b"f" * 16) == Removed(0, 0)


async def test_what_began_before_a_purge_does_not_stay(cache: EmbeddingCache, store: ByteStore) -> None:
    """A writer that knows an older epoch is told that nothing is stored, and its values go; a later one's stay."""
    late = cache.of("acme", b"d" * 16)
    await cache.purge(b"e" * 16)
    for writer in (cache.of("acme"), late):
        assert not await writer.put_slices({KEY: embedding(LARGE_ROWS)})
        assert await writer.has_slices([KEY]) == [False]
    assert await store.delete_prefix(cache._prefix) == Removed(0, 0)
    after = cache.of("acme", b"e" * 16)
    assert await after.put_slices({KEY: embedding()})
    assert await after.get_slices([KEY]) == [embedding()]


async def test_a_tenant_holds_what_it_may(cache: EmbeddingCache, store: ByteStore) -> None:
    """What is beyond its quota is not written, nor is another tenant's kept out; what is there may be written again."""
    small = cache.of("acme", max_bytes=1000)
    media = {digest_of(data): data for data in (b"a" * 600, b"b" * 600)}
    first, second = media
    for _ in range(3):
        assert await small.put_media(TENANT, first, media[first])
    with pytest.raises(QuotaExceeded) as refused:
        await small.put_media(TENANT, second, media[second])
    assert 0 < refused.value.retry_after_s <= 61
    assert not await small.put_slices({KEY: embedding(20)})
    assert (await small.get_media(TENANT, second), await small.has_slices([KEY])) == (None, [False])
    assert await small.put_slices({KEY: embedding(6)})  # 192 bytes and what seals and describes them
    assert await cache.of("globex", max_bytes=1000).put_media(TENANT, second, media[second])
    assert (await store.delete_prefix(cache.of("globex")._prefix)).num_values == 1


async def test_a_purge_makes_room(cache: EmbeddingCache) -> None:
    """What a purge has taken away is not counted any more."""
    data = b"a" * 600
    assert await cache.of("acme", max_bytes=1000).put_media(TENANT, digest_of(data), data)
    await cache.of("acme").purge(b"e" * 16)
    assert await cache.of("acme", b"e" * 16, 1000).put_media(TENANT, digest_of(b"b" * 600), b"b" * 600)


async def test_memory_counts_what_has_not_ended() -> None:
    """A value that has ended makes room, and until then the refusal says how long that takes."""
    now = 0.0
    cache = EmbeddingCache(MemoryStore(ttl_s=10, max_bytes=1 << 20, clock=lambda: now)).of("acme", max_bytes=1000)
    assert await cache.put_media(TENANT, digest_of(b"a" * 600), b"a" * 600)
    now = 4.0
    with pytest.raises(QuotaExceeded) as refused:
        await cache.put_media(TENANT, digest_of(b"b" * 600), b"b" * 600)
    assert refused.value.retry_after_s == 6.0
    now = 10.0
    assert await cache.put_media(TENANT, digest_of(b"b" * 600), b"b" * 600)


@pytest.mark.parametrize("kind", ["valkey", "cluster"])
async def test_a_server_counts_what_has_not_ended(backend_of: Find, kind: str) -> None:
    """Counts end with their values and leave no key behind, whether they end one by one or all together."""
    backend = backend_of(kind)
    backend.empty()
    store = RedisStore(backend.url, ttl_s=1, timeout_s=5)
    assert await store.reserve("diptych:a:", {"diptych:a:media:1": 600}, 1000) == 0
    assert 1 < await store.reserve("diptych:a:", {"diptych:a:media:2": 600}, 1000) <= 2
    await asyncio.sleep(1)  # so that the second outlives the first
    assert await store.reserve("diptych:a:", {"diptych:a:media:3": 400}, 1000) == 0
    started = time.monotonic()
    while await store.reserve("diptych:a:", {"diptych:a:media:2": 600}, 1000):
        assert time.monotonic() - started < 5
        await asyncio.sleep(0.05)
    assert await store.reserve("diptych:a:", {"diptych:a:media:1": 1}, 1000) > 0
    assert len(backend.expiries()) == 2
    assert all(0 < at - time.time() <= 3 for at in backend.expiries().values())
    await store.close()
