"""Brings a request's embeddings to the engine as they come: from the shared cache, or in chunks from the caller.

Rows are handed on as soon as they are there, so that a prompt is computed as far as they reach.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence

import torch
from diptych.v1 import decoder_service_pb2

from services.common.cache import EmbeddingCache
from services.common.chunk_wire import Chunk
from services.common.embedding import Slice
from services.decoder.embeddings import ItemRows, RowsFormat, refused

READ_BYTES = 16 << 20  # of slices that are read at once
THREAD_BYTES = 1 << 20  # from here on, checking and placing them leaves the event loop


class EmbeddingIntake:
    """One request's items that are still to come.

    `provide` takes an item's index, its rows, and how many of them are there; `missing` an index; `progress` is called
    whenever something has come.
    """

    def __init__(
        self,
        forms: list[RowsFormat],
        cache: EmbeddingCache,
        provide: Callable[[int, torch.Tensor, int], None],
        missing: Callable[[int], None],
        progress: Callable[[], None],
    ) -> None:
        self._forms, self._cache = forms, cache
        self._provide, self._missing, self._progress = provide, missing, progress
        self._open = set(range(len(forms)))
        self._items: dict[int, ItemRows] = {}

    async def read_named(self, slice_keys: Sequence[Sequence[bytes]]) -> None:
        """Read the items of which the prompt names all slices; of others there are no keys."""
        for index, keys in enumerate(slice_keys):
            if keys:
                await self._read(index, 0, keys)

    async def run(self, messages: AsyncIterator[decoder_service_pb2.GenerateRequest | Chunk]) -> None:
        """Read messages until the caller closes its side. InvalidRequest if one does not fit or an item is left out."""
        async for message in messages:
            self._progress()
            if isinstance(message, Chunk):
                self._collect(message)
            elif message.HasField("reference"):
                reference = message.reference
                index = self._check(reference.media_index, "reference")
                await self._read(index, reference.first_slice, reference.slice_keys)
            elif message.HasField("prompt"):
                raise refused("prompt", "was sent already", "CONFLICT")
            else:
                raise refused("message", "is not set", "REQUIRED")
        if self._open:
            raise refused(f"prompt.media[{min(self._open)}]", "its embeddings were not sent", "EMBEDDINGS_MISSING")

    async def _read(self, index: int, first_slice: int, keys: Sequence[bytes]) -> None:
        item = self._item(index)
        if not item.wants(first_slice, len(keys)):
            return
        num_together = max(1, READ_BYTES // self._forms[index].slice_bytes)
        for start in range(0, len(keys), num_together):
            slices = await self._cache.get_slices(keys[start : start + num_together])
            if not await _added(slices, item):
                item.expect_again()
                self._missing(index)
                return
            self._hand_on(index, item)

    def _collect(self, chunk: Chunk) -> None:
        index = self._check(chunk.media_index, "chunk")
        item = self._item(index)
        item.add_chunk(chunk)
        self._hand_on(index, item)

    def _item(self, index: int) -> ItemRows:
        if index not in self._items:
            self._items[index] = ItemRows(self._forms[index])
        return self._items[index]

    def _hand_on(self, index: int, item: ItemRows) -> None:
        self._progress()
        self._provide(index, item.rows, item.num_ready)
        if item.is_complete:
            self._open.discard(index)
            del self._items[index]

    def _check(self, index: int, field: str) -> int:
        if index >= len(self._forms):
            raise refused(f"{field}.media_index", f"is {index}, but there are {len(self._forms)} items", "OUT_OF_RANGE")
        if index not in self._open:
            raise refused(f"{field}.media_index", f"item {index} is complete already", "CONFLICT")
        return index


async def _added(slices: Sequence[Slice | None], item: ItemRows) -> bool:
    """Whether they are what was needed, and so are now the item's."""
    if sum(len(part.data) for part in slices if part is not None) >= THREAD_BYTES:
        return await asyncio.to_thread(item.add_slices, slices)
    return item.add_slices(slices)
