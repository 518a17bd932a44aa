"""One media item from its files to its embeddings: decode ahead, look up, compute what is missing, store."""

import asyncio
from typing import Final

from services.common.cache.base import Removed
from services.common.embedding import CachedManifest
from services.common.errors import DeadlineExceeded, InvalidRequest, Violation
from services.common.keys import tenant_key
from services.common.media.errors import MediaError
from services.common.media.reader import Decoding, MediaReader
from services.common.workers.files import FileBundle
from services.encoder.item import Item
from services.encoder.slices import EncodedSlice, SliceEncoder, SliceInput
from services.encoder.tiers import Tiers

# windows of slices that wait for the model while the next one is decoded
_WINDOWS_AHEAD: Final = 2


class Pipeline:
    """Encodes items. Decoding runs in `reader`'s processes, ahead of the model by a bounded number of slices."""

    def __init__(
        self,
        slices: SliceEncoder,
        tiers: Tiers,
        reader: MediaReader,
        *,
        secret: bytes,
        window_patches: int,
    ) -> None:
        self._slices = slices
        self._tiers = tiers
        self._reader = reader
        self._secret = secret
        self._window_patches = window_patches

    async def encode(self, item: Item, files: FileBundle, deadline: float) -> list[EncodedSlice]:
        """The slices of an item in order; its manifest is cached when all of them are stored.

        Raises InvalidRequest for broken media, and what a slice's own failure was.
        """
        try:
            encoded = await self._encode_windows(item, files, deadline)
        except MediaError as error:
            place = "chunk" if error.file_index is None else f"header.file_sizes[{error.file_index}]"
            violation = Violation(place, error.message, error.reason)
            raise InvalidRequest([violation], error.message, reason=error.reason) from error
        if all(part.stored for part in encoded):
            rows, keys = encoded[0].rows, tuple(part.key for part in encoded)
            manifest = CachedManifest(item.grid, rows.width, rows.dtype, keys)
            await self._tiers_of(item).store_manifest(item.media_key, manifest)
        return encoded

    async def purge(self, tenant: str, epoch: bytes) -> Removed:
        """Remove a tenant's embeddings from this process, which is told its new epoch."""
        return await self._tiers.purge_local(tenant, epoch)

    async def _encode_windows(self, item: Item, files: FileBundle, deadline: float) -> list[EncodedSlice]:
        slice_patches = item.grid[1] * item.grid[2]
        tiers = self._tiers_of(item)
        num_slices = max(1, self._window_patches // slice_patches)
        tasks: list[asyncio.Task[list[EncodedSlice]]] = []
        try:
            async with self._reader.decode(
                item.plan, files, item.file_sizes, key=item.media_key, max_slices=num_slices
            ) as decoding:
                for _ in range(0, item.grid[0], num_slices):
                    window = await self._next_window(decoding, num_slices, item, deadline)
                    tasks.append(asyncio.create_task(self._slices.encode(window, tiers, deadline)))
                    if len(tasks) > _WINDOWS_AHEAD:
                        await tasks[-1 - _WINDOWS_AHEAD]
            return [part for task in tasks for part in await task]
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _tiers_of(self, item: Item) -> Tiers:
        return self._tiers.of(item.tenant, item.epoch, item.max_cache_bytes, no_store=item.no_store)

    async def _next_window(self, decoding: Decoding, num_slices: int, item: Item, deadline: float) -> list[SliceInput]:
        """The next slices, as many as the model takes at once. Raises DeadlineExceeded instead of starting late."""
        if asyncio.get_running_loop().time() >= deadline:
            raise DeadlineExceeded
        frames, key = await decoding.take(num_slices), tenant_key(self._secret, item.tenant, item.epoch)
        num_patches = item.grid[1] * item.grid[2]
        return await asyncio.to_thread(
            lambda: [SliceInput(self._slices.key_of(slice_, key), slice_, num_patches) for slice_ in frames]
        )
