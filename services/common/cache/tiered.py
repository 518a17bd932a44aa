"""A byte-bounded store in this process in front of a shared one. It holds values as they are stored, sealed or not."""

import contextlib
from collections.abc import Mapping, Sequence

from services.common.cache.base import ByteStore, Removed, Value
from services.common.cache.errors import StoreError

LOCAL_TTL_S = 60.0  # a copy does not know how old the value is: it may outlive it by so much


class TieredStore:
    """Reads from `local` first and keeps there the slices that it has found in `shared`.

    A slice's key names its content, so that a copy cannot be stale.
    """

    shared = True

    def __init__(self, local: ByteStore, shared: ByteStore) -> None:
        self._local, self._shared = local, shared

    async def get(self, keys: Sequence[str]) -> list[Value | None]:
        found = dict(zip(keys, await self._local.get(keys), strict=True))
        missing = [key for key, value in found.items() if value is None]
        try:
            fetched = dict(zip(missing, await self._shared.get(missing), strict=True)) if missing else {}
        except StoreError:
            if len(missing) == len(found):
                raise
            fetched = {}  # half of what was wanted is better than nothing
        for key, value in fetched.items():
            found[key] = value
            if value is not None and ":slice:" in key:
                with contextlib.suppress(StoreError):  # larger than the whole tier
                    await self._local.put({key: value})
        return [found[key] for key in keys]

    async def contains(self, keys: Sequence[str]) -> list[bool]:
        return await self._shared.contains(keys)

    async def put(self, values: Mapping[str, Value]) -> None:
        await self._shared.put(values)

    async def reserve(self, prefix: str, sizes: Mapping[str, int], limit: int) -> float:
        return await self._shared.reserve(prefix, sizes, limit)

    async def delete(self, keys: Sequence[str]) -> None:
        await self._local.delete(keys)
        await self._shared.delete(keys)

    async def delete_prefix(self, prefix: str) -> Removed:
        return await self._local.delete_prefix(prefix) + await self._shared.delete_prefix(prefix)

    async def ping(self) -> None:
        await self._shared.ping()

    async def close(self) -> None:
        await self._local.close()
        await self._shared.close()
