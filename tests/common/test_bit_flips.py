"""Damage to cached values, a bit at a time."""

import random
from collections.abc import Mapping

import numpy as np
import pytest

from services.common.cache.base import EmbeddingCache
from services.common.cache.memory import MemoryStore
from services.common.cache.store import Value
from services.common.embedding import CachedManifest, Slice
from services.common.seal import Seal

KEY = b"k" * 32
MANIFEST = CachedManifest((2, 4, 6), 8, "float32", (b"a" * 32, b"b" * 32))


class NamingStore(MemoryStore):
    """Tells under which names values were put."""

    names: set[str]

    async def put(self, values: Mapping[str, Value], ttl_s: float | None = None) -> None:
        self.names = {*getattr(self, "names", ()), *values}
        await super().put(values, ttl_s)


@pytest.mark.parametrize("num_flips", [1000, pytest.param(25_000, marks=pytest.mark.soak)])
@pytest.mark.parametrize("seal", [None, Seal([b"secret"])], ids=["plain", "sealed"])
@pytest.mark.parametrize("name", ["slice", "manifest"])
async def test_every_flipped_bit_is_found(name: str, seal: Seal | None, num_flips: int) -> None:
    """Whichever bit of a value is wrong, in its header or its rows: it is a miss, is deleted, and never comes back."""
    store, rng = NamingStore(ttl_s=60, max_bytes=1 << 20), random.Random(0)  # noqa: S311 -- repeatable
    cache = EmbeddingCache(store, seal).of("acme")
    rows = np.random.default_rng(0).random((16, 8), dtype=np.float32)
    await cache.put_slices({KEY: Slice(16, 8, "float32", rows.data.cast("B"))})
    await cache.put_manifest(KEY, MANIFEST)
    stored_as = next(key for key in store.names if f":{name}:" in key)
    (value,) = await store.get([stored_as])
    assert value is not None
    for _ in range(num_flips):
        damaged, bit = bytearray(value), rng.randrange(8 * len(value))
        damaged[bit // 8] ^= 1 << bit % 8
        await store.put({stored_as: damaged})
        found = await cache.get_manifest(KEY) if name == "manifest" else (await cache.get_slices([KEY]))[0]
        assert found is None, f"bit {bit}"
        assert await store.contains([stored_as]) == [False]
    assert cache.stats().corrupt == num_flips
