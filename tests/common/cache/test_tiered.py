"""A tier of this process in front of a shared store."""

import pytest

from services.common.cache.errors import StoreError
from services.common.cache.memory import MemoryStore
from services.common.cache.tiered import TieredStore

A, B, LARGE = (f"diptych:slice:{name}" for name in ("a", "b", "large"))


class SharedStore(MemoryStore):
    """Counts what it is asked for, and fails when told to."""

    def __init__(self) -> None:
        super().__init__(ttl_s=60, max_bytes=1 << 20)
        self.asked: list[str] = []
        self.is_down = False

    async def get(self, keys):  # type: ignore[no-untyped-def]
        if self.is_down:
            raise StoreError("down")
        self.asked += keys
        return await super().get(keys)


@pytest.fixture
def shared() -> SharedStore:
    return SharedStore()


@pytest.fixture
def tiered(shared: SharedStore) -> TieredStore:
    """With room for 10 bytes."""
    return TieredStore(MemoryStore(ttl_s=60, max_bytes=10), shared)


async def test_a_value_is_fetched_once(tiered: TieredStore, shared: SharedStore) -> None:
    """What was read is here from then on; what was not there is asked for again."""
    await shared.put({A: b"1"})
    assert await tiered.get([A, B, A]) == [b"1", None, b"1"]
    assert await tiered.get([A, B]) == [b"1", None]
    assert shared.asked == [A, B, B]


async def test_the_tier_stays_within_its_bytes(tiered: TieredStore, shared: SharedStore) -> None:
    """A value larger than the tier passes through, and others make room for each other."""
    await shared.put({LARGE: b"x" * 11, A: b"x" * 6, B: b"x" * 6})
    for _ in range(2):
        assert [len(value or b"") for value in await tiered.get([LARGE, A, B])] == [11, 6, 6]
    assert shared.asked == [LARGE, A, B, LARGE, A]


async def test_copies_outlive_an_outage(tiered: TieredStore, shared: SharedStore) -> None:
    """While the shared store is down, what is here is given and the rest is missing; nothing at all is an error."""
    await shared.put({A: b"1", B: b"2"})
    await tiered.get([A])
    shared.is_down = True
    assert await tiered.get([A, B]) == [b"1", None]
    with pytest.raises(StoreError):
        await tiered.get([B])


async def test_what_is_deleted_is_gone_from_both(tiered: TieredStore, shared: SharedStore) -> None:
    """A value that did not verify does not come back from the tier."""
    await shared.put({A: b"1"})
    await tiered.get([A])
    await tiered.delete([A])
    assert await tiered.get([A]) == [None]


async def test_only_slices_stay(tiered: TieredStore, shared: SharedStore) -> None:
    """Whatever else is stored may change under its key, and is asked for each time."""
    await shared.put({"diptych:manifest:a": b"1"})
    assert await tiered.get(["diptych:manifest:a"]) == [b"1"]
    await shared.put({"diptych:manifest:a": b"2"})
    assert await tiered.get(["diptych:manifest:a"]) == [b"2"]
