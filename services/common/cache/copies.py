"""Slices of a shared store that this process has read, as they are stored there, sealed or not.

A slice's key names its content, so a copy cannot be stale; it goes when the value itself does, and with a purge.
"""

import contextlib
import time
from collections.abc import Callable, Sequence

from services.common.cache.errors import StoreError
from services.common.cache.memory import MemoryStore
from services.common.cache.store import ByteStore, Removed, Value

_EPOCHS_BYTES = 1 << 20  # of 16 bytes each, of tenants that were purged within the time to live


class Copies:
    """Copies in `local`, a store of this process. A purge is remembered for as long as values live."""

    def __init__(self, local: ByteStore, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._local = local
        self._epochs = MemoryStore(ttl_s=local.ttl_s, max_bytes=_EPOCHS_BYTES, clock=clock)

    async def get(self, names: Sequence[str]) -> dict[str, Value]:
        """Those of `names` that are here."""
        values = await self._local.get(names)
        return {name: value for name, value in zip(names, values, strict=True) if value is not None}

    async def keep(self, prefix: str, epoch: bytes, name: str, value: Value, ttl_s: float) -> None:
        """Hold a value of the tenant of `prefix`, read in `epoch`, unless the tenant has been purged since."""
        if (await self._epochs.get([prefix]))[0] in (None, epoch):
            with contextlib.suppress(StoreError):  # larger than all the room
                await self._local.put({name: value}, ttl_s)

    async def delete(self, names: Sequence[str]) -> None:
        """Values that did not verify do not come back from here."""
        await self._local.delete(names)

    async def purge(self, prefix: str, epoch: bytes) -> Removed:
        """Remove a tenant's values; what is read in another epoch than `epoch` is not held from now on."""
        await self._epochs.put({prefix: epoch})
        return await self._local.delete_prefix(prefix)

    async def close(self) -> None:
        """Let go of all of them."""
        await self._local.close()
