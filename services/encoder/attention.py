"""Attention inside each temporal slice, by whatever kernel is fastest where it runs."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from services.common.linear import can_pack, product_of_rows

try:
    from flash_attn import flash_attn_varlen_func
except ImportError:
    flash_attn_varlen_func = None

# From here on oneDNN's products, head by head, make up for their calls: on AMD's processors they take two thirds of the
# time of PyTorch's fused attention, whose products are MKL's.
_LONG = 256
_QUERY_ROWS = 512  # at once: their scores stay in the processor's cache


def attend(qkv: Tensor, groups: Sequence[tuple[int, int]]) -> Tensor:
    """Attention inside each slice: `qkv` [n, 3, heads, head_dim] gives [n, heads, head_dim].

    On CUDA one varlen kernel takes all slices where flash-attn is installed (untested: no CUDA where this was
    written). Elsewhere slices of one length go together.
    """
    if qkv.is_cuda and flash_attn_varlen_func is not None and qkv.dtype != torch.float32:
        return _attend_varlen(qkv, groups)
    parts = torch.split(qkv, [num_slices * num_patches for num_slices, num_patches in groups])
    mixed = [_attend_equal(part.view(*group, *part.shape[1:])) for part, group in zip(parts, groups, strict=True)]
    return torch.cat(mixed) if len(mixed) > 1 else mixed[0]


def _attend_equal(qkv: Tensor) -> Tensor:
    """`qkv` [slices, patches, 3, heads, head_dim] gives [slices * patches, heads, head_dim]."""
    query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    if qkv.device.type == "cpu" and qkv.shape[1] >= _LONG and qkv.dtype == torch.float32 and can_pack(qkv.dtype):
        return _attend_by_head(query, key, value)
    return functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(0, 1)


def _attend_varlen(qkv: Tensor, groups: Sequence[tuple[int, int]]) -> Tensor:
    lengths = [num_patches for num_slices, num_patches in groups for _ in range(num_slices)]
    starts = functional.pad(torch.tensor(lengths, dtype=torch.int32).cumsum(0, dtype=torch.int32), (1, 0))
    starts = starts.to(qkv.device, non_blocking=True)
    query, key, value = qkv.unbind(1)
    out: Tensor = flash_attn_varlen_func(query, key, value, starts, starts, max(lengths), max(lengths))
    return out


def _attend_by_head(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Each [slices, heads, patches, head_dim], float32; gives [slices * patches, heads, head_dim]."""
    num_slices, num_heads, num_patches, head_dim = query.shape
    query, key, value = query * head_dim**-0.5, key.contiguous(), value.transpose(2, 3).contiguous()
    mixed = query.new_empty(num_slices, num_patches, num_heads, head_dim)
    for index in range(num_slices):
        for head in range(num_heads):
            for start in range(0, num_patches, _QUERY_ROWS):
                rows = slice(start, start + _QUERY_ROWS)
                scores = product_of_rows(query[index, head, rows], key[index, head])
                mixed[index, rows, head] = product_of_rows(functional.softmax(scores, dim=-1), value[index, head])
    return mixed.flatten(0, 1)
