"""One media item from its files to its embeddings: decode ahead, look up, compute what is missing, store."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Final

from services.common.cache.store import Removed
from services.common.embedding import CachedManifest
from services.common.errors import DeadlineExceeded, DiptychError, InvalidRequest, Violation
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

    async def encode(self, item: Item, files: FileBundle, deadline: float) -> AsyncGenerator[list[EncodedSlice]]:
        """An item's slices in order, some at a time; its manifest is cached before the last when all are stored.

        Nothing of what has been handed out is kept here. Raises InvalidRequest for broken media, and what a slice's own
        failure was.
        """
        keys: list[bytes] = []
        are_stored = True
        async with aclosing(self._windows(item, files, deadline)) as windows:
            async for window in windows:
                keys += [part.key for part in window]
                are_stored = are_stored and all(part.stored for part in window)
                if len(keys) == item.grid[0] and are_stored:
                    rows = window[0].rows
                    manifest = CachedManifest(item.grid, rows.width, rows.dtype, tuple(keys))
                    await self._tiers_of(item).store_manifest(item.media_key, manifest)
                yield window
        if len(keys) != item.grid[0]:
            raise DiptychError

    async def purge(self, tenant: str, epoch: bytes) -> Removed:
        """Remove a tenant's embeddings from this process, which is told its new epoch."""
        return await self._tiers.purge_local(tenant, epoch)

    async def _windows(self, item: Item, files: FileBundle, deadline: float) -> AsyncGenerator[list[EncodedSlice]]:
        """At most `_WINDOWS_AHEAD` windows are decoded before they are asked for."""
        tiers = self._tiers_of(item)
        tasks: deque[asyncio.Task[list[EncodedSlice]]] = deque()
        try:
            async with aclosing(self._decoded(item, files, deadline)) as windows:
                async for window in windows:
                    tasks.append(asyncio.create_task(self._slices.encode(window, tiers, deadline)))
                    del window  # its pixels go with its task
                    if len(tasks) > _WINDOWS_AHEAD:
                        yield await tasks[0]
                        tasks.popleft()
            while tasks:
                yield await tasks[0]
                tasks.popleft()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _decoded(self, item: Item, files: FileBundle, deadline: float) -> AsyncGenerator[list[SliceInput]]:
        """As many slices at a time as the model takes at once."""
        num_slices = max(1, self._window_patches // (item.grid[1] * item.grid[2]))
        try:
            async with self._reader.decode(
                item.plan, files, item.file_sizes, key=item.media_key, max_slices=num_slices
            ) as decoding:
                for _ in range(0, item.grid[0], num_slices):
                    yield await self._next_window(decoding, num_slices, item, deadline)
        except MediaError as error:
            place = "chunk" if error.file_index is None else f"header.file_sizes[{error.file_index}]"
            violation = Violation(place, error.message, error.reason)
            raise InvalidRequest([violation], error.message, reason=error.reason) from error

    def _tiers_of(self, item: Item) -> Tiers:
        return self._tiers.of(item.tenant, item.epoch, item.max_cache_bytes, no_store=item.no_store)

    async def _next_window(self, decoding: Decoding, num_slices: int, item: Item, deadline: float) -> list[SliceInput]:
        """The next slices, as many as the model takes at once. Raises DeadlineExceeded instead of starting late."""
        if asyncio.get_running_loop().time() >= deadline:
            raise DeadlineExceeded
        key, num_patches = tenant_key(self._secret, item.tenant, item.epoch), item.grid[1] * item.grid[2]
        return await decoding.take(
            num_slices, lambda frames: SliceInput(self._slices.key_of(frames, key), frames, num_patches)
        )
