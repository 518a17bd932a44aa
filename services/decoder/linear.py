"""A linear layer in the form that is fastest where it runs.

On the CPU, weights are laid out once for oneDNN's kernels, which PyTorch's compiler uses too: on AMD's processors they
take half the time of `torch.nn.functional.linear`, from one row to hundreds (docs/performance.md).
"""

from functools import cache
from typing import Protocol

import torch
from torch.nn.functional import linear


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


def make_linear(weight: torch.Tensor, bias: torch.Tensor | None = None) -> Linear:
    """A linear layer with `weight` [out, in] and `bias` [out]; the caller should let go of the weight."""
    if weight.device.type == "cpu" and can_pack(weight.dtype):
        return PackedLinear(weight, bias)
    return PlainLinear(weight, bias)


@cache
def can_pack(dtype: torch.dtype) -> bool:
    """Whether this build of PyTorch and this processor have the kernels, found by trying."""
    try:
        with torch.inference_mode():
            PackedLinear(torch.ones(16, 16, dtype=dtype), torch.ones(16, dtype=dtype))(torch.ones(2, 16, dtype=dtype))
    except (AttributeError, RuntimeError):
        return False
    return True
