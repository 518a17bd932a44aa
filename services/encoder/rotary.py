"""Two-dimensional rotary positions of a slice's patches."""

from functools import lru_cache

import torch
from torch import Tensor

from services.encoder import compiled

_BASE = 10_000.0


def place_heads(qkv: Tensor, cos: Tensor, sin: Tensor, heads: Tensor) -> None:
    """Queries and keys of `qkv` [n, 3, heads, head_dim], rotated, and values fill `heads` [3, heads, n, head_dim].

    The angles' `cos` and `sin` are [n, head_dim / 2]. `qkv` is spent.
    """
    kernels = compiled.kernels_for(qkv)
    if kernels is not None:
        compiled.place_heads(kernels, qkv, cos, sin, heads)
        return
    rotate_(qkv[:, :2], cos, sin)
    heads.copy_(qkv.permute(1, 2, 0, 3))


def rotate_(pairs: Tensor, cos: Tensor, sin: Tensor) -> None:
    """Rotate queries and keys [n, 2, heads, head_dim] in place by [n, head_dim / 2] angles, in float32."""
    values = pairs if pairs.dtype == torch.float32 else pairs.float()
    first, second = values.chunk(2, dim=-1)
    cos, sin = cos[:, None, None], sin[:, None, None]
    turned = first * sin
    first.mul_(cos).addcmul_(second, sin, value=-1)
    second.mul_(cos).add_(turned)
    if values is not pairs:
        pairs.copy_(values)


@lru_cache(maxsize=256)
def rotary_table(h: int, w: int, merge: int, head_dim: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines [h * w, head_dim / 2] of a slice's patches, in the order (h/merge, w/merge, merge, merge).

    The first half of the angles counts rows, the second columns.
    """
    frequencies = 1.0 / (_BASE ** (torch.arange(0, head_dim // 2, 2, dtype=torch.float) / (head_dim // 2)))
    rows = torch.arange(h)[:, None].expand(h, w)
    columns = torch.arange(w)[None].expand(h, w)
    angles = torch.cat([_in_patch_order(axis, merge)[:, None] * frequencies for axis in (rows, columns)], dim=-1)
    return angles.cos(), angles.sin()


def _in_patch_order(plane: Tensor, merge: int) -> Tensor:
    h, w = plane.shape
    return plane.reshape(h // merge, merge, w // merge, merge).transpose(1, 2).flatten().float()
