"""Qwen2-VL again, small and batched for training: its parameters carry the names of published checkpoints.

Pictures of one size go through the tower in one attention call, and conversations are padded on the right, so that
no mask is needed. `tests` compare it with transformers; what is served is transformers' layout, not this file.
"""

import math
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

PATCH = 14
MERGE = 2
FRAMES_PER_SLICE = 2
Rotary = tuple[Tensor, Tensor]
KeyValue = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Shape:
    """The sizes of the network; see config.json."""

    vocab_size: int
    hidden: int = 192
    num_layers: int = 4
    num_heads: int = 6
    num_kv_heads: int = 2
    intermediate: int = 512
    rope_theta: float = 4.0
    mrope_section: tuple[int, ...] = (4, 6, 6)
    rms_eps: float = 1e-6
    vision_depth: int = 5
    vision_width: int = 128
    vision_heads: int = 4
    vision_mlp_ratio: int = 4

    @property
    def head_dim(self) -> int:
        return self.hidden // self.num_heads


def rotate(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding in the half-split form that Qwen uses."""
    cos, sin = cos.to(states.dtype), sin.to(states.dtype)
    first, second = states.chunk(2, -1)
    return states * cos + torch.cat((-second, first), -1) * sin


def smooth_filters(count: int, num_waves: int = 7) -> Tensor:
    """Patch filters made of low-frequency cosines: white noise would hardly respond to drawings."""
    pixels, waves = torch.arange(PATCH), torch.arange(num_waves)
    cosines = torch.cos(math.pi / PATCH * (pixels + 0.5) * waves[:, None])
    decay = 1 / (1 + waves[:, None] + waves)
    filters = torch.einsum(
        "fctuv,uy,vx->fctyx", torch.randn(count, 3, FRAMES_PER_SLICE, num_waves, num_waves) * decay, cosines, cosines
    )
    scaled: Tensor = filters / filters.flatten(1).norm(dim=1)[:, None, None, None, None]
    return scaled


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """Attention written out: for these short sequences the fused CPU kernel's backward takes five times as long."""
    scores = (query * query.shape[-1] ** -0.5) @ key.mT
    if mask is not None:
        scores = scores.masked_fill(mask, -math.inf)
    mixed: Tensor = scores.softmax(-1) @ value
    return mixed


class VisionBlock(nn.Module):
    """Attention within one slice, then a quick-GELU MLP."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        width = shape.vision_width
        self.num_heads = shape.vision_heads
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.attn = nn.ModuleDict({"qkv": nn.Linear(width, 3 * width), "proj": nn.Linear(width, width)})
        inner = width * shape.vision_mlp_ratio
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, inner), "fc2": nn.Linear(inner, width)})

    def forward(self, states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        slices, length, width = states.shape
        qkv = self.attn["qkv"](self.norm1(states)).view(slices, length, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        mixed = attend(rotate(qkv[0], cos, sin), rotate(qkv[1], cos, sin), qkv[2])
        states = states + self.attn["proj"](mixed.transpose(1, 2).reshape(slices, length, width))
        inner = self.mlp["fc1"](self.norm2(states))
        update: Tensor = self.mlp["fc2"](inner * torch.sigmoid(1.702 * inner))
        return states + update


class Tower(nn.Module):
    """Patches in, one embedding per 2x2 patches out."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        width, merged = shape.vision_width, shape.vision_width * MERGE**2
        kernel = (FRAMES_PER_SLICE, PATCH, PATCH)
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv3d(3, width, kernel, kernel, bias=False)})
        self.blocks = nn.ModuleList(VisionBlock(shape) for _ in range(shape.vision_depth))
        mlp = nn.Sequential(nn.Linear(merged, merged), nn.GELU(), nn.Linear(merged, shape.hidden))
        self.merger = nn.ModuleDict({"ln_q": nn.LayerNorm(width, eps=1e-6), "mlp": mlp})
        self.rotary_dim = width // shape.vision_heads // 2

    def forward(self, patches: Tensor, grid: tuple[int, int]) -> Tensor:
        """Patches [slices, h*w, 1176] of one grid (h, w) in patches, to embeddings [slices, h*w/4, hidden]."""
        states = F.linear(patches, self.get_parameter("patch_embed.proj.weight").flatten(1))
        cos, sin = self.rotary(grid)
        for block in self.blocks:
            states = block(states, cos, sin)
        merged = self.merger["ln_q"](states).view(len(states), grid[0] * grid[1] // MERGE**2, -1)
        embeddings: Tensor = self.merger["mlp"](merged)
        return embeddings

    def rotary(self, grid: tuple[int, int]) -> Rotary:
        """Cosines and sines [h*w, head_dim] in merge order, rows first, then columns."""
        frequencies = 10000.0 ** (-torch.arange(0, self.rotary_dim, 2) / self.rotary_dim)
        rows, columns = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
        order = [
            axis.reshape(grid[0] // MERGE, MERGE, grid[1] // MERGE, MERGE).transpose(1, 2).flatten()
            for axis in (rows, columns)
        ]
        angles = torch.cat([axis[:, None] * frequencies for axis in order], -1).repeat(1, 2)
        return angles.cos(), angles.sin()


class RmsNorm(nn.Module):
    """Scale to unit mean square."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, states: Tensor) -> Tensor:
        normed = F.rms_norm(states, self.weight.shape, self.weight, self.eps)
        return normed.bfloat16() if torch.is_autocast_enabled("cpu") else normed  # once, not in each projection


class Layer(nn.Module):
    """Grouped-query causal attention, then a SwiGLU MLP."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        hidden, keys = shape.hidden, shape.num_kv_heads * shape.head_dim
        self.self_attn = nn.ModuleDict(
            {
                "q_proj": nn.Linear(hidden, hidden),
                "k_proj": nn.Linear(hidden, keys),
                "v_proj": nn.Linear(hidden, keys),
                "o_proj": nn.Linear(hidden, hidden, bias=False),
            }
        )
        self.mlp = nn.ModuleDict(
            {
                "gate_proj": nn.Linear(hidden, shape.intermediate, bias=False),
                "up_proj": nn.Linear(hidden, shape.intermediate, bias=False),
                "down_proj": nn.Linear(shape.intermediate, hidden, bias=False),
            }
        )
        self.input_layernorm = RmsNorm(hidden, shape.rms_eps)
        self.post_attention_layernorm = RmsNorm(hidden, shape.rms_eps)

    def attend(self, states: Tensor, rotary: Rotary, before: KeyValue | None = None) -> tuple[Tensor, KeyValue]:
        """The first half: new states, and the keys and values that what follows may attend to."""
        normed = self.input_layernorm(states)
        query, key, value = (
            self.self_attn[name](normed).unflatten(-1, (-1, self.shape.head_dim)).transpose(1, 2)
            for name in ("q_proj", "k_proj", "v_proj")
        )
        shared = self.shape.num_heads // self.shape.num_kv_heads
        key, value = (heads.repeat_interleave(shared, 1) for heads in (rotate(key, *rotary), value))
        if before:
            key, value = (
                torch.cat((old.expand(len(new), -1, -1, -1), new), 2)
                for old, new in zip(before, (key, value), strict=True)
            )
        length, reach = query.shape[2], key.shape[2]
        future = torch.ones(length, reach, dtype=torch.bool).triu(reach - length + 1)
        mixed = attend(rotate(query, *rotary), key, value, future)
        return states + self.self_attn["o_proj"](mixed.transpose(1, 2).flatten(2)), (key, value)

    def transform(self, states: Tensor) -> Tensor:
        """The second half, on each token alone."""
        normed = self.post_attention_layernorm(states)
        gated = F.silu(self.mlp["gate_proj"](normed)) * self.mlp["up_proj"](normed)
        update: Tensor = self.mlp["down_proj"](gated)
        return states + update


class Language(nn.Module):
    """The decoder: embeddings and M-RoPE positions in, hidden states out; output weights are the embedding's."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embed_tokens = nn.Embedding(shape.vocab_size, shape.hidden)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.num_layers))
        self.norm = RmsNorm(shape.hidden, shape.rms_eps)

    def forward(self, states: Tensor, positions: Tensor, wanted: Tensor, num_shared: int = 0) -> tuple[Tensor, Tensor]:
        """States [batch, length, hidden] and positions [3, batch, length] to the wanted ones, ready for the output.

        The first `num_shared` columns are the same in every row: they are computed once, and none of them is wanted.
        Also gives the states halfway, [batch, length - num_shared, hidden].
        """
        start, rest = states[:1, :num_shared], states[:, num_shared:]
        start_rotary, rest_rotary = (
            self.rotary(positions[:, :1, :num_shared]),
            self.rotary(positions[:, :, num_shared:]),
        )
        for layer in cast("list[Layer]", list(self.layers)):
            start, before = layer.attend(start, start_rotary)
            rest, _ = layer.attend(rest, rest_rotary, before)
            if layer is self.layers[-1]:
                rest = rest[wanted[:, num_shared:]]
            start, rest = layer.transform(start), layer.transform(rest)
            if layer is self.layers[self.shape.num_layers // 2 - 1]:
                halfway = rest
        return self.norm(rest), halfway

    def rotary(self, positions: Tensor) -> Rotary:
        """Each axis turns its own section of the frequencies."""
        half = self.shape.head_dim // 2
        frequencies = self.shape.rope_theta ** (-torch.arange(half) / half)
        axis = torch.repeat_interleave(torch.arange(3), torch.tensor(self.shape.mrope_section))
        angles = (positions.movedim(0, -1)[..., axis] * frequencies).repeat(1, 1, 2)[:, None]
        return angles.cos(), angles.sin()


class Network(nn.Module):
    """The tower and the decoder, under the names of published checkpoints."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.visual = Tower(shape)
        self.model = Language(shape)
        self.initialise()

    def initialise(self) -> None:
        """Fan-in scaled weights, residual branches damped by depth, zero biases."""
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif "embed_tokens" in name:
                nn.init.normal_(parameter, std=0.05)
            elif "patch_embed" in name:
                parameter.data = smooth_filters(len(parameter))
            elif parameter.dim() > 1:
                damped = name.endswith(("proj.weight", "fc2.weight")) and ("o_proj" in name or "down" in name)
                fan_in = parameter[0].numel()
                nn.init.normal_(parameter, std=(0.5 if damped else 1.0) / math.sqrt(fan_in))
