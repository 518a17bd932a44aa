"""A store of cached values, measured."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from time import perf_counter

from services.common.cache.errors import StoreDown, StoreError
from services.common.cache.store import ByteStore, Removed, Value
from services.common.telemetry.metrics import CacheMetrics


class MeteredStore:
    """Does what `store` does, and counts it. `source` is "redis" for a shared store, "local" for this process's own."""

    def __init__(self, store: ByteStore, metrics: CacheMetrics) -> None:
        self._store, self._metrics = store, metrics
        self.shared, self.ttl_s = store.shared, store.ttl_s
        self._source = "redis" if store.shared else "local"

    async def get(self, keys: Sequence[str]) -> list[Value | None]:
        with self._measured("get"):
            values = await self._store.get(keys)
        num_hits = sum(value is not None for value in values)
        for result, count in (("hit", num_hits), ("miss", len(values) - num_hits)):
            if count:
                self._metrics.lookups.labels(_level(keys), self._source, result).inc(count)
        self._count_bytes("read", sum(len(value) for value in values if value is not None))
        return values

    async def contains(self, keys: Sequence[str]) -> list[bool]:
        with self._measured("contains"):
            return await self._store.contains(keys)

    async def put(self, values: Mapping[str, Value], ttl_s: float | None = None) -> None:
        with self._measured("put"):
            await self._store.put(values, ttl_s)
        self._count_bytes("written", sum(map(len, values.values())))

    async def reserve(self, prefix: str, sizes: Mapping[str, int], limit: int) -> float:
        with self._measured("reserve"):
            wait_s = await self._store.reserve(prefix, sizes, limit)
        if wait_s:
            self._count_bytes("refused", sum(sizes.values()))
        return wait_s

    async def delete(self, keys: Sequence[str]) -> None:
        with self._measured("delete"):
            await self._store.delete(keys)

    async def delete_prefix(self, prefix: str) -> Removed:
        with self._measured("purge"):
            return await self._store.delete_prefix(prefix)

    async def ping(self) -> None:
        await self._store.ping()

    async def close(self) -> None:
        await self._store.close()

    @contextmanager
    def _measured(self, operation: str) -> Iterator[None]:
        """Times what is done; what fails is an error and has no time, so that outages do not look like speed."""
        started = perf_counter()
        try:
            yield
        except StoreError as error:
            reason = "down" if isinstance(error, StoreDown) else "failed"
            self._metrics.errors.labels(self._source, operation, reason).inc()
            raise
        self._metrics.duration.labels(self._source, operation).observe(perf_counter() - started)

    def _count_bytes(self, direction: str, count: int) -> None:
        if count:
            self._metrics.bytes.labels(self._source, direction).inc(count)


def _level(keys: Sequence[str]) -> str:
    """What a key is of: manifest, slice, media, header or epoch (see base.py). One call's keys are of one level."""
    if not keys:
        return "none"
    first, second = keys[0].split(":", 3)[1:3]
    return first if first == "epoch" else second
