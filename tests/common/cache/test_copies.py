"""What a process keeps of the slices that it reads from a shared cache, and for how long."""

from collections.abc import Sequence

import numpy as np
import pytest

from services.common.cache.base import EmbeddingCache
from services.common.cache.copies import Copies
from services.common.cache.errors import StoreError
from services.common.cache.memory import MemoryStore
from services.common.cache.store import Removed, Value
from services.common.embedding import CachedManifest, Slice
from services.common.seal import Seal

A, B, LARGE = (letter * 32 for letter in (b"a", b"b", b"l"))
OLD, NEW = b"o" * 16, b"n" * 16
TTL_S = 60
ROOM = 1000
MANIFEST = CachedManifest((1, 2, 2), 8, "float32", (A,))


class Clock:
    """Stands still until it is told; for this process and as Unix time."""

    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


class SharedStore(MemoryStore):
    """Counts what it is asked for, and fails when told to."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(ttl_s=TTL_S, max_bytes=1 << 20, clock=clock)
        self.num_asked = 0
        self.is_down = False

    async def get(self, keys: Sequence[str]) -> list[Value | None]:
        if self.is_down:
            raise StoreError("down")
        self.num_asked += len(keys)
        return await super().get(keys)


def part(num_rows: int = 4, seed: int = 0) -> Slice:
    """Rows of width 8."""
    rows = np.random.default_rng(seed).random((num_rows, 8), dtype=np.float32)
    return Slice(num_rows, 8, "float32", rows.data.cast("B"))


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def shared(clock: Clock) -> SharedStore:
    return SharedStore(clock)


@pytest.fixture
def cache(shared: SharedStore, clock: Clock) -> EmbeddingCache:
    """Of one tenant, sealed, with room for a few copies."""
    copies = Copies(MemoryStore(ttl_s=TTL_S, max_bytes=ROOM, clock=clock), clock=clock)
    return EmbeddingCache(shared, Seal([b"secret"]), copies=copies, clock=clock).of("acme", OLD)


async def test_a_slice_is_fetched_once(cache: EmbeddingCache, shared: SharedStore) -> None:
    """What was read is here from then on; what was not there is asked for again."""
    await cache.put_slices({A: part()})
    asked_before = shared.num_asked
    assert await cache.get_slices([A, B, A]) == [part(), None, part()]
    assert await cache.get_slices([A, B]) == [part(), None]
    assert shared.num_asked - asked_before == 3


async def test_copies_stay_within_their_bytes(cache: EmbeddingCache, shared: SharedStore) -> None:
    """A slice larger than all the room passes through, and others make room for each other."""
    await cache.put_slices({LARGE: part(40), A: part(15), B: part(15, 1)})
    asked_before = shared.num_asked
    for _ in range(2):
        assert await cache.get_slices([LARGE, A, B]) == [part(40), part(15), part(15, 1)]
    assert shared.num_asked - asked_before == 5  # all of them, and again the large one and the one that made room


async def test_copies_help_in_an_outage(cache: EmbeddingCache, shared: SharedStore) -> None:
    """While the shared store is down, what is here is given and the rest is missing."""
    await cache.put_slices({A: part(), B: part(5)})
    await cache.get_slices([A])
    shared.is_down = True
    assert await cache.get_slices([A, B]) == [part(), None]
    assert cache.stats().errors == 1


async def test_what_does_not_verify_does_not_stay(cache: EmbeddingCache, shared: SharedStore) -> None:
    """A damaged value is not copied, and a damaged copy is deleted."""
    await cache.put_slices({A: part()})
    name = cache._name("slice", A)
    (value,) = await shared.get([name])
    assert value is not None
    damaged = value[:-1] + bytes([value[-1] ^ 1])
    await shared.put({name: damaged})
    assert await cache.get_slices([A]) == [None]
    await shared.put({name: value})
    assert await cache.get_slices([A]) == [part()]
    assert cache._copies is not None
    await cache._copies.keep(cache._prefix, OLD, name, damaged, TTL_S)
    assert await cache.get_slices([A]) == [None]
    await shared.put({name: value})
    assert await cache.get_slices([A]) == [part()]


async def test_only_slices_are_copied(cache: EmbeddingCache) -> None:
    """Whatever else is stored may change under its key, and is asked for each time."""
    await cache.put_manifest(A, MANIFEST)
    assert await cache.get_manifest(A) == MANIFEST
    assert await cache.purge_copies(NEW) == Removed()


async def test_a_copy_ends_with_its_value(cache: EmbeddingCache, shared: SharedStore, clock: Clock) -> None:
    """However late it was read, and though the shared store is out of reach."""
    await cache.put_slices({A: part()})
    clock.now += TTL_S - 1
    assert await cache.get_slices([A]) == [part()]
    shared.is_down = True
    clock.now += 0.5
    assert await cache.get_slices([A]) == [part()]
    clock.now += 0.5
    assert await cache.get_slices([A]) == [None]
    assert await cache.purge_copies(NEW) == Removed()


async def test_a_value_that_outstays_its_time_is_not_used(cache: EmbeddingCache, clock: Clock) -> None:
    """Whoever writes to the shared store can prolong a name there, and not the time that is sealed in the value."""
    await cache.put_slices({A: part()})
    (value,) = await cache._store.get([cache._name("slice", A)])
    assert value is not None
    clock.now += TTL_S
    await cache._store.put({cache._name("slice", A): value})
    assert await cache.get_slices([A]) == [None]


async def test_a_purge_takes_the_copies(cache: EmbeddingCache, shared: SharedStore) -> None:
    """Those of the tenant alone; and what a request that began before it reads afterwards is not kept."""
    other = cache.of("globex")
    for tenant in (cache, other):
        await tenant.put_slices({A: part()})
        await tenant.get_slices([A])
    (value,) = await shared.get([cache._name("slice", A)])
    assert value is not None
    assert await cache.purge_copies(NEW) == Removed(1, len(value))
    assert await cache.get_slices([A]) == [part()]  # the shared store has not been purged yet
    assert await cache.purge_copies(NEW) == Removed()
    assert await cache.of("acme", NEW).get_slices([A]) == [part()]
    assert (await cache.purge_copies(NEW)).num_values == 1
    assert (await other.purge_copies(NEW)).num_values == 1


async def test_a_read_that_a_purge_overtakes_leaves_nothing(clock: Clock) -> None:
    """The value is on its way while the purge goes by."""

    class Overtaken(SharedStore):
        async def get(self, keys: Sequence[str]) -> list[Value | None]:
            values = await super().get(keys)
            if any(":slice:" in key for key in keys):
                await own.purge_copies(NEW)
            return values

    copies = Copies(MemoryStore(ttl_s=TTL_S, max_bytes=ROOM, clock=clock), clock=clock)
    own = EmbeddingCache(Overtaken(clock), copies=copies, clock=clock).of("acme", OLD)
    await own.put_slices({A: part()})
    assert await own.get_slices([A]) == [part()]
    assert await own.purge_copies(NEW) == Removed()
