"""The stored form of embeddings."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.embedding import (
    INT8,
    CachedManifest,
    CorruptValue,
    NotFinite,
    pack_manifest,
    pack_slice,
    unpack_manifest,
    unpack_slice,
)
from services.common.int8_rows import quantized

MANIFEST = CachedManifest((2, 4, 6), 64, "bfloat16", (b"a" * 32, b"b" * 32))
BIT_PATTERNS = {"float32": "<u4", "float16": "<u2", "bfloat16": "<u2"}
NOT_FINITE = {"float32": (0x7FC00000, 0xFF800000), "float16": (0x7E00, 0xFC00), "bfloat16": (0x7FC0, 0xFF80)}
END = 1_800_000_000_000
LARGEST = {"float32": 0x7F7FFFFF, "float16": 0x7BFF, "bfloat16": 0xFF7F}


def rows_of(dtype: str, pattern: int = 0, num_values: int = 24) -> memoryview:
    """Values with one bit pattern in the middle."""
    values = np.arange(num_values, dtype=BIT_PATTERNS[dtype])
    values[num_values // 2] = pattern
    return memoryview(values.tobytes())


@pytest.mark.parametrize("dtype", BIT_PATTERNS)
def test_a_slice_comes_back_bit_for_bit(dtype: str) -> None:
    """What is read is what was written, in every dtype, up to the largest finite values."""
    rows = rows_of(dtype, LARGEST[dtype])
    back = unpack_slice(b"".join(pack_slice(rows, 4, 6, dtype, END)))
    assert (back.num_rows, back.width, back.dtype, bytes(back.data)) == (4, 6, dtype, bytes(rows))
    assert back.expires_ms == END


@pytest.mark.parametrize("dtype", BIT_PATTERNS)
@pytest.mark.parametrize("which", [0, 1], ids=["nan", "infinity"])
@pytest.mark.parametrize("num_values", [24, 600_000])
def test_nan_and_infinity_are_not_packed(dtype: str, which: int, num_values: int) -> None:
    """One bad value among many is found in every dtype."""
    with pytest.raises(NotFinite):
        pack_slice(rows_of(dtype, NOT_FINITE[dtype][which], num_values), num_values // 6, 6, dtype, END)


def test_a_wrong_shape_is_not_packed() -> None:
    """Bytes that are not rows x width are refused."""
    with pytest.raises(ValueError, match="rows"):
        pack_slice(rows_of("float32"), 5, 6, "float32", END)
    with pytest.raises(ValueError, match="rows"):
        pack_slice(memoryview(bytes(4 * 6)), 4, 6, INT8, END)  # no scales


def test_an_int8_slice_comes_back_with_its_scales() -> None:
    """Every byte of it; and one with a scale that is not finite is not packed."""
    rows = np.random.default_rng(0).standard_normal((4, 6), np.float32)
    data = quantized(rows)
    back = unpack_slice(b"".join(pack_slice(memoryview(data), 4, 6, INT8, END)))
    assert (back.num_rows, back.width, back.dtype, bytes(back.data)) == (4, 6, INT8, data)
    with pytest.raises(NotFinite):
        pack_slice(memoryview(data[:30] + np.float32(np.inf).tobytes() + data[34:]), 4, 6, INT8, END)


@given(st.integers(min_value=0), st.integers(1, 255))
def test_a_changed_byte_is_found(place: int, change: int) -> None:
    """Whatever byte of a value is altered, it does not verify."""
    for value, unpack in (
        (b"".join(pack_slice(rows_of("float32"), 4, 6, "float32", END)), unpack_slice),
        (pack_manifest(MANIFEST), unpack_manifest),
    ):
        damaged = bytearray(value)
        damaged[place % len(value)] ^= change
        with pytest.raises(CorruptValue):
            unpack(bytes(damaged))


@given(st.binary(max_size=200))
def test_foreign_bytes_are_no_value(data: bytes) -> None:
    """Anything else under one of our keys is corrupt, not a crash."""
    for unpack in (unpack_slice, unpack_manifest):
        with pytest.raises(CorruptValue):
            unpack(data)


@given(st.integers(0, 200))
def test_truncated_values_are_found(length: int) -> None:
    """A value that was cut short does not verify."""
    value = b"".join(pack_slice(rows_of("float32"), 4, 6, "float32", END))
    with pytest.raises(CorruptValue):
        unpack_slice(value[: min(length, len(value) - 1)])


def test_a_manifest_comes_back() -> None:
    """A manifest is read as it was written."""
    assert unpack_manifest(pack_manifest(MANIFEST)) == MANIFEST
