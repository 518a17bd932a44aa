"""A linear layer in the form that is fastest where it runs.

On the CPU, weights are laid out once for oneDNN's kernels, which PyTorch's compiler uses too: on AMD's processors they
take half the time of `torch.nn.functional.linear`, from one row to hundreds (docs/performance.md). In int8 they read a
quarter of the bytes.
"""

from functools import cache
from typing import Literal, Protocol

import torch
from torch.nn.functional import linear

Quantization = Literal["none", "int8"]

WEIGHT_LEVELS = 127
# Without VNNI the kernels add products in pairs of 16 bits, which values of seven bits cannot overflow.
ROW_LEVELS = 127 if torch.cpu._is_vnni_supported() else 63
ROW_ZERO = ROW_LEVELS + 1  # activations must be unsigned for the fast kernels
SMALLEST = 1e-12  # a row or channel of zeros has no scale of its own


class Linear(Protocol):
    """Rows [n, in] to rows [n, out]."""

    def __call__(self, rows: torch.Tensor) -> torch.Tensor: ...


class PlainLinear:
    """`rows @ weight.T + bias` by PyTorch's own choice of kernel."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        self._weight, self._bias = weight, bias

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        return linear(rows, self._weight, self._bias)


class PackedLinear:
    """The same with a weight that only oneDNN can read."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight)
        self._bias = bias

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(rows, self._weight, self._bias, "none", [], "")
        return product


class QuantizedLinear:
    """int8: weights scaled by output channel once, rows by their largest value as they come.

    Products are summed in whole numbers, so that a row's result does not depend on the rows beside it.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        self._scales = weight.abs().amax(dim=1).clamp_min_(SMALLEST) / WEIGHT_LEVELS
        self._weight = torch.ops.onednn.qlinear_prepack((weight / self._scales[:, None]).round_().to(torch.int8), None)
        self._zeros = torch.zeros(len(weight), dtype=torch.int32)
        self._bias = bias

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        scales = rows.abs().amax(dim=1, keepdim=True).clamp_min_(SMALLEST) / ROW_LEVELS
        levels = (rows / scales).round_().add_(ROW_ZERO).to(torch.uint8)
        product: torch.Tensor = torch.ops.onednn.qlinear_pointwise(
            *(levels, 1.0, ROW_ZERO),
            *(self._weight, self._scales, self._zeros),
            *(None, 1.0, 0, torch.float32, "none", [], ""),
        )
        product.mul_(scales)
        return product if self._bias is None else product.add_(self._bias)


def make_linear(weight: torch.Tensor, bias: torch.Tensor | None = None, quantization: Quantization = "none") -> Linear:
    """A linear layer with `weight` [out, in] and `bias` [out]; the caller should let go of the weight."""
    if quantization == "int8":
        return QuantizedLinear(weight, bias)
    if weight.device.type == "cpu" and can_pack(weight.dtype):
        return PackedLinear(weight, bias)
    return PlainLinear(weight, bias)


def require_quantizable(wanted: Quantization, dtype: str, device: torch.device, variable: str) -> None:
    """int8 has its kernels on the CPU, beside float32. Exits with the name of the variable that asks for it."""
    if wanted == "int8" and not (device.type == "cpu" and dtype == "float32" and can_quantize()):
        raise SystemExit(f"{variable}: int8 needs a CPU that oneDNN has the kernels for, and float32 beside it")


@cache
def can_pack(dtype: torch.dtype) -> bool:
    """Whether this build of PyTorch and this processor have the kernels, found by trying."""
    return _runs(PackedLinear, dtype)


@cache
def can_quantize() -> bool:
    """The same for int8."""
    return _runs(QuantizedLinear, torch.float32)


def _runs(kind: type[PackedLinear | QuantizedLinear], dtype: torch.dtype) -> bool:
    try:
        with torch.inference_mode():
            kind(torch.ones(16, 16, dtype=dtype), torch.ones(16, dtype=dtype))(torch.ones(2, 16, dtype=dtype))
    except (AttributeError, RuntimeError):
        return False
    return True
