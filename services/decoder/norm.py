"""Root mean square norm, as Qwen2-VL's language model has it."""

import torch
from torch.nn.functional import rms_norm

from services.decoder.compiled import kernels_for


class RmsNorm:
    """Rows [n, size] over the root of their mean square, rounded to their dtype, times a weight [size]."""

    def __init__(self, size: int, eps: float, dtype: torch.dtype, device: torch.device) -> None:
        self._size, self._eps = size, eps
        self._kernels = kernels_for(device, dtype)
        # Tensors: a Python number is made into one, of another type, each time that it is used.
        self._share = torch.tensor(size**-0.5, device=device)
        self._root_eps = torch.tensor(eps**0.5, device=device)

    def __call__(self, rows: torch.Tensor, added: torch.Tensor | None, weight: torch.Tensor) -> torch.Tensor:
        """Of rows to which something is added first, in place. In float32 by the project's kernel, if there is one."""
        if self._kernels is not None:
            return self._kernels.add_and_scale(rows, added, weight, self._eps)
        if added is not None:
            rows += added
        return self._normed(rows, weight)

    def _normed(self, rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """In float32 in half of the operations that `rms_norm` takes on the CPU."""
        if rows.dtype != torch.float32:
            return rms_norm(rows, (self._size,), None, self._eps).mul_(weight)
        length = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
        return rows.div(length.mul_(self._share).hypot_(self._root_eps)).mul_(weight)
