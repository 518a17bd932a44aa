"""Brings a request's embeddings to the engine as they come: from the shared cache, or in chunks from the caller."""

from collections.abc import AsyncIterator, Callable

import torch
from diptych.v1 import decoder_service_pb2, embedding_pb2

from services.common.cache import EmbeddingCache
from services.decoder.embeddings import ChunkAssembler, RowsFormat, refused, rows_from_cache


class EmbeddingIntake:
    """One request's items that are still to come. `provide` takes an item's index and rows, `missing` an index."""

    def __init__(
        self,
        forms: list[RowsFormat],
        cache: EmbeddingCache,
        provide: Callable[[int, torch.Tensor], None],
        missing: Callable[[int], None],
    ) -> None:
        self._forms, self._cache = forms, cache
        self._provide, self._missing = provide, missing
        self._open = set(range(len(forms)))
        self._assemblers: dict[int, ChunkAssembler] = {}

    async def run(self, messages: AsyncIterator[decoder_service_pb2.GenerateRequest]) -> None:
        """Read messages until the caller closes its side. InvalidRequest if one does not fit or an item is left out."""
        async for message in messages:
            match message.WhichOneof("message"):
                case "reference":
                    await self._resolve(message.reference)
                case "chunk":
                    self._collect(message.chunk)
                case "prompt":
                    raise refused("prompt", "was sent already", "CONFLICT")
                case None:
                    raise refused("message", "is not set", "REQUIRED")
        if self._open:
            raise refused(f"prompt.media[{min(self._open)}]", "its embeddings were not sent", "EMBEDDINGS_MISSING")

    async def _resolve(self, reference: embedding_pb2.EmbeddingReference) -> None:
        index = self._check(reference.media_index, "reference")
        form = self._forms[index]
        if len(reference.slice_keys) != form.num_slices:
            raise refused("reference.slice_keys", f"must be {form.num_slices}, one a slice", "SIZE_MISMATCH")
        rows = await rows_from_cache(self._cache, reference.slice_keys, form)
        if rows is None:
            self._missing(index)
        else:
            self._finish(index, rows)

    def _collect(self, chunk: embedding_pb2.EmbeddingChunk) -> None:
        index = self._check(chunk.media_index, "chunk")
        if index not in self._assemblers:
            self._assemblers[index] = ChunkAssembler(self._forms[index], chunk.dtype)
        rows = self._assemblers[index].add(chunk)
        if rows is not None:
            del self._assemblers[index]
            self._finish(index, rows)

    def _finish(self, index: int, rows: torch.Tensor) -> None:
        self._open.discard(index)
        self._provide(index, rows)

    def _check(self, index: int, field: str) -> int:
        if index >= len(self._forms):
            raise refused(f"{field}.media_index", f"is {index}, but there are {len(self._forms)} items", "OUT_OF_RANGE")
        if index not in self._open:
            raise refused(f"{field}.media_index", f"item {index} is complete already", "CONFLICT")
        return index
