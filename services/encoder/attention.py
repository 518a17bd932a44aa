"""Attention inside each temporal slice, by whatever kernel is fastest where it runs."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from services.common.linear import can_pack, product_of_rows
from services.encoder import compiled

try:
    from flash_attn import flash_attn_varlen_func
except ImportError:
    flash_attn_varlen_func = None

# From here on oneDNN's products, head by head, make up for their calls: on AMD's processors they take two thirds of the
# time of PyTorch's fused attention, whose products are MKL's.
_LONG = 384
_QUERY_ROWS = 512  # at once: their scores stay in the processor's cache
# Up to here, on either side of zero, exponents of two need no maximum subtracted: 2^14 such powers do not overflow, and
# 2^14 that are lost below 2^-126 are less than the last of a sum's 24 bits.
_SAFE_EXPONENT = 126.0 - 24 - 14


def attend(heads: Tensor, groups: Sequence[tuple[int, int]], out: Tensor) -> None:
    """Attention inside each slice, from queries, keys and values `heads` [3, heads, n, head_dim].

    Fills `out` [n, heads, head_dim]; both contiguous. On CUDA one varlen kernel takes all slices where flash-attn is
    installed (untested: no CUDA where this was written), on the CPU the project's own where it was compiled. That takes
    pairs too (`compiled.py`). Elsewhere slices of one length go together, but long ones alone.
    """
    if heads.is_cuda and flash_attn_varlen_func is not None and heads.dtype != torch.float32:
        out.copy_(_attend_varlen(heads, groups))
        return
    kernels = compiled.kernels_for(out)
    if kernels is not None and out.shape[2] <= compiled.MAX_HEAD_DIM:
        compiled.attend_in_slices(kernels, heads, _lengths(groups), out)
        return
    by_head = heads.device.type == "cpu" and heads.dtype == torch.float32 and can_pack(heads.dtype)
    sizes = [num_slices * num_patches for num_slices, num_patches in groups]
    for part, mixed, group in zip(torch.split(heads, sizes, dim=2), torch.split(out, sizes), groups, strict=True):
        if by_head and group[1] >= _LONG:
            for own, rows in zip(torch.split(part, group[1], dim=2), torch.split(mixed, group[1]), strict=True):
                _attend_by_head(own, rows)
        else:
            _attend_equal(part, group, mixed)


def _lengths(groups: Sequence[tuple[int, int]]) -> list[int]:
    return [num_patches for num_slices, num_patches in groups for _ in range(num_slices)]


def _attend_equal(heads: Tensor, group: tuple[int, int], out: Tensor) -> None:
    num_heads, head_dim = heads.shape[1], heads.shape[3]
    query, key, value = heads.view(3, num_heads, *group, head_dim).transpose(1, 2)
    mixed = functional.scaled_dot_product_attention(query, key, value)
    out.view(*group, num_heads, head_dim).copy_(mixed.transpose(1, 2))


def _attend_varlen(heads: Tensor, groups: Sequence[tuple[int, int]]) -> Tensor:
    lengths = _lengths(groups)
    starts = functional.pad(torch.tensor(lengths, dtype=torch.int32).cumsum(0, dtype=torch.int32), (1, 0))
    starts = starts.to(heads.device, non_blocking=True)
    query, key, value = heads.transpose(1, 2)
    out: Tensor = flash_attn_varlen_func(query, key, value, starts, starts, max(lengths), max(lengths))
    return out


def _attend_by_head(heads: Tensor, out: Tensor) -> None:
    """One slice, float32: `heads` [3, heads, patches, head_dim] fill `out` [patches, heads, head_dim].

    A softmax to the base of two, whose exponential takes a quarter of the other's time here, divided by its sum only
    once it is narrow. The maximum is subtracted only where it could matter: no score is larger than the longest query
    times the longest key.
    """
    query, key, value = heads
    scale = query.shape[-1] ** -0.5 * math.log2(math.e)
    largest = query.norm(dim=-1).amax(dim=-1) * key.norm(dim=-1).amax(dim=-1) * scale
    for head, is_safe in enumerate((largest <= _SAFE_EXPONENT).tolist()):  # NaN is not
        for start in range(0, query.shape[1], _QUERY_ROWS):
            rows = slice(start, start + _QUERY_ROWS)
            scores = product_of_rows(query[head, rows] * scale, key[head])
            if not is_safe:
                scores.sub_(scores.amax(dim=-1, keepdim=True))
            weights = scores.exp2_()
            torch.div(product_of_rows(weights, value[head].T), weights.sum(dim=-1, keepdim=True), out=out[rows, head])
