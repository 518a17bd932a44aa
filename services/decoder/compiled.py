"""The project's compiled kernels that the language model uses: float32 on the CPU, contiguous tensors."""

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from services.common.native import library

_INT64, _POINTER = ctypes.c_int64, ctypes.c_void_p
_ARGUMENTS: dict[str, tuple[type, ...]] = {
    "add_and_scale": (*[_POINTER] * 4, _INT64, _INT64, ctypes.c_float, ctypes.c_int),
    "gate": (_POINTER, _POINTER, _INT64, _INT64, ctypes.c_int),
    "find_likeliest": (_POINTER, _POINTER, _INT64, _POINTER, _POINTER, _INT64, _INT64, ctypes.c_int),
    "plan_step": (_POINTER, _POINTER, _INT64, _INT64, _POINTER, _INT64, ctypes.c_int),
    "attend_to_pages": (*[_POINTER] * 4, ctypes.c_int),
    "layers_workspace_bytes": (_POINTER, _INT64),
    "run_layers": (*[_POINTER] * 4, _INT64, _POINTER, ctypes.c_int),
}


class Kernels:
    """The kernels' functions, which take addresses and numbers as they are."""

    def __init__(self, functions: ctypes.CDLL) -> None:
        def typed(name: str, result: type | None = None) -> Callable[..., Any]:
            function = functions[name]  # one of our own, so that nobody else's types are changed
            function.argtypes, function.restype = _ARGUMENTS[name], result
            return function

        self._add_and_scale, self._gate = typed("add_and_scale"), typed("gate")
        self._find_likeliest = typed("find_likeliest")
        self.plan_step: Callable[..., int] = typed("plan_step", _INT64)
        self.attend_to_pages, self.run_layers = typed("attend_to_pages"), typed("run_layers")
        self.layers_workspace_bytes: Callable[..., int] = typed("layers_workspace_bytes", _INT64)

    def add_and_scale(self, rows: Tensor, added: Tensor | None, weight: Tensor, eps: float) -> Tensor:
        """Add to `rows` [n, size] in place; over the root of their mean square, times `weight` [size]."""
        out, to_add = torch.empty_like(rows), None if added is None else added.data_ptr()
        self._add_and_scale(
            *(rows.data_ptr(), to_add, weight.data_ptr(), out.data_ptr()),
            *(rows.shape[0], rows.shape[1], eps, torch.get_num_threads()),
        )
        return out

    def gate(self, both: Tensor) -> Tensor:
        """silu(gate) * up, of rows [n, 2 * size] that hold both."""
        num_rows, size = both.shape[0], both.shape[1] // 2
        out = both.new_empty(num_rows, size)
        self._gate(both.data_ptr(), out.data_ptr(), num_rows, size, torch.get_num_threads())
        return out

    def find_likeliest(self, logits: Tensor, forbidden: Tensor) -> tuple[list[int], list[float]]:
        """The first column of each row's greatest value, and that value; NaN counts as the greatest.

        Columns that are `forbidden` become -inf before.
        """
        num_rows, num_columns = logits.shape
        tokens, greatest = (_INT64 * num_rows)(), (ctypes.c_float * num_rows)()
        self._find_likeliest(
            *(logits.data_ptr(), forbidden.data_ptr(), len(forbidden), tokens, greatest),
            *(num_rows, num_columns, torch.get_num_threads()),
        )
        return tokens[:], greatest[:]


def kernels_for(device: torch.device, dtype: torch.dtype) -> Kernels | None:
    """What computes with such tensors; None where PyTorch's operators are to."""
    functions = library() if device.type == "cpu" and dtype == torch.float32 else None
    return None if functions is None else _kernels(functions)


@cache
def _kernels(functions: ctypes.CDLL) -> Kernels:
    return Kernels(functions)
