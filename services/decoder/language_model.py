"""Qwen2-VL's language model over a flat batch: every row is one token of some sequence.

The network is `Qwen2VLTextModel` of transformers with its linears fused; results in fp32 agree to rounding.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from services.common.checkpoint import TextConfig
from services.common.linear import Linear
from services.decoder.attention import AttentionPlan
from services.decoder.compiled_attention import CompiledAttention
from services.decoder.compiled_layers import MAX_ROWS, layers_in_one
from services.decoder.kv_cache import KVCache
from services.decoder.norm import RmsNorm
from services.decoder.rotary import Rotary, rotate

Attend = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One decoder layer. `qkv` stacks queries, keys and values; `gate_up` is gated."""

    input_norm: torch.Tensor  # [hidden]; the weights of a norm and of what reads it may differ by a factor
    qkv: Linear  # hidden -> (heads + 2 * kv_heads) * head_dim
    output: Linear  # heads * head_dim -> hidden
    post_norm: torch.Tensor  # [hidden]
    gate_up: Linear  # hidden -> intermediate: silu(gate) * up
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
    attention: AttentionPlan | CompiledAttention
    media: tuple[MediaRows, ...]
    sampled_rows: torch.Tensor  # [sampled]


class LanguageModel:
    """Runs steps. Not thread-safe: one engine owns it."""

    def __init__(self, config: TextConfig, weights: ModelWeights) -> None:
        self.config = config
        self.weights = weights
        self.dtype, self.device = weights.norm.dtype, weights.norm.device
        self._norm = RmsNorm(config.hidden_size, config.rms_norm_eps, self.dtype, self.device)
        self._rotary = Rotary(config, self.dtype, self.device)
        self._layers_in_one = layers_in_one(config, self.dtype, self.device, weights.layers)

    @torch.inference_mode()
    def run(self, step: StepInput, cache: KVCache) -> torch.Tensor:
        """Logits [sampled, vocab] in fp32; keys and values of all rows are written to the cache."""
        hidden, added = self._run_layers(step, self._embed(step), cache)
        if not len(hidden):
            return hidden.new_empty(0, self.config.vocab_size, dtype=torch.float32)
        return self.weights.head(self._norm(hidden, added, self.weights.norm)).float()

    def _run_layers(
        self, step: StepInput, hidden: torch.Tensor, cache: KVCache
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The rows that are sampled, after the last layer, and what is still to be added to them."""
        in_one, attention = self._layers_in_one, step.attention
        if in_one is not None and isinstance(attention, CompiledAttention) and len(hidden) <= MAX_ROWS:
            in_one.run(attention, hidden, cache.memory)
            return _sampled(step, hidden), None
        added, attend = None, self._attend_with(step)
        for index, layer in enumerate(self.weights.layers):
            attended = attend(layer.qkv(self._norm(hidden, added, layer.input_norm)), cache.layer(index))
            if layer is self.weights.layers[-1]:  # from here on only these rows matter
                hidden, attended = _sampled(step, hidden), _sampled(step, attended)
                if not len(hidden):
                    break
            normed = self._norm(hidden, layer.output(attended), layer.post_norm)
            added = layer.down(layer.gate_up(normed))
        return hidden, added

    def _embed(self, step: StepInput) -> torch.Tensor:
        hidden = self.weights.embedding.index_select(0, step.token_ids).to(self.dtype)
        for media in step.media:
            hidden[media.first : media.first + len(media.rows)] = media.rows
        return hidden

    def _attend_with(self, step: StepInput) -> Attend:
        """What turns a layer's projected rows [rows, (heads + 2 * kv_heads) * head_dim] into what they see."""
        if isinstance(step.attention, CompiledAttention):
            return step.attention.attend
        factors = self._rotary.factors(step.positions)
        return partial(self._rotate_and_attend, step.attention, step.slots, factors)

    def _rotate_and_attend(
        self,
        attention: AttentionPlan,
        slots: torch.Tensor,
        factors: tuple[torch.Tensor, torch.Tensor],
        projected: torch.Tensor,
        memory: torch.Tensor,
    ) -> torch.Tensor:
        num_heads, head_dim = self.config.num_attention_heads, self.config.head_dim
        heads = projected.view(len(projected), -1, head_dim)
        rotate(heads[:, : num_heads + self.config.num_key_value_heads], *factors)
        queries, written = heads[:, :num_heads], heads[:, num_heads:]
        memory.flatten(0, 1).index_copy_(0, slots, written.view(len(heads), 2, -1, head_dim))
        return attention.attend(queries, memory).flatten(1)


def _sampled(step: StepInput, rows: torch.Tensor) -> torch.Tensor:
    return rows.index_select(0, step.sampled_rows) if len(step.sampled_rows) < len(rows) else rows
