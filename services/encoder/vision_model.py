"""Qwen2-VL's vision transformer, over many temporal slices of any sizes packed into one sequence.

Follows transformers' `Qwen2VisionTransformerPretrainedModel` (models/qwen2_vl/modeling_qwen2_vl.py); parameter names
are the checkpoint's. Attention stays inside one temporal slice, which is why slices can be cached one by one.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor, nn

from services.common.checkpoint import VisionConfig
from services.encoder import compiled
from services.encoder.attention import attend
from services.encoder.rotary import place_heads, rotary_table

_NORM_EPS = 1e-6
# Values of an MLP's hidden layer that are computed at once: on the CPU what stays in the cache until the next product
# reads it, elsewhere what does not set the peak of memory.
_HIDDEN_IN_CACHE, _HIDDEN_IN_MEMORY = 5 << 19, 5 << 22


@dataclass(frozen=True, slots=True)
class Packing:
    """How slices share one sequence: `num_slices` of `num_patches` each follow one another, group by group.

    `stretches` are its rows in parts that go through linear layers at once. `heads` [3, heads, n, head_dim] is where
    each layer puts its queries, keys and values, or half as many pairs (`compiled.py`), and `mixed` [n, heads,
    head_dim] what attention makes of them.
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
        self.rounds_heads = False  # to bf16 for attention, where there are kernels for it
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
        head_dim = config.embed_dim // config.num_heads
        lengths = [h * w for h, w in grids]
        pairs = self.rounds_heads and compiled.can_pair(like, head_dim, config.spatial_merge_size)
        tables = [rotary_table(h, w, config.spatial_merge_size, head_dim) for h, w in grids]
        # taken once for all layers: the system clears blocks of this size each time that it gives them
        return Packing(
            groups=tuple((len(list(run)), num_patches) for num_patches, run in groupby(lengths)),
            cos=torch.cat([cos for cos, _ in tables]).to(like.device),
            sin=torch.cat([sin for _, sin in tables]).to(like.device),
            stretches=_stretches(sum(lengths), int(config.embed_dim * config.mlp_ratio), like.device.type),
            heads=like.new_empty(
                *(3, config.num_heads, sum(lengths), head_dim // 2 if pairs else head_dim),
                dtype=torch.int32 if pairs else None,
            ),
            mixed=like.new_empty(sum(lengths), config.num_heads, head_dim),
        )


class Block(nn.Module):
    """One layer: attention, then MLP, each behind a norm and beside a residual."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        dim, hidden_dim = config.embed_dim, int(config.embed_dim * config.mlp_ratio)
        self.norm1 = Norm(dim, eps=_NORM_EPS)
        self.norm2 = Norm(dim, eps=_NORM_EPS)
        self.attn = Attention(dim, config.num_heads)
        self.mlp = Mlp(dim, hidden_dim)

    def forward(self, hidden: Tensor, packing: Packing) -> None:
        """Change `hidden` [n, dim] in place."""
        for rows in packing.stretches:
            self.attn.project(self.norm1(hidden[rows]), packing, rows)
        attend(packing.heads, packing.groups, packing.mixed)
        for rows in packing.stretches:
            stretch = hidden[rows]
            attended = self.attn.proj(packing.mixed[rows].flatten(1))
            stretch.add_(self.mlp(self.norm2(stretch, attended)))


class Norm(nn.LayerNorm):
    """Layer norm, with what comes before it."""

    def forward(self, rows: Tensor, added: Tensor | None = None) -> Tensor:
        """Add `added` to `rows` [n, dim] in place, and return them normalised."""
        kernels = compiled.kernels_for(rows)
        if kernels is not None:
            return compiled.add_and_normalize(kernels, rows, added, self)
        return super().forward(rows if added is None else rows.add_(added))


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
        place_heads(qkv, packing.cos[rows], packing.sin[rows], packing.heads[:, :, rows])


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
        self.ln_q = Norm(config.embed_dim, eps=_NORM_EPS)
        self.mlp = nn.Sequential(
            nn.Linear(self._merged_dim, self._merged_dim), nn.GELU(), nn.Linear(self._merged_dim, config.hidden_size)
        )

    def forward(self, hidden: Tensor) -> Tensor:
        out: Tensor = self.mlp(self.ln_q(hidden).view(-1, self._merged_dim))
        return out


def _stretches(num_rows: int, hidden_dim: int, device_type: str) -> tuple[slice, ...]:
    """As few and as equal as may be, for a short rest would read all weights for a few rows; after even numbers."""
    at_once = max(1, (_HIDDEN_IN_CACHE if device_type == "cpu" else _HIDDEN_IN_MEMORY) // hidden_dim)
    size = 2 * math.ceil(num_rows / math.ceil(num_rows / at_once) / 2)
    return tuple(slice(start, min(start + size, num_rows)) for start in range(0, num_rows, size))
