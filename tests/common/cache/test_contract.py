"""The contract of the embedding cache, held by every backend."""

import asyncio

import numpy as np
import pytest

from services.common.cache import EmbeddingCache
from services.common.cache.store import ByteStore
from services.common.embedding import Slice
from tests.common.cache.values import KEY, LARGE_ROWS, MANIFEST, OTHER, embedding


async def test_what_is_put_is_got(cache: EmbeddingCache) -> None:
    """Slices and manifests come back bit for bit; what was not put is None."""
    assert await cache.put_slices({KEY: embedding()})
    assert await cache.put_manifest(b"m" * 32, MANIFEST)
    assert await cache.get_slices([OTHER, KEY]) == [None, embedding()]
    assert await cache.has_slices([KEY, OTHER]) == [True, False]
    assert await cache.get_manifest(b"m" * 32) == MANIFEST
    assert await cache.get_manifest(KEY) is None


async def test_nothing_is_asked_for_nothing(cache: EmbeddingCache) -> None:
    """Empty lists are answered without a word to the store."""
    assert (await cache.get_slices([]), await cache.has_slices([]), await cache.put_slices({})) == ([], [], True)


async def test_large_slices_come_back(cache: EmbeddingCache) -> None:
    """A slice of many megabytes is one slice, beside small ones, however it is stored."""
    large = embedding(LARGE_ROWS)
    assert await cache.put_slices({KEY: large, OTHER: embedding()})
    first, small, again = await cache.get_slices([KEY, OTHER, KEY])
    same = first == again == large  # pytest would take minutes to say where ten million bytes differ
    assert same
    assert small == embedding()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
async def test_nan_and_infinity_are_never_cached(cache: EmbeddingCache, bad: float) -> None:
    """One value that is not finite keeps the whole call from being written."""
    rows = np.full((6, 8), bad, dtype=np.float32)
    assert not await cache.put_slices({OTHER: embedding(), KEY: Slice(6, 8, "float32", rows.data.cast("B"))})
    assert await cache.has_slices([KEY, OTHER]) == [False, False]


@pytest.mark.parametrize("damage", ["cut", "flipped", "foreign", "empty"])
async def test_a_damaged_value_is_a_miss_and_is_deleted(store: ByteStore, cache: EmbeddingCache, damage: str) -> None:
    """A value that does not verify is never used and does not stay."""
    await cache.put_slices({KEY: embedding()})
    name = cache._name("slice", KEY)
    (value,) = await store.get([name])
    assert value is not None
    damaged = {"cut": value[:-1], "flipped": value[:-1] + bytes([value[-1] ^ 1]), "foreign": b"x" * 99, "empty": b""}
    await store.put({name: damaged[damage]})
    assert await cache.get_slices([KEY]) == [None]
    assert await cache.has_slices([KEY]) == [False]
    assert cache.stats().corrupt == 1


async def test_counts(cache: EmbeddingCache) -> None:
    """Hits, misses and bytes are counted."""
    await cache.put_slices({KEY: embedding()})
    await cache.get_slices([KEY, OTHER])
    stats = cache.stats()
    assert (stats.hits, stats.misses, stats.errors, stats.corrupt) == (1, 1, 0, 0)
    assert stats.bytes_read == stats.bytes_written > 6 * 8 * 4


async def test_many_callers_at_once(cache: EmbeddingCache) -> None:
    """Hundreds of look-ups together are all answered."""
    await cache.put_slices({KEY: embedding()})
    assert await asyncio.gather(*(cache.get_slices([KEY]) for _ in range(300))) == [[embedding()]] * 300
