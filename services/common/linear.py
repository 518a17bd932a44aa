"""A linear layer in the form that is fastest where it runs.

On the CPU, weights are laid out once for oneDNN's kernels, which PyTorch's compiler uses too: on AMD's processors they
take half the time of `torch.nn.functional.linear`, from one row to hundreds (docs/performance.md). In int8 they read a
quarter of the bytes.
"""

from collections.abc import Callable
from functools import cache
from typing import Literal, Protocol, get_args

import torch
from torch.nn import functional
from torch.nn.functional import linear

from services.common.native_linear import NativeLinear, can_run

Quantization = Literal["none", "int8"]
Activation = Literal["none", "quick_gelu", "gelu", "gelu_pytorch_tanh", "silu", "relu"]
ACTIVATIONS: tuple[str, ...] = get_args(Activation)[1:]
QUICK_GELU = 1.702  # x * sigmoid(1.702 * x) is silu(1.702 * x) / 1.702

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
    """The same with a weight that only oneDNN can read, and an activation that it computes in passing."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None, activation: Activation = "none") -> None:
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight)
        self._bias, self._activation = bias, _IN_ONEDNN[activation]

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        name, variant = self._activation
        product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(rows, self._weight, self._bias, name, [], variant)
        return product


class QuantizedLinear:
    """int8: weights scaled by output channel once, rows by their largest value as they come.

    Products are summed in whole numbers, so that a row's result does not depend on the rows beside it.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        levels, self._scales = in_levels(weight)
        self._weight = torch.ops.onednn.qlinear_prepack(levels, None)
        self._zeros = torch.zeros(len(weight), dtype=torch.int32)
        # Tensors: a Python number is made into one, of another type, each time that it is used.
        self._row_levels, self._row_zero = torch.tensor(float(ROW_LEVELS)), torch.tensor(float(ROW_ZERO))
        self._bias = bias

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        scales = rows.abs().amax(dim=1, keepdim=True).clamp_min_(SMALLEST).div_(self._row_levels)
        levels = (rows / scales).round_().add_(self._row_zero).to(torch.uint8)
        product: torch.Tensor = torch.ops.onednn.qlinear_pointwise(
            *(levels, 1.0, ROW_ZERO),
            *(self._weight, self._scales, self._zeros),
            *(None, 1.0, 0, torch.float32, "none", [], ""),
        )
        product.mul_(scales)
        return product if self._bias is None else product.add_(self._bias)


class ActivatedLinear:
    """An activation, in place, after a linear layer that has none."""

    def __init__(self, inner: Linear, activation: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self._inner, self._activation = inner, activation

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        return self._activation(self._inner(rows))


def make_linear(
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    quantization: Quantization = "none",
    activation: Activation = "none",
) -> Linear:
    """A linear layer with `weight` [out, in] and `bias` [out]; the caller should let go of the weight."""
    if quantization == "int8" and can_run(torch.int8):
        return _native_int8(weight, bias, activation)
    if activation == "quick_gelu":
        weight, bias = weight * QUICK_GELU, None if bias is None else bias * QUICK_GELU
        return ActivatedLinear(make_linear(weight, bias, quantization, "silu"), lambda x: x.mul_(1 / QUICK_GELU))
    if quantization == "none" and weight.device.type == "cpu" and can_pack(weight.dtype):
        return PackedLinear(weight, bias, activation)
    plain = QuantizedLinear(weight, bias) if quantization == "int8" else PlainLinear(weight, bias)
    return plain if activation == "none" else ActivatedLinear(plain, _IN_PLACE[activation])


def _native_int8(weight: torch.Tensor, bias: torch.Tensor | None, activation: Activation) -> Linear:
    """int8 by the kernels in C, with the activations that they have."""
    levels, scales = in_levels(weight)
    if activation in ("none", "silu", "quick_gelu"):
        return NativeLinear(levels, bias, scales=scales, activation=activation)
    return ActivatedLinear(NativeLinear(levels, bias, scales=scales), _IN_PLACE[activation])


def in_levels(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight [out, in] in int8, and the scale of each output channel [out]."""
    scales = weight.abs().amax(dim=1).clamp_min_(SMALLEST) / WEIGHT_LEVELS
    return (weight / scales[:, None]).round_().to(torch.int8), scales


def product_of_rows(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """`left @ right.T` [n, m] of rows [n, k] and [m, k], by oneDNN; where `can_pack` says that it can."""
    product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(left, right, None, "none", [], "")
    return product


def require_quantizable(wanted: Quantization, dtype: str, device: torch.device, variable: str) -> None:
    """int8 has its kernels on the CPU, beside float32. Exits with the name of the variable that asks for it."""
    if wanted == "int8" and not (device.type == "cpu" and dtype == "float32" and can_quantize()):
        raise SystemExit(f"{variable}: int8 needs a CPU that oneDNN has the kernels for, and float32 beside it")


@cache
def can_pack(dtype: torch.dtype) -> bool:
    """Whether this build of PyTorch and this processor have the kernels, found by trying."""
    return runs(PackedLinear, dtype)


@cache
def can_quantize() -> bool:
    """The same for int8."""
    return runs(QuantizedLinear, torch.float32)


_IN_ONEDNN: dict[Activation, tuple[str, str]] = {
    "none": ("none", ""),
    "gelu": ("gelu", "none"),
    "gelu_pytorch_tanh": ("gelu", "tanh"),
    "silu": ("swish", ""),
    "relu": ("relu", ""),
}
_IN_PLACE: dict[Activation, Callable[[torch.Tensor], torch.Tensor]] = {
    "gelu": functional.gelu,
    "gelu_pytorch_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "silu": lambda x: functional.silu(x, inplace=True),
    "relu": torch.relu_,
}


def runs(kind: Callable[[torch.Tensor, torch.Tensor], Linear], dtype: torch.dtype) -> bool:
    """Whether a layer can be made of a weight and a bias, and called."""
    try:
        with torch.inference_mode():
            kind(torch.ones(16, 16, dtype=dtype), torch.ones(16, dtype=dtype))(torch.ones(2, 16, dtype=dtype))
    except (AttributeError, RuntimeError):
        return False
    return True
