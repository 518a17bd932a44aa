"""A media item's embeddings, put together from cached slices or from chunks, and checked."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from services.common.chunk_wire import Chunk
from services.common.embedding import DTYPES, INT8, MAX_CHUNK_BYTES, Slice, is_finite, row_bytes
from services.common.errors import InvalidRequest, Violation
from services.common.int8_rows import dequantized

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

    @property
    def slice_bytes(self) -> int:
        """Of a slice in the decoder's own type."""
        return self.slice_rows * row_bytes(self.width, self.dtype)


class ItemRows:
    """One media item's rows, filled from the first to the last, by slices from the cache and by chunks.

    `rows` [num_rows, width] is what the decoder computes in; the first `num_ready` are there.
    """

    def __init__(self, form: RowsFormat) -> None:
        self.rows = torch.empty(form.num_rows, form.width, dtype=TORCH_DTYPES[form.dtype])
        self.num_ready = 0
        self._form = form
        self._dtype = ""
        self._pending = bytearray()  # the start of a row whose end is in the next chunk
        self._is_repeated = False

    @property
    def is_complete(self) -> bool:
        """Whether every row is there."""
        return self.num_ready == self._form.num_rows

    def expect_again(self) -> None:
        """A reference was lost: what was sent behind it is of no use, and what comes now may begin anew."""
        self._is_repeated = True

    def wants(self, first_slice: int, num_slices: int) -> bool:
        """Whether these slices are next. InvalidRequest if they do not fit."""
        if not 0 < num_slices <= self._form.num_slices - first_slice:
            raise refused("reference.slice_keys", f"must be 1 to {self._form.num_slices}, one a slice", "SIZE_MISMATCH")
        is_next = first_slice * self._form.slice_rows == self.num_ready and not self._pending
        if not is_next and not self._is_repeated:
            next_slice = self.num_ready // self._form.slice_rows
            raise refused("reference.first_slice", f"is {first_slice}, but {next_slice} comes next", "OUT_OF_ORDER")
        return is_next

    def add_slices(self, slices: Sequence[Slice | None]) -> bool:
        """Take the slices that come next; False, and none is taken, if one is missing or not what is needed."""
        form = self._form
        for part in slices:
            if part is None or (part.num_rows, part.width) != (form.slice_rows, form.width):
                return False
            if not is_finite(part.data, part.width, part.dtype):
                return False
        for part in slices:
            if part is not None:
                self._place(part.data, part.dtype)
        return True

    def add_chunk(self, chunk: Chunk) -> None:
        """Take a chunk, whose end may be in the middle of a row. InvalidRequest if it does not fit."""
        self._check_dtype(chunk.dtype)
        if not 0 < len(chunk.data) <= MAX_CHUNK_BYTES:
            raise refused("chunk.data", f"has {len(chunk.data)} bytes; 1 to {MAX_CHUNK_BYTES} fit", "OUT_OF_RANGE")
        size = row_bytes(self._form.width, chunk.dtype)
        position = self.num_ready * size + len(self._pending)
        if chunk.byte_offset != position and not self._is_repeated:
            raise refused("chunk.byte_offset", f"is {chunk.byte_offset}, but {position} comes next", "OUT_OF_ORDER")
        if chunk.byte_offset > position:
            return
        if chunk.byte_offset + len(chunk.data) > self._form.num_rows * size:
            whole = self._form.num_rows * size
            raise refused("chunk.data", f"goes beyond the item's {whole} bytes", "SIZE_MISMATCH")
        data = chunk.data[position - chunk.byte_offset :]
        if self._pending:
            data = memoryview(self._pending + data)
        whole_rows = len(data) // size * size
        self._pending = bytearray(data[whole_rows:])
        complete = data[:whole_rows]
        if complete and not is_finite(complete, self._form.width, chunk.dtype):
            raise refused("chunk.data", "contains NaN or infinity", "NOT_FINITE")
        self._place(complete, chunk.dtype)

    def _check_dtype(self, dtype: str) -> None:
        if dtype not in DTYPES:
            raise refused("chunk.dtype", f"must be one of {', '.join(DTYPES)}", "UNSUPPORTED")
        if self._dtype not in ("", dtype):
            raise refused("chunk.dtype", f"is {dtype!r}, but the item began with {self._dtype!r}", "CONFLICT")
        self._dtype = dtype

    def _place(self, data: memoryview, dtype: str) -> None:
        """Whole rows. A whole item at once, as an image from the cache is, stays where it has been read."""
        form, start = self._form, self.num_ready
        end = start + len(data) // row_bytes(form.width, dtype)
        if start == end:
            return
        if dtype != form.dtype:
            self.rows[start:end] = _converted(data, dtype, form)
        elif data.readonly or end - start < form.num_rows:
            place = self.rows[start:end].view(torch.uint8).numpy().reshape(-1)
            place[:] = np.frombuffer(data, np.uint8)
        else:
            self.rows = torch.frombuffer(data, dtype=TORCH_DTYPES[dtype]).view(-1, form.width)
        self.num_ready = end


def refused(field: str, description: str, reason: str) -> InvalidRequest:
    """An error about one field, to be raised."""
    return InvalidRequest([Violation(field, description, reason)])


def _converted(data: memoryview, dtype: str, form: RowsFormat) -> torch.Tensor:
    """Rows [.., width] in the decoder's own type."""
    if dtype == INT8:
        rows = torch.from_numpy(dequantized(data, form.width))
    else:  # a copy, for torch takes no memory that must not be written
        rows = torch.frombuffer(bytearray(data), dtype=TORCH_DTYPES[dtype]).view(-1, form.width)
    return rows.to(TORCH_DTYPES[form.dtype])
