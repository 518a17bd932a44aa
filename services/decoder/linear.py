"""Linear layers: steps of few rows cost the time of reading the weight, prompts that of the products.

On the CPU in float32, what a checkpoint stores in 16 bits is read as such: by the kernels in C (`NativeLinear`) at any
number of rows; where there are none, by fbgemm (`HalfLinear`) for few, beside a copy in 32 bits for many.
"""

import math
from functools import cache

import torch
from torch.nn.functional import silu

from services.common.linear import SMALLEST, Linear, Quantization, in_levels, make_linear, runs
from services.common.native_linear import CHECKED_ROWS, NativeActivation, NativeLinear, can_run, in_16_bits
from services.decoder.compiled import kernels_for

MAX_FEW_ROWS = 24  # of fbgemm: up to here reading the weight takes longest
HALF_RANGE_BITS = 15  # weights up to 2^15 are fp16's
HALF_ERROR = 2.0**-30  # of the largest weight: far below what sums in float32 keep


class HalfLinear:
    """float32 by a weight that is kept in fp16 without a loss: half of the bytes to read, sums in float32.

    Made for few rows (fbgemm's kernels). A row's result does not depend on the rows beside it.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        scale = half_scale(weight)
        self._weight = torch.ops.quantized.linear_prepack_fp16(weight * scale, None if bias is None else bias * scale)
        self._unscale = None if scale == 1.0 else torch.tensor(1 / scale)  # a Python number would take twice the time

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        product: torch.Tensor = torch.ops.quantized.linear_dynamic_fp16(rows, self._weight)
        return product if self._unscale is None else product.mul_(self._unscale)


class FewOrMany:
    """One layer for steps of few rows and for prompts, each by the form that is faster."""

    def __init__(self, few: Linear, many: Linear) -> None:
        self._few, self._many = few, many

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        return self._few(rows) if len(rows) <= MAX_FEW_ROWS else self._many(rows)


class GatedLinear:
    """silu(first half) * second half of what a linear layer gives, with the dtype and on the device of `like`."""

    def __init__(self, inner: Linear, like: torch.Tensor) -> None:
        self._inner, self._kernels = inner, kernels_for(like.device, like.dtype)

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        both = self._inner(rows)
        if self._kernels is not None:
            return self._kernels.gate(both)
        gate, up = both.chunk(2, dim=-1)
        return silu(gate).mul_(up)


def make_decoding_linear(
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    quantization: Quantization = "none",
    *,
    has_copy: bool = True,
    is_gated: bool = False,
) -> Linear:
    """A linear layer for steps of few rows and for prompts; gated, it gives silu(first half) * second half.

    `has_copy`: where PyTorch multiplies float32 by weights of 16 bits, whether there are those of 32 bits for prompts.
    """
    if weight.dtype == torch.float32 and weight.device.type == "cpu":
        native = _by_kernels_in_c(weight, bias, quantization, is_gated=is_gated)
        if native is not None:
            return native
    inner = _by_pytorch(weight, bias, quantization, has_copy=has_copy)
    return GatedLinear(inner, weight) if is_gated else inner


def _by_kernels_in_c(
    weight: torch.Tensor, bias: torch.Tensor | None, quantization: Quantization, *, is_gated: bool
) -> Linear | None:
    """None where they cannot."""
    activation: NativeActivation = "silu" if is_gated else "none"
    if quantization == "int8":
        if not can_run(torch.int8):
            return None
        levels, scales = in_levels(weight)
        return NativeLinear(levels, bias, scales=scales, activation=activation, is_gated=is_gated)
    stored = in_16_bits(weight) if can_run(torch.bfloat16) else None
    return None if stored is None else NativeLinear(stored, bias, activation=activation, is_gated=is_gated)


def _by_pytorch(
    weight: torch.Tensor, bias: torch.Tensor | None, quantization: Quantization, *, has_copy: bool
) -> Linear:
    if quantization == "int8" or not fits_half(weight):
        return make_linear(weight, bias, quantization)
    few = HalfLinear(weight, bias)
    return FewOrMany(few, make_linear(weight, bias)) if has_copy else few


def fits_half(weight: torch.Tensor) -> bool:
    """Whether a float32 weight on the CPU is one of 16 bits, which `HalfLinear` loses nothing of."""
    if weight.dtype != torch.float32 or weight.device.type != "cpu" or not can_halve():
        return False
    scale = half_scale(weight)
    scaled = (part * scale for part in torch.split(weight, CHECKED_ROWS))
    return all(bool((part.half() - part).abs().max() <= HALF_ERROR * 2**HALF_RANGE_BITS) for part in scaled)


def half_scale(weight: torch.Tensor) -> float:
    """The power of two that brings the largest weight to fp16's upper end, where small ones are still exact."""
    low, high = weight.aminmax()
    _, exponent = math.frexp(max(float(-low), float(high), SMALLEST))  # 0 of what is not finite
    return 2.0 ** (HALF_RANGE_BITS - exponent)


@cache
def can_halve() -> bool:
    """Whether this build of PyTorch and this processor have fbgemm's kernels, found by trying."""
    return runs(HalfLinear, torch.float32)
