"""A media item's embeddings, put together from cached slices or from chunks, and checked."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from diptych.v1 import embedding_pb2

from services.common.cache import EmbeddingCache
from services.common.embedding import DTYPES, INT8, MAX_CHUNK_BYTES, Slice, is_finite, row_bytes
from services.common.errors import InvalidRequest, Violation
from services.common.int8_rows import dequantized

TORCH_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

READ_BYTES = 16 << 20  # of slices that are read at once


@dataclass(frozen=True, slots=True)
class RowsFormat:
    """What a media item's embeddings must be: `num_slices` slices of `slice_rows` rows of `width` values."""

    num_slices: int
    slice_rows: int
    width: int
    dtype: str  # what the decoder computes in; slices and chunks are converted to it

    @property
    def num_rows(self) -> int:
        """Rows of the whole item."""
        return self.num_slices * self.slice_rows

    @property
    def slice_bytes(self) -> int:
        """Of a slice in the decoder's own type."""
        return self.slice_rows * row_bytes(self.width, self.dtype)


async def rows_from_cache(cache: EmbeddingCache, slice_keys: Sequence[bytes], form: RowsFormat) -> torch.Tensor | None:
    """Rows [num_rows, width] of an item; None if a slice is missing or is not what this prompt needs.

    Holds a few slices beside the rows; one that is alone becomes the rows without a copy.
    """
    rows = torch.empty(form.num_rows if form.num_slices > 1 else 0, form.width, dtype=TORCH_DTYPES[form.dtype])
    num_together = max(1, READ_BYTES // form.slice_bytes)
    for start in range(0, form.num_slices, num_together):
        parts = await cache.get_slices(slice_keys[start : start + num_together])
        checked = await asyncio.to_thread(_all_checked, parts, form)
        for i, part in enumerate(checked, start):
            if part is None:
                return None
            if form.num_slices == 1:
                return part
            rows[i * form.slice_rows : (i + 1) * form.slice_rows] = part
    return rows


def _all_checked(parts: Sequence[Slice | None], form: RowsFormat) -> list[torch.Tensor | None]:
    return [_checked(part, form) for part in parts]


def _checked(part: Slice | None, form: RowsFormat) -> torch.Tensor | None:
    if part is None or (part.num_rows, part.width) != (form.slice_rows, form.width):
        return None
    if not is_finite(part.data, part.width, part.dtype):
        return None
    # torch takes no memory that must not be written; a small value is bytes, and a large one is not
    return _tensor(bytearray(part.data) if part.data.readonly else part.data, part.dtype, form)


class ChunkAssembler:
    """Collects one item's chunks of values of `dtype`, which must come in order and without gaps."""

    def __init__(self, form: RowsFormat, dtype: str) -> None:
        if dtype not in DTYPES:
            raise refused("chunk.dtype", f"must be one of {', '.join(DTYPES)}", "UNSUPPORTED")
        self._form, self._dtype = form, dtype
        self._num_bytes = form.num_rows * row_bytes(form.width, dtype)
        self._data = bytearray()

    def add(self, chunk: embedding_pb2.EmbeddingChunk) -> torch.Tensor | None:
        """The item's rows [num_rows, width] once the last chunk is here. InvalidRequest if it does not fit."""
        if chunk.dtype != self._dtype:
            raise refused("chunk.dtype", f"is {chunk.dtype!r}, but the item began with {self._dtype!r}", "CONFLICT")
        if chunk.byte_offset != len(self._data):
            raise refused(
                "chunk.byte_offset", f"is {chunk.byte_offset}, but {len(self._data)} comes next", "OUT_OF_ORDER"
            )
        if not 0 < len(chunk.data) <= MAX_CHUNK_BYTES:
            raise refused("chunk.data", f"has {len(chunk.data)} bytes; 1 to {MAX_CHUNK_BYTES} fit", "OUT_OF_RANGE")
        if len(self._data) + len(chunk.data) > self._num_bytes:
            raise refused("chunk.data", f"goes beyond the item's {self._num_bytes} bytes", "SIZE_MISMATCH")
        self._data += chunk.data
        return self._rows() if len(self._data) == self._num_bytes else None

    def _rows(self) -> torch.Tensor:
        if not is_finite(memoryview(self._data), self._form.width, self._dtype):
            raise refused("chunk.data", "contains NaN or infinity", "NOT_FINITE")
        return _tensor(self._data, self._dtype, self._form)


def refused(field: str, description: str, reason: str) -> InvalidRequest:
    """An error about one field, to be raised."""
    return InvalidRequest([Violation(field, description, reason)])


def _tensor(data: bytearray | memoryview, dtype: str, form: RowsFormat) -> torch.Tensor:
    """Rows [.., width] in the decoder's own type."""
    if dtype == INT8:
        rows = torch.from_numpy(dequantized(data, form.width))
    else:
        rows = torch.frombuffer(data, dtype=TORCH_DTYPES[dtype]).view(-1, form.width)
    return rows.to(TORCH_DTYPES[form.dtype])
