"""A linear layer by the kernels in C, for weights of 16 and of 8 bits and any number of rows.

Steps of few rows take as long as reading the weight, in the bits that a checkpoint has; sums are in float32, or in
whole numbers. A row's result depends neither on the rows beside it nor on the number of threads.
"""

import ctypes
from functools import cache, partial
from typing import Final, Literal

import torch

from services.common.native import library

NativeActivation = Literal["none", "silu", "quick_gelu"]
STEEPNESS: Final[dict[NativeActivation, float]] = {"none": 0.0, "silu": 1.0, "quick_gelu": 1.702}  # x * sigmoid(s * x)

_KINDS: Final = {torch.bfloat16: 0, torch.float16: 1, torch.int8: 2}
ALIGNMENT: Final = 64  # of the vectors that the kernels read; PyTorch's allocator gives it
CHECKED_ROWS: Final = 4096  # at once


class _Layer(ctypes.Structure):
    """`Linear` in native/linear.c."""

    _fields_ = (
        ("weight", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
        ("zeros", ctypes.c_void_p),
        ("num_inputs", ctypes.c_int64),
        ("num_columns", ctypes.c_int64),
        ("kind", ctypes.c_int32),
        ("is_gated", ctypes.c_int32),
        ("steepness", ctypes.c_float),
    )


class NativeLinear:
    """`rows @ weight.T + bias` of rows [n, in] in float32 and a weight [out, in] in bfloat16, float16 or int8.

    `scales` [out] of int8: the weight is theirs times that, and rows become whole numbers as `QuantizedLinear` makes
    them. Gated, the result is the activation of its first half, times its second half. Raises ValueError for what the
    kernels do not take.
    """

    def __init__(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor | None = None,
        *,
        scales: torch.Tensor | None = None,
        activation: NativeActivation = "none",
        is_gated: bool = False,
    ) -> None:
        kernels = _kernels()
        if kernels is None or not can_run(weight.dtype):
            raise ValueError(f"there are no kernels for weights of {weight.dtype}")
        _check(weight, bias, scales, is_gated=is_gated)
        self._kernels = kernels
        num_columns, self._num_inputs = weight.shape
        self._num_outputs = num_columns // 2 if is_gated else num_columns
        self._layer = _Layer(
            *(None, None, None, None),
            *(self._num_inputs, num_columns, _KINDS[weight.dtype], is_gated, STEEPNESS[activation]),
        )
        self._pointer = ctypes.addressof(self._layer)
        self._run, self._scratch_bytes = kernels.linear_run, partial(kernels.linear_scratch_bytes, self._pointer)
        self._kept: list[torch.Tensor] = []  # what the layer points to
        weight = weight.contiguous()
        self._layer.weight = self._keep(torch.empty(kernels.linear_weight_bytes(self._pointer), dtype=torch.uint8))
        kernels.linear_pack(self._pointer, weight.data_ptr(), self._layer.weight, torch.get_num_threads())
        self._layer.bias = self._in_panels(bias)
        self._layer.scales = self._in_panels(scales)
        if weight.dtype == torch.int8:
            zeros = torch.empty(num_columns, dtype=torch.int32)
            kernels.linear_zeros(self._pointer, weight.data_ptr(), zeros.data_ptr())
            self._layer.zeros = self._in_panels(zeros)

    @property
    def address(self) -> int:
        """Of `Linear` in native/linear.c, for other kernels; it stays as long as this layer does."""
        return self._pointer

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        if rows.dtype != torch.float32 or rows.dim() != 2 or rows.shape[1] != self._num_inputs:
            raise ValueError(f"rows must be float32 [n, {self._num_inputs}], not {rows.dtype} {tuple(rows.shape)}")
        rows, count = rows.contiguous(), len(rows)
        out = torch.empty(count, self._num_outputs)
        scratch = torch.empty(self._scratch_bytes(count), dtype=torch.uint8)
        self._run(
            *(self._pointer, rows.data_ptr(), count),
            *(out.data_ptr(), scratch.data_ptr(), torch.get_num_threads()),
        )
        return out

    def _keep(self, tensor: torch.Tensor) -> int:
        if tensor.data_ptr() % ALIGNMENT:
            raise ValueError(f"PyTorch's memory does not begin at a multiple of {ALIGNMENT} bytes")
        self._kept.append(tensor)
        return tensor.data_ptr()

    def _in_panels(self, vector: torch.Tensor | None) -> int | None:
        """A vector [out] in the order of the kernel's columns."""
        if vector is None:
            return None
        vector = vector.contiguous()
        packed = torch.empty(self._kernels.linear_padded_columns(self._pointer), dtype=vector.dtype)
        self._kernels.linear_pack_vector(self._pointer, vector.data_ptr(), packed.data_ptr())
        return self._keep(packed)


def can_run(dtype: torch.dtype) -> bool:
    """Whether there are kernels for weights of a dtype, and this processor can run them."""
    kernels = _kernels()
    return kernels is not None and (dtype != torch.int8 or bool(kernels.linear_has_int8()))


def in_16_bits(weight: torch.Tensor) -> torch.Tensor | None:
    """A float32 weight in bfloat16 or float16, whichever loses nothing; None if both do."""
    parts = torch.split(weight, CHECKED_ROWS)
    for dtype in (torch.bfloat16, torch.float16):
        if all(torch.equal(part.to(dtype).float(), part) for part in parts):
            return weight.to(dtype)
    return None


def _check(weight: torch.Tensor, bias: torch.Tensor | None, scales: torch.Tensor | None, *, is_gated: bool) -> None:
    if weight.dtype not in _KINDS:
        raise ValueError(f"a weight must be bfloat16, float16 or int8, not {weight.dtype}")
    if weight.dim() != 2 or weight.device.type != "cpu" or not weight.numel():
        raise ValueError(f"a weight must be [out, in] on the CPU, not {tuple(weight.shape)} on {weight.device}")
    if is_gated and len(weight) % 2:
        raise ValueError(f"{len(weight)} columns are not a gate and as many others")
    if (scales is None) == (weight.dtype == torch.int8):
        raise ValueError("int8 has scales, and no other dtype")
    for name, vector in (("bias", bias), ("scales", scales)):
        if vector is not None and (vector.dtype != torch.float32 or vector.shape != weight.shape[:1]):
            raise ValueError(f"the {name} must be float32 [{len(weight)}], not {vector.dtype} {tuple(vector.shape)}")


def _kernels() -> ctypes.CDLL | None:
    kernels = library()
    return None if kernels is None else _typed(kernels)


@cache
def _typed(kernels: ctypes.CDLL) -> ctypes.CDLL:
    """The same, knowing what its functions take and give."""
    layer, memory, count = ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64
    for name in ("padded_columns", "weight_bytes"):
        function = getattr(kernels, f"linear_{name}")
        function.argtypes, function.restype = (layer,), ctypes.c_int64
    for name in ("pack_vector", "zeros"):
        function = getattr(kernels, f"linear_{name}")
        function.argtypes, function.restype = (layer, memory, memory), None
    kernels.linear_pack.argtypes, kernels.linear_pack.restype = (layer, memory, memory, ctypes.c_int32), None
    kernels.linear_scratch_bytes.argtypes, kernels.linear_scratch_bytes.restype = (layer, count), ctypes.c_int64
    kernels.linear_run.argtypes = (layer, memory, count, memory, memory, ctypes.c_int32)
    kernels.linear_run.restype = None
    return kernels
