"""Rows in 8 bits: each is its scale, a little-endian float32, and `width` whole numbers from -127 to 127.

A value is its number times its row's scale, which is a 127th of the row's largest value: it is off by half a scale at
most.
"""

import numpy as np
import numpy.typing as npt

SCALE_BYTES = 4

_LARGEST = 127
_BLOCK_ROWS = 64  # at a time, so that temporaries stay in the CPU's cache
_TINY = np.finfo(np.float32).tiny  # a row of zeros has a scale, too
_SCALE = np.dtype("<f4")
_MAX_SCALE = np.finfo(np.float32).max / 128  # times any int8 is finite


def quantized(rows: npt.NDArray[np.float32]) -> bytes:
    """Rows [num_rows, width] in 8 bits. A row with NaN or infinity gets a scale that `are_valid` refuses."""
    packed = np.empty(len(rows), _layout(rows.shape[1]))
    for start in range(0, len(rows), _BLOCK_ROWS):
        block = slice(start, start + _BLOCK_ROWS)
        scales = np.maximum(np.abs(rows[block]).max(axis=1, keepdims=True) / _LARGEST, _TINY)
        packed["scale"][block] = scales[:, 0]
        with np.errstate(invalid="ignore"):  # NaN is found by its row's scale
            packed["values"][block] = np.rint(rows[block] / scales)
    return packed.tobytes()


def dequantized(data: bytearray | memoryview, width: int) -> npt.NDArray[np.float32]:
    """The rows [num_rows, width] that valid bytes stand for."""
    packed = np.frombuffer(data, _layout(width))
    rows = packed["values"].astype(np.float32)
    rows *= packed["scale"][:, None]
    return rows


def are_valid(data: bytearray | memoryview, width: int) -> bool:
    """Whether each row's scale is one that `quantized` gives for finite values."""
    scales = np.frombuffer(data, _layout(width))["scale"]
    return bool(((scales >= 0) & (scales <= _MAX_SCALE)).all())


def _layout(width: int) -> np.dtype[np.void]:
    return np.dtype([("scale", _SCALE), ("values", np.int8, (width,))])
