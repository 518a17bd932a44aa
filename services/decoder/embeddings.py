"""A media item's embeddings, put together from cached slices or from chunks, and checked."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from diptych.v1 import embedding_pb2

from services.common.embedding import DTYPE_BYTES, MAX_CHUNK_BYTES, Slice, is_finite
from services.common.errors import InvalidRequest, Violation

TORCH_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


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


def rows_from_slices(slices: Sequence[Slice | None], form: RowsFormat) -> torch.Tensor | None:
    """Rows [num_rows, width] of an item; None if a slice is missing or is not what this prompt needs."""
    if len(slices) != form.num_slices:
        return None
    parts = []
    for part in slices:
        if part is None or (part.num_rows, part.width) != (form.slice_rows, form.width):
            return None
        if not is_finite(part.data, part.dtype):
            return None
        parts.append(_tensor(bytearray(part.data), part.dtype, form.width).to(TORCH_DTYPES[form.dtype]))
    return torch.cat(parts)


class ChunkAssembler:
    """Collects one item's chunks of values of `dtype`, which must come in order and without gaps."""

    def __init__(self, form: RowsFormat, dtype: str) -> None:
        if dtype not in DTYPE_BYTES:
            raise refused("chunk.dtype", f"must be one of {', '.join(DTYPE_BYTES)}", "UNSUPPORTED")
        self._form, self._dtype = form, dtype
        self._num_bytes = form.num_rows * form.width * DTYPE_BYTES[dtype]
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
        if not is_finite(memoryview(self._data), self._dtype):
            raise refused("chunk.data", "contains NaN or infinity", "NOT_FINITE")
        return _tensor(self._data, self._dtype, self._form.width).to(TORCH_DTYPES[self._form.dtype])


def refused(field: str, description: str, reason: str) -> InvalidRequest:
    """An error about one field, to be raised."""
    return InvalidRequest([Violation(field, description, reason)])


def _tensor(data: bytearray, dtype: str, width: int) -> torch.Tensor:
    return torch.frombuffer(data, dtype=TORCH_DTYPES[dtype]).view(-1, width)
