"""A store in this process alone: least recently used values go first when it is full, all go when their time is up."""

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence

from services.common.cache.errors import StoreError
from services.common.cache.store import Removed, Value


class MemoryStore:
    """At most `max_bytes` of values, each for `ttl_s` seconds by `clock` at most."""

    shared = False

    def __init__(self, *, ttl_s: float, max_bytes: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.ttl_s, self._max_bytes, self._clock = ttl_s, max_bytes, clock
        self._values: OrderedDict[str, tuple[float, Value]] = OrderedDict()  # least recently used first
        self._num_bytes = 0

    async def get(self, keys: Sequence[str]) -> list[Value | None]:
        return [self._read(key) for key in keys]

    async def contains(self, keys: Sequence[str]) -> list[bool]:
        return [self._read(key) is not None for key in keys]

    async def put(self, values: Mapping[str, Value], ttl_s: float | None = None) -> None:
        if sum(len(value) for value in values.values()) > self._max_bytes:
            raise StoreError("larger than the whole store")
        expires = self._clock() + (self.ttl_s if ttl_s is None else ttl_s)
        for key, value in values.items():
            self._remove(key)
            self._values[key] = (expires, value)
            self._num_bytes += len(value)
        while self._num_bytes > self._max_bytes:
            self._remove(next(iter(self._values)))

    async def reserve(self, prefix: str, sizes: Mapping[str, int], limit: int) -> float:
        now, names = self._clock(), [name for name in list(self._values) if name.startswith(prefix)]
        held = {name: self._values[name] for name in names if self._values[name][0] > now}
        others = sum(len(value) for name, (_, value) in held.items() if name not in sizes)
        if others + sum(sizes.values()) <= limit:
            return 0.0
        return min((expires for expires, _ in held.values()), default=now + self.ttl_s) - now

    async def delete(self, keys: Sequence[str]) -> None:
        for key in keys:
            self._remove(key)

    async def delete_prefix(self, prefix: str) -> Removed:
        """Remove every value whose key begins so."""
        keys = [key for key in self._values if key.startswith(prefix)]
        removed = Removed(len(keys), sum(len(self._values[key][1]) for key in keys))
        await self.delete(keys)
        return removed

    async def ping(self) -> None:
        """A process always reaches its own memory."""

    async def close(self) -> None:
        self._values.clear()
        self._num_bytes = 0

    def _read(self, key: str) -> Value | None:
        expires, value = self._values.get(key, (0.0, None))
        if value is None:
            return None
        if expires <= self._clock():
            self._remove(key)
            return None
        self._values.move_to_end(key)
        return value

    def _remove(self, key: str) -> None:
        if entry := self._values.pop(key, None):
            self._num_bytes -= len(entry[1])
