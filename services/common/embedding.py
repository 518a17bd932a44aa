"""The form of cached values: a fixed header, raw little-endian rows, and a checksum over both.

No pickle and no numpy object arrays: a value is read by its header alone, and one that does not verify is no value.
"""

import struct
import zlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from services.common import int8_rows
from services.common.keys import KEY_BYTES

INT8 = "int8"
DTYPES = ("float32", "bfloat16", "float16", INT8)
MAX_CHUNK_BYTES = 1 << 20

_VALUE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, INT8: 1}
_EXPONENT_BITS = {"float32": 0x7F800000, "bfloat16": 0x7F80, "float16": 0x7C00}  # all set: NaN or infinity
_BLOCK_VALUES = 1 << 18  # checked at a time, so that the check's temporaries stay in the CPU's cache

_SLICE_VERSION, _MANIFEST_VERSION = 2, 1
_SLICE = struct.Struct("<4sBBxxIIQQI")  # magic, version, dtype, rows, width, end, data bytes, checksum
_MANIFEST = struct.Struct("<4sBBxxIIIIII")  # magic, version, dtype, t, h, w, width, keys, checksum
_SLICE_MAGIC, _MANIFEST_MAGIC = b"DpSl", b"DpMf"
_CHECKSUM_BYTES = 4


class CorruptValue(Exception):  # noqa: N818 -- read as "raises CorruptValue"
    """A stored value is truncated, foreign, of another version, or altered."""


class NotFinite(ValueError):  # noqa: N818
    """Rows contain NaN or infinity and must not be cached."""


@dataclass(frozen=True, slots=True)
class Slice:
    """Embedding of one temporal slice: `num_rows` x `width` values, row-major, little-endian, or as in int8_rows.py.

    `expires_ms`: when it must be gone, in milliseconds of Unix time; None until it is first stored.
    """

    num_rows: int
    width: int
    dtype: str
    data: memoryview
    expires_ms: int | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class CachedManifest:
    """What is cached of one media item. `grid` counts patches (t, h, w) before merging; one 32-byte key a slice."""

    grid: tuple[int, int, int]
    width: int
    dtype: str
    slice_keys: tuple[bytes, ...]


def pack_slice(rows: memoryview, num_rows: int, width: int, dtype: str, expires_ms: int) -> list[bytes | memoryview]:
    """Header and rows, to be written one after the other. Raises NotFinite, or ValueError when sizes disagree."""
    data = rows.cast("B")
    if len(data) != num_rows * row_bytes(width, dtype):
        raise ValueError(f"{len(data)} bytes are not {num_rows} rows of {width} {dtype} values")
    if not is_finite(data, width, dtype):
        raise NotFinite(f"{num_rows} rows contain NaN or infinity")
    shape = (DTYPES.index(dtype), num_rows, width)
    head = _SLICE.pack(_SLICE_MAGIC, _SLICE_VERSION, *shape, expires_ms, len(data), 0)
    checksum = zlib.crc32(data, zlib.crc32(head[:-_CHECKSUM_BYTES]))
    return [head[:-_CHECKSUM_BYTES] + checksum.to_bytes(_CHECKSUM_BYTES, "little"), data]


def unpack_slice(value: bytes | bytearray) -> Slice:
    """The slice in a stored value; its data is a view of `value`. Raises CorruptValue."""
    magic, version, dtype, num_rows, width, expires_ms, size, checksum = _head(_SLICE, value)
    data = memoryview(value)[_SLICE.size :]
    _check_header((magic, version), (_SLICE_MAGIC, _SLICE_VERSION), dtype)
    if size != len(data) or size != num_rows * row_bytes(width, DTYPES[dtype]):
        raise CorruptValue("length and shape disagree")
    if checksum != zlib.crc32(data, zlib.crc32(value[: _SLICE.size - _CHECKSUM_BYTES])):
        raise CorruptValue("checksum")
    return Slice(num_rows, width, DTYPES[dtype], data, expires_ms)


def pack_manifest(manifest: CachedManifest) -> bytes:
    """The stored form of a manifest."""
    fields = (DTYPES.index(manifest.dtype), *manifest.grid, manifest.width, len(manifest.slice_keys))
    head = _MANIFEST.pack(_MANIFEST_MAGIC, _MANIFEST_VERSION, *fields, 0)[:-_CHECKSUM_BYTES]
    keys = b"".join(manifest.slice_keys)
    return head + zlib.crc32(keys, zlib.crc32(head)).to_bytes(_CHECKSUM_BYTES, "little") + keys


def unpack_manifest(value: bytes | bytearray) -> CachedManifest:
    """The manifest in a stored value. Raises CorruptValue."""
    magic, version, dtype, t, h, w, width, num_keys, checksum = _head(_MANIFEST, value)
    keys = bytes(value[_MANIFEST.size :])
    _check_header((magic, version), (_MANIFEST_MAGIC, _MANIFEST_VERSION), dtype)
    if num_keys != t or len(keys) != num_keys * KEY_BYTES:
        raise CorruptValue("keys and grid disagree")
    if checksum != zlib.crc32(keys, zlib.crc32(value[: _MANIFEST.size - _CHECKSUM_BYTES])):
        raise CorruptValue("checksum")
    slice_keys = tuple(keys[i : i + KEY_BYTES] for i in range(0, len(keys), KEY_BYTES))
    return CachedManifest((t, h, w), width, DTYPES[dtype], slice_keys)


def row_bytes(width: int, dtype: str) -> int:
    """Bytes of one row of `width` values."""
    return width * _VALUE_BYTES[dtype] + (int8_rows.SCALE_BYTES if dtype == INT8 else 0)


def is_finite(data: memoryview, width: int, dtype: str) -> bool:
    """Whether no value is NaN or infinite, by the exponent's bits alone (numpy has no bfloat16)."""
    if dtype == INT8:
        return int8_rows.are_valid(data, width)
    mask = _EXPONENT_BITS[dtype]
    bits: npt.NDArray[np.unsignedinteger] = np.frombuffer(data, dtype=f"<u{_VALUE_BYTES[dtype]}")
    blocks = (bits[i : i + _BLOCK_VALUES] for i in range(0, len(bits), _BLOCK_VALUES))
    return all(int((block & mask).max()) != mask for block in blocks)


def _head(layout: struct.Struct, value: bytes | bytearray) -> tuple[Any, ...]:
    if len(value) < layout.size:
        raise CorruptValue("truncated header")
    return layout.unpack_from(value)


def _check_header(found: tuple[bytes, int], expected: tuple[bytes, int], dtype: int) -> None:
    """`found` and `expected`: magic and version."""
    if found != expected or dtype >= len(DTYPES):
        raise CorruptValue("another kind or version of value")
