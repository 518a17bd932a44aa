"""The caches of one encoder: a byte-bounded tier in this process, and behind it a shared cache (Redis), if any."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass

from services.common.cache import EmbeddingCache
from services.common.cache.lease import Patience
from services.common.cache.store import Removed
from services.common.embedding import CachedManifest, Slice
from services.common.telemetry.spans import traced


@dataclass(frozen=True, slots=True)
class Found:
    """A slice from a cache. `stored`: the shared cache holds it, by its own word."""

    rows: Slice
    stored: bool


class Tiers:
    """Looks into the process first; whatever is found or made is in both afterwards, as far as they take it."""

    def __init__(self, local: EmbeddingCache, shared: EmbeddingCache | None, *, no_store: bool = False) -> None:
        self._local, self._shared, self.no_store = local, shared, no_store

    def of(self, tenant: str, epoch: bytes = b"", max_bytes: int = 0, *, no_store: bool = False) -> "Tiers":
        """The same tiers for `tenant`, in its `epoch`. With `no_store` they are read and never written.

        The shared cache takes at most `max_bytes` of the tenant's; 0 is no limit.
        """
        shared = self._shared.of(tenant, epoch, max_bytes) if self._shared is not None else None
        return Tiers(self._local.of(tenant, epoch), shared, no_store=no_store)

    async def purge_local(self, tenant: str, epoch: bytes) -> Removed:
        """Remove what this process holds of `tenant`; what is under way in another epoch than `epoch` is not kept."""
        return await self._local.of(tenant).purge(epoch) or Removed()

    @traced("cache")
    async def look_up(self, keys: Sequence[bytes]) -> dict[bytes, Found]:
        """What is cached of `keys`."""
        wanted = list(dict.fromkeys(keys))
        here = await self._present(self._local, wanted)
        if self._shared is None:
            return _unshared(here)
        elsewhere = await self._present(self._shared, [key for key in wanted if key not in here])
        if self.no_store:
            return _unshared({**here, **elsewhere})
        if elsewhere:
            await self._local.put_slices(elsewhere)
        return {
            **await self._confirm(self._shared, here),
            **{key: Found(rows, stored=True) for key, rows in elsewhere.items()},
        }

    async def look_up_again(self, key: bytes) -> Found | None:
        """What has come into this process since the look-up; does not ask the shared cache for rows a second time."""
        here = await self._present(self._local, [key])
        found = await self._confirm(self._shared, here) if self._shared and not self.no_store else _unshared(here)
        return found.get(key)

    def turn(self, key: bytes, patience: Patience) -> AbstractAsyncContextManager[bool]:
        """Wait while another encoder makes the slice; yields whether the shared cache has it now. See lease.py."""
        return nullcontext(False) if self._shared is None or self.no_store else self._shared.turn(key, patience)

    async def store(self, key: bytes, rows: Slice) -> bool:
        """Keep a new slice, if it may be kept; whether the shared cache acknowledged it."""
        if self.no_store:
            return False
        rows = self._local.dated(rows)  # once, so that both places let go of it at the same time
        stored = self._shared is not None and await self._shared.put_slices({key: rows})
        await self._local.put_slices({key: rows})
        return stored

    async def store_manifest(self, media_key: bytes, manifest: CachedManifest) -> None:
        """To be called when all slices are stored; only gateways, through a shared cache, look for manifests."""
        if self._shared is not None:
            await self._shared.put_manifest(media_key, manifest)

    async def close(self) -> None:
        """Close both."""
        await self._local.close()
        if self._shared is not None:
            await self._shared.close()

    @property
    def name(self) -> str:
        """What others see of it: "redis" when it is shared, "memory" when it is this process's own."""
        return "memory" if self._shared is None else "redis"

    async def _present(self, cache: EmbeddingCache, keys: Sequence[bytes]) -> dict[bytes, Slice]:
        return {key: rows for key, rows in zip(keys, await cache.get_slices(keys), strict=True) if rows is not None}

    async def _confirm(self, shared: EmbeddingCache, here: Mapping[bytes, Slice]) -> dict[bytes, Found]:
        """Give back to the shared cache what it has lost."""
        held = dict(zip(here, await shared.has_slices(list(here)), strict=True))
        lost = {key: rows for key, rows in here.items() if not held[key]}
        restored = bool(lost) and await shared.put_slices(lost)
        return {key: Found(rows, held[key] or restored) for key, rows in here.items()}


def _unshared(here: Mapping[bytes, Slice]) -> dict[bytes, Found]:
    return {key: Found(rows, stored=False) for key, rows in here.items()}
