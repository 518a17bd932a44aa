"""Qwen2-VL's vision transformer, over many temporal slices of any sizes packed into one sequence.

Follows transformers' `Qwen2VisionTransformerPretrainedModel` (models/qwen2_vl/modeling_qwen2_vl.py); parameter names
are the checkpoint's. Attention stays inside one temporal slice, which is why slices can be cached one by one.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby

import torch
from torch import Tensor, nn

from services.common.checkpoint import VisionConfig
from services.encoder.attention import attend

_NORM_EPS = 1e-6
_ROPE_BASE = 10_000.0
# Values of an MLP's hidden layer that are computed at once: on the CPU what stays in the cache until the next product
# reads it, elsewhere what does not set the peak of memory.
_HIDDEN_IN_CACHE, _HIDDEN_IN_MEMORY = 5 << 19, 5 << 22


@dataclass(frozen=True, slots=True)
class Packing:
    """How slices share one sequence: `num_slices` of `num_patches` each follow one another, group by group.

    `stretches` are its rows in parts that go through linear layers at once. `heads` [3, heads, n, head_dim] is where
    each layer puts its queries, keys and values, and `mixed` [n, heads, head_dim] what attention makes of them.
    """

    groups: tuple[tuple[int, int], ...]
    cos: Tensor
    sin: Tensor
    stretches: tuple[slice, ...]
    heads: Tensor
    mixed: Tensor


class VisionTransformer(nn.Module):
    """Patches of many slices in, one row of `hidden_size` per `merge^2` patches out, in the same order."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_dim = config.in_channels * config.temporal_patch_size * config.patch_size**2
        self.patch_embed = nn.Linear(self.patch_dim, config.embed_dim, bias=False)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.merger = Merger(config)

    @torch.inference_mode()
    def forward(self, patches: Tensor, grids: Sequence[tuple[int, int]]) -> Tensor:
        """`patches` [sum(h * w), patch_dim]; `grids`: (h, w) of each slice, slices of equal h * w side by side."""
        packing = self._pack(grids)
        hidden = self.patch_embed(patches.to(self.merger.ln_q.weight.dtype))
        for block in self.blocks:
            block(hidden, packing)
        merged: Tensor = self.merger(hidden)
        return merged

    def _pack(self, grids: Sequence[tuple[int, int]]) -> Packing:
        config, like = self.config, self.merger.ln_q.weight
        head_dim, num_rows = config.embed_dim // config.num_heads, sum(h * w for h, w in grids)
        runs = groupby(h * w for h, w in grids)
        tables = [rotary_table(h, w, config.spatial_merge_size, head_dim) for h, w in grids]
        # taken once for all layers: the system clears blocks of this size each time that it gives them
        return Packing(
            groups=tuple((len(list(run)), num_patches) for num_patches, run in runs),
            cos=torch.cat([cos for cos, _ in tables]).to(like.device),
            sin=torch.cat([sin for _, sin in tables]).to(like.device),
            stretches=_stretches(num_rows, int(config.embed_dim * config.mlp_ratio), like.device.type),
            heads=like.new_empty(3, config.num_heads, num_rows, head_dim),
            mixed=like.new_empty(num_rows, config.num_heads, head_dim),
        )


class Block(nn.Module):
    """One layer: attention, then MLP, each behind a norm and beside a residual."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        dim, hidden_dim = config.embed_dim, int(config.embed_dim * config.mlp_ratio)
        self.norm1 = nn.LayerNorm(dim, eps=_NORM_EPS)
        self.norm2 = nn.LayerNorm(dim, eps=_NORM_EPS)
        self.attn = Attention(dim, config.num_heads)
        self.mlp = Mlp(dim, hidden_dim)

    def forward(self, hidden: Tensor, packing: Packing) -> None:
        """Change `hidden` [n, dim] in place."""
        for rows in packing.stretches:
            self.attn.project(self.norm1(hidden[rows]), packing, rows)
        attend(packing.heads, packing.groups, packing.mixed)
        for rows in packing.stretches:
            stretch = hidden[rows]
            stretch.add_(self.attn.proj(packing.mixed[rows].flatten(1)))
            stretch.add_(self.mlp(self.norm2(stretch)))


class Attention(nn.Module):
    """The linear layers before and after attention."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def project(self, stretch: Tensor, packing: Packing, rows: slice) -> None:
        """Put queries and keys, with their two-dimensional rotary positions, and values into `packing.heads`."""
        qkv = self.qkv(stretch).view(len(stretch), 3, self.num_heads, -1)
        rotate_(qkv[:, :2], packing.cos[rows], packing.sin[rows])
        packing.heads[:, :, rows] = qkv.permute(1, 2, 0, 3)


class Mlp(nn.Module):
    """Two linear layers. The checkpoint's activation between them becomes part of the first when they are laid out."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, hidden: Tensor) -> Tensor:
        out: Tensor = self.fc2(self.fc1(hidden))
        return out


class Merger(nn.Module):
    """Each `merge^2` patches, which stand side by side, become one row as wide as the language model."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self._merged_dim = config.embed_dim * config.spatial_merge_size**2
        self.ln_q = nn.LayerNorm(config.embed_dim, eps=_NORM_EPS)
        self.mlp = nn.Sequential(
            nn.Linear(self._merged_dim, self._merged_dim), nn.GELU(), nn.Linear(self._merged_dim, config.hidden_size)
        )

    def forward(self, hidden: Tensor) -> Tensor:
        out: Tensor = self.mlp(self.ln_q(hidden).view(-1, self._merged_dim))
        return out


def _stretches(num_rows: int, hidden_dim: int, device_type: str) -> tuple[slice, ...]:
    """As few and as equal as may be: a short rest would read all weights for a few rows."""
    at_once = max(1, (_HIDDEN_IN_CACHE if device_type == "cpu" else _HIDDEN_IN_MEMORY) // hidden_dim)
    size = math.ceil(num_rows / math.ceil(num_rows / at_once))
    return tuple(slice(start, min(start + size, num_rows)) for start in range(0, num_rows, size))


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
    frequencies = 1.0 / (_ROPE_BASE ** (torch.arange(0, head_dim // 2, 2, dtype=torch.float) / (head_dim // 2)))
    rows = torch.arange(h)[:, None].expand(h, w)
    columns = torch.arange(w)[None].expand(h, w)
    angles = torch.cat([_in_patch_order(axis, merge)[:, None] * frequencies for axis in (rows, columns)], dim=-1)
    return angles.cos(), angles.sin()


def _in_patch_order(plane: Tensor, merge: int) -> Tensor:
    h, w = plane.shape
    return plane.reshape(h // merge, merge, w // merge, merge).transpose(1, 2).flatten().float()
