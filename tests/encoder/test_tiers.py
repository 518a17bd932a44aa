"""An encoder's own memory before a shared cache: a slice ends when it was said to at first, wherever it has been."""

import numpy as np
import pytest

from services.common.cache.base import EmbeddingCache
from services.common.cache.memory import MemoryStore
from services.common.embedding import Slice
from services.encoder.tiers import Tiers

KEY = b"k" * 32
TTL_S = 60
ROWS = Slice(4, 8, "float32", np.ones((4, 8), dtype=np.float32).data.cast("B"))


class Clock:
    """Stands still until it is told; for this process and as Unix time."""

    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


class Place:
    """A cache, its store, and a way to lose what is in it."""

    def __init__(self, clock: Clock) -> None:
        self.store = MemoryStore(ttl_s=TTL_S, max_bytes=1 << 20, clock=clock)
        self.cache = EmbeddingCache(self.store, clock=clock)

    async def has_it(self) -> bool:
        """Whether the slice is held, whatever it says of itself."""
        return (await self.store.contains([self.cache.of("acme")._name("slice", KEY)]))[0]


@pytest.fixture
def clock() -> Clock:
    return Clock()


async def test_what_was_found_ends_where_it_was_found(clock: Clock) -> None:
    """Reading a slice late out of the shared cache does not start its time anew in the encoder."""
    local, shared = Place(clock), Place(clock)
    tiers = Tiers(local.cache, shared.cache).of("acme")
    await shared.cache.of("acme").put_slices({KEY: ROWS})
    clock.now += TTL_S - 1
    assert KEY in await tiers.look_up([KEY])
    assert await local.has_it()
    clock.now += 1
    assert not await local.has_it()
    assert await tiers.look_up([KEY]) == {}


async def test_what_is_given_back_ends_as_it_would_have(clock: Clock) -> None:
    """A slice that the shared cache has lost comes back into it, for the rest of its time."""
    local, shared = Place(clock), Place(clock)
    tiers = Tiers(local.cache, shared.cache).of("acme")
    assert await tiers.store(KEY, ROWS)
    clock.now += TTL_S - 1
    await shared.store.delete_prefix("")
    assert (await tiers.look_up([KEY]))[KEY].stored
    assert await shared.has_it()
    clock.now += 1
    assert not await shared.has_it()
    assert not await local.has_it()


async def test_asking_all_the_time_prolongs_nothing(clock: Clock) -> None:
    """Two encoders that hand a slice to and fro lose it when its time is up."""
    shared = Place(clock)
    encoders = [Tiers(Place(clock).cache, shared.cache).of("acme") for _ in range(2)]
    await encoders[0].store(KEY, ROWS)
    for second in range(2 * TTL_S):
        found = [bool(await tiers.look_up([KEY])) for tiers in encoders]
        assert found == [second < TTL_S] * 2
        await shared.store.delete_prefix("")
        clock.now += 1
