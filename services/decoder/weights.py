"""Loading the language half of a checkpoint; the vision half is never read."""

from typing import Literal

import torch
from safetensors import safe_open

from services.common.checkpoint import Checkpoint, CheckpointError, TextConfig, canonical_name
from services.common.linear import Linear, Quantization
from services.decoder.language_model import LanguageModel, LayerWeights, ModelWeights
from services.decoder.linear import half_scale, make_decoding_linear
from services.decoder.unpack import PARTS, unpack

ACTIVATIONS = {"silu", "swish"}


def load_language_model(
    checkpoint: Checkpoint,
    dtype: torch.dtype,
    device: torch.device,
    quantization: Quantization = "none",
    *,
    prompt_weights: bool = True,
) -> LanguageModel:
    """Read, fuse and quantise the language weights. CheckpointError names a tensor that is missing or misshapen.

    `prompt_weights`: where PyTorch multiplies float32 by weights of 16 bits, keep a copy in 32 bits for prompts.
    """
    if checkpoint.text.hidden_act not in ACTIVATIONS:
        raise CheckpointError(f"{checkpoint.path}: hidden_act {checkpoint.text.hidden_act!r} is not supported")
    reader = _TensorReader(checkpoint, dtype, device, quantization, has_copies=prompt_weights)
    return LanguageModel(checkpoint.text, _read_weights(reader, checkpoint))


class _TensorReader:
    """Reads tensors by canonical name, one at a time, into their final place."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        dtype: torch.dtype,
        device: torch.device,
        quantization: Quantization,
        *,
        has_copies: bool,
    ) -> None:
        files = checkpoint.tensor_files(("language.", "lm_head."))
        self._places = {canonical_name(name): (name, file) for name, file in files.items()}
        self._path, self._dtype, self._device = checkpoint.path, dtype, device
        self._packing = checkpoint.packing
        self._quantization: Quantization = quantization
        self._has_copies = has_copies

    def has_linear(self, name: str) -> bool:
        """Whether a layer's weight is stored, packed or not."""
        return f"{name}.weight" in self._places or self._is_packed(name)

    def linear(self, name: str, num_columns: int) -> Linear:
        """A linear layer without a bias."""
        weight, _ = self._stacked_linear([name], num_columns)
        return make_decoding_linear(weight, None, self._quantization, has_copy=self._has_copies)

    def normed_linear(
        self, norm: str, names: list[str], num_columns: int, role: Literal["qkv", "gate_up", "head"]
    ) -> tuple[torch.Tensor, Linear]:
        """A norm's weight and the layer that reads what it gives."""
        weight, bias = self._stacked_linear(names, num_columns, has_bias=role == "qkv")
        scale = half_scale(weight) if self._dtype == torch.float32 else 1.0  # a power of two: nothing is lost
        has_copy = self._has_copies and role != "head"  # which has one row of a prompt only
        linear = make_decoding_linear(
            weight.mul_(scale), bias, self._quantization, has_copy=has_copy, is_gated=role == "gate_up"
        )
        return self.vector(norm).div_(scale), linear

    def _stacked_linear(
        self, names: list[str], num_columns: int, *, has_bias: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Weight and bias of one linear layer out of several with the same input."""
        weight = self._stack(names, [self._weight(name) for name in names], (num_columns,))
        return weight, self.stacked([f"{name}.bias" for name in names], ()) if has_bias else None

    def vector(self, name: str) -> torch.Tensor:
        """A vector in the model's dtype."""
        return self.stacked([name], ())

    def stacked(self, names: list[str], row_shape: tuple[int, ...]) -> torch.Tensor:
        """Tensors one below the other, in the model's dtype. Their rows must have `row_shape`."""
        return self._stack(names, [self.stored(name) for name in names], row_shape)

    def _stack(self, names: list[str], parts: list[torch.Tensor], row_shape: tuple[int, ...]) -> torch.Tensor:
        for name, part in zip(names, parts, strict=True):
            if part.shape[1:] != row_shape:
                raise CheckpointError(f"{self._path}: {name} has the unexpected shape {tuple(part.shape)}")
        shape = (sum(len(part) for part in parts), *row_shape)
        stacked = torch.empty(shape, dtype=self._dtype, device=self._device)
        torch._foreach_copy_(list(torch.split(stacked, [len(part) for part in parts])), parts)
        return stacked

    def _weight(self, name: str) -> torch.Tensor:
        """A layer's weight [out, in]."""
        if self._packing is None or not self._is_packed(name):
            return self.stored(f"{name}.weight")
        parts = {part: self.stored(f"{name}.{part}") for part in PARTS if f"{name}.{part}" in self._places}
        try:
            return unpack(parts, self._packing)
        except (KeyError, RuntimeError, IndexError) as error:
            raise CheckpointError(f"{self._path}: {name} cannot be unpacked: {error}") from error

    def _is_packed(self, name: str) -> bool:
        return f"{name}.qweight" in self._places

    def stored(self, name: str) -> torch.Tensor:
        """A tensor as it is stored."""
        if name not in self._places:
            raise CheckpointError(f"{self._path}: the tensor {name} is missing")
        stored_name, file = self._places[name]
        with safe_open(file, framework="pt") as tensors:
            tensor: torch.Tensor = tensors.get_tensor(stored_name)
        return tensor

    def embedding(self, name: str, num_columns: int) -> torch.Tensor:
        """A copy in the stored dtype: the file may change later."""
        tensor = self.stored(name)
        if tensor.dim() != 2 or tensor.shape[1] != num_columns:
            raise CheckpointError(f"{self._path}: {name} has the unexpected shape {tuple(tensor.shape)}")
        return tensor.to(self._device, copy=True)


def _read_weights(reader: _TensorReader, checkpoint: Checkpoint) -> ModelWeights:
    config, name = checkpoint.text, "language.embed_tokens"
    embedding = reader.embedding(f"{name}.weight", config.hidden_size)
    if len(embedding) != config.vocab_size:
        raise CheckpointError(f"{checkpoint.path}: {len(embedding)} embeddings for {config.vocab_size} tokens")
    tied = config.tie_word_embeddings or not reader.has_linear("lm_head")
    layers = tuple(_read_layer(reader, config, index) for index in range(config.num_hidden_layers))
    head_name = name if tied else "lm_head"
    norm, head = reader.normed_linear("language.norm.weight", [head_name], config.hidden_size, "head")
    return ModelWeights(embedding, layers, norm, head)


def _read_layer(reader: _TensorReader, config: TextConfig, index: int) -> LayerWeights:
    prefix = f"language.layers.{index}."
    attention, mlp = f"{prefix}self_attn.", f"{prefix}mlp."
    qkv = [f"{attention}{part}_proj" for part in ("q", "k", "v")]
    gate_up = [f"{mlp}gate_proj", f"{mlp}up_proj"]
    normed, hidden_size = reader.normed_linear, config.hidden_size
    return LayerWeights(
        *normed(f"{prefix}input_layernorm.weight", qkv, hidden_size, "qkv"),
        reader.linear(f"{attention}o_proj", config.num_attention_heads * config.head_dim),
        *normed(f"{prefix}post_attention_layernorm.weight", gate_up, hidden_size, "gate_up"),
        reader.linear(f"{mlp}down_proj", config.intermediate_size),
    )
