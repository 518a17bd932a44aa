"""Qwen2-VL's language model over a flat batch: every row is one token of some sequence.

The network is `Qwen2VLTextModel` of transformers with its linears fused; results in fp32 agree to rounding.
"""

from dataclasses import dataclass

import torch
from torch.nn.functional import silu

from services.common.checkpoint import TextConfig
from services.common.linear import Linear
from services.decoder.attention import AttentionPlan
from services.decoder.kv_cache import KVCache
from services.decoder.norm import RmsNorm


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One decoder layer. `qkv` stacks queries, keys and values; `gate_up` stacks gate and up."""

    input_norm: torch.Tensor  # [hidden]; the weights of a norm and of what reads it may differ by a factor
    qkv: Linear  # hidden -> (heads + 2 * kv_heads) * head_dim
    output: Linear  # heads * head_dim -> hidden
    post_norm: torch.Tensor  # [hidden]
    gate_up: Linear  # hidden -> 2 * intermediate
    down: Linear  # intermediate -> hidden


@dataclass(frozen=True, slots=True)
class ModelWeights:
    """All of the language model. The embedding keeps its stored dtype; rows are converted as they are used."""

    embedding: torch.Tensor  # [vocab, hidden]
    layers: tuple[LayerWeights, ...]
    norm: torch.Tensor  # [hidden]
    head: Linear  # hidden -> vocab


@dataclass(frozen=True, slots=True)
class MediaRows:
    """Embeddings that replace the rows `[first, first + len(rows))` of a step."""

    first: int
    rows: torch.Tensor


@dataclass(frozen=True, slots=True)
class StepInput:
    """A step's rows: ids, positions, where keys and values go, what attends to what, and which rows give logits."""

    token_ids: torch.Tensor  # [rows]
    positions: torch.Tensor  # [3, rows]
    slots: torch.Tensor  # [rows]: block * block_size + place in it
    attention: AttentionPlan
    media: tuple[MediaRows, ...]
    sampled_rows: torch.Tensor  # [sampled]


class LanguageModel:
    """Runs steps. Not thread-safe: one engine owns it."""

    def __init__(self, config: TextConfig, weights: ModelWeights) -> None:
        self.config = config
        self.weights = weights
        self.dtype, self.device = weights.norm.dtype, weights.norm.device
        self._norm = RmsNorm(config.hidden_size, config.rms_norm_eps, self.device)
        self._signed_frequency, self._axis = _rotary_tables(config, self.device)

    @torch.inference_mode()
    def run(self, step: StepInput, cache: KVCache) -> torch.Tensor:
        """Logits [sampled, vocab] in fp32; keys and values of all rows are written to the cache."""
        hidden = self._embed(step)
        rotation = self._rotation(step.positions)
        for index, layer in enumerate(self.weights.layers):
            normed = self._norm(hidden, layer.input_norm)
            hidden += self._attention(layer, normed, rotation, step, cache.layer(index))
            hidden += _mlp(layer, self._norm(hidden, layer.post_norm))
        hidden = self._norm(hidden.index_select(0, step.sampled_rows), self.weights.norm)
        return self.weights.head(hidden).float()

    def _embed(self, step: StepInput) -> torch.Tensor:
        hidden = self.weights.embedding.index_select(0, step.token_ids).to(self.dtype)
        for media in step.media:
            hidden[media.first : media.first + len(media.rows)] = media.rows
        return hidden

    def _rotation(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and signed sines [rows, 1, head_dim]; each frequency turns with the axis of its section."""
        angles = positions.index_select(0, self._axis).T.float().mul_(self._signed_frequency)[:, None]
        return angles.cos().to(self.dtype), angles.sin().to(self.dtype)

    def _attention(
        self,
        layer: LayerWeights,
        hidden: torch.Tensor,
        rotation: tuple[torch.Tensor, torch.Tensor],
        step: StepInput,
        memory: torch.Tensor,
    ) -> torch.Tensor:
        config = self.config
        num_rotated = config.num_attention_heads + config.num_key_value_heads
        heads = layer.qkv(hidden).view(len(hidden), -1, config.head_dim)
        _rotate(heads[:, :num_rotated], *rotation)
        queries, written = heads[:, : config.num_attention_heads], heads[:, config.num_attention_heads :]
        memory.flatten(0, 1).index_copy_(0, step.slots, written.view(len(hidden), 2, -1, config.head_dim))
        return layer.output(step.attention.attend(queries, memory).flatten(1))


def _mlp(layer: LayerWeights, hidden: torch.Tensor) -> torch.Tensor:
    gate, up = layer.gate_up(hidden).chunk(2, dim=-1)
    return layer.down(silu(gate).mul_(up))


def _rotate(heads: torch.Tensor, cos: torch.Tensor, signed_sin: torch.Tensor) -> None:
    """Rotate [rows, heads, head_dim] in place; halves swap places, the sign is in the sine."""
    swapped = heads.roll(heads.shape[-1] // 2, dims=-1)
    heads.mul_(cos).addcmul_(swapped, signed_sin)


def _rotary_tables(config: TextConfig, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Frequencies [head_dim], the first half turning back, and the axis (0 time, 1 height, 2 width) of each."""
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    frequency = 1.0 / (config.rope_theta**exponents)
    axis = torch.repeat_interleave(torch.arange(3), torch.tensor(config.mrope_section))
    return torch.cat([-frequency, frequency]).to(device), axis.repeat(2).to(device)
