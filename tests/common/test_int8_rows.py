"""Rows in 8 bits."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from services.common.int8_rows import SCALE_BYTES, are_valid, dequantized, quantized

VALUES = st.floats(-(2.0**100), 2.0**100, width=32)


@given(arrays(np.float32, array_shapes(min_dims=2, max_dims=2, max_side=8), elements=VALUES))
def test_a_value_is_off_by_half_a_scale_at_most(rows: np.ndarray) -> None:
    """A scale is a 127th of its row's largest value, whatever the other rows hold; a row of zeros comes back."""
    num_rows, width = rows.shape
    data = bytearray(quantized(rows))
    assert len(data) == num_rows * (width + SCALE_BYTES)
    assert are_valid(data, width)
    half = np.abs(rows).max(axis=1, keepdims=True) / 254
    off = np.abs(dequantized(data, width).astype(np.float64) - rows)
    assert (off <= half * (1 + 1e-4) + np.finfo(np.float32).tiny).all()


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_found(wrong: float) -> None:
    """One bad value in many rows makes them invalid."""
    rows = np.ones((200, 6), np.float32)
    rows[150, 3] = wrong
    assert not are_valid(bytearray(quantized(rows)), 6)
