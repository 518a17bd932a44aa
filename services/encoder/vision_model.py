"""Qwen2-VL's vision transformer, over many temporal slices of any sizes packed into one sequence.

Follows transformers' `Qwen2VisionTransformerPretrainedModel` (models/qwen2_vl/modeling_qwen2_vl.py); parameter names
are the checkpoint's. Attention stays inside one temporal slice, which is why slices can be cached one by one.
"""

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
# rows that go through an MLP at once: its hidden layer is four times as wide as all else and would set the peak
_MLP_ROWS = 4096


@dataclass(frozen=True, slots=True)
class Packing:
    """How slices share one sequence: `num_slices` of `num_patches` each follow one another, group by group."""

    groups: tuple[tuple[int, int], ...]
    cos: Tensor
    sin: Tensor


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
            hidden = block(hidden, packing)
        merged: Tensor = self.merger(hidden)
        return merged

    def _pack(self, grids: Sequence[tuple[int, int]]) -> Packing:
        runs = groupby(h * w for h, w in grids)
        groups = tuple((len(list(run)), num_patches) for num_patches, run in runs)
        head_dim = self.config.embed_dim // self.config.num_heads
        device = self.merger.ln_q.weight.device
        tables = [rotary_table(h, w, self.config.spatial_merge_size, head_dim) for h, w in grids]
        cos = torch.cat([cos for cos, _ in tables]).to(device)
        sin = torch.cat([sin for _, sin in tables]).to(device)
        return Packing(groups, cos, sin)


class Block(nn.Module):
    """One layer: attention, then MLP, each behind a norm and beside a residual."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        dim, hidden_dim = config.embed_dim, int(config.embed_dim * config.mlp_ratio)
        self.norm1 = nn.LayerNorm(dim, eps=_NORM_EPS)
        self.norm2 = nn.LayerNorm(dim, eps=_NORM_EPS)
        self.attn = Attention(dim, config.num_heads)
        self.mlp = Mlp(dim, hidden_dim)

    def forward(self, hidden: Tensor, packing: Packing) -> Tensor:
        hidden = self.attn(self.norm1(hidden), packing).add_(hidden)
        for rows in torch.split(hidden, _MLP_ROWS):
            rows.add_(self.mlp(self.norm2(rows)))
        return hidden


class Attention(nn.Module):
    """Full attention inside each slice, with two-dimensional rotary positions."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, hidden: Tensor, packing: Packing) -> Tensor:
        qkv = self.qkv(hidden).view(len(hidden), 3, self.num_heads, -1)
        rotate_(qkv[:, :2], packing.cos, packing.sin)
        mixed: Tensor = self.proj(attend(qkv, packing.groups).flatten(1))
        return mixed


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
