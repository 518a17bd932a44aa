"""The project's compiled kernels that the vision tower uses: float32 on the CPU, contiguous tensors."""

import ctypes
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from services.common.native import library

MAX_HEAD_DIM = 256  # of the kernel of attention


def kernels_for(like: Tensor) -> ctypes.CDLL | None:
    """What computes with tensors like this one; None where PyTorch's operators are to."""
    return library() if like.device.type == "cpu" and like.dtype == torch.float32 else None


def can_pair(like: Tensor, head_dim: int, merge_size: int) -> bool:
    """Whether attention can be by pairs of bf16, whose products go into sums of float32.

    Slices are of whole merged patches, so that with an even `merge_size` all their lengths are even.
    """
    has_pairs = head_dim % 2 == 0 and head_dim <= MAX_HEAD_DIM and merge_size % 2 == 0
    return has_pairs and hasattr(kernels_for(like), "attend_pairs_in_slices")


def attend_in_slices(kernels: ctypes.CDLL, heads: Tensor, lengths: Sequence[int], out: Tensor) -> None:
    """Attention inside slices of so many rows: `heads` [3, heads, n, head_dim] fill `out` [n, heads, head_dim].

    Or heads [3, heads, n, head_dim / 2] of int32, each two bf16 that `place_heads` has put there.
    """
    _, num_heads, head_dim = out.shape
    attend = kernels.attend_in_slices if heads.dtype == torch.float32 else kernels.attend_pairs_in_slices
    attend(
        *(_pointer(heads), _pointer(out), (ctypes.c_int64 * len(lengths))(*lengths)),
        *map(ctypes.c_int64, (len(lengths), num_heads, head_dim)),
        *(ctypes.c_float(head_dim**-0.5 * math.log2(math.e)), torch.get_num_threads()),
    )


def place_heads(kernels: ctypes.CDLL, qkv: Tensor, cos: Tensor, sin: Tensor, heads: Tensor) -> None:
    """Queries and keys of `qkv` [n, 3, heads, head_dim], rotated, and values fill `heads` [3, heads, n, head_dim].

    `heads` may be some rows of all, `cos` and `sin` are [n, head_dim / 2]. Into int32 go pairs, from an even number of
    rows after an even number.
    """
    num_rows, _, num_heads, head_dim = qkv.shape
    place = kernels.place_heads if heads.dtype == torch.float32 else kernels.place_pairs
    place(
        *map(_pointer, (qkv, cos, sin, heads)),
        *map(ctypes.c_int64, (num_rows, num_heads, head_dim, heads.stride(1) // heads.shape[3])),
        torch.get_num_threads(),
    )


def add_and_normalize(kernels: ctypes.CDLL, rows: Tensor, added: Tensor | None, norm: nn.LayerNorm) -> Tensor:
    """Add to `rows` [n, dim] in place, and return them normalised."""
    out = torch.empty_like(rows)
    kernels.add_and_normalize(
        *(_pointer(rows), None if added is None else _pointer(added)),
        *map(_pointer, (norm.weight, norm.bias, out)),
        *(*map(ctypes.c_int64, rows.shape), ctypes.c_float(norm.eps), torch.get_num_threads()),
    )
    return out


def _pointer(tensor: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())
