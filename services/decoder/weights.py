"""Loading the language half of a checkpoint; the vision half is never read."""

import torch
from safetensors import safe_open

from services.common.checkpoint import Checkpoint, CheckpointError, canonical_name
from services.decoder.language_model import LanguageModel, LayerWeights, ModelWeights

ACTIVATIONS = {"silu", "swish"}


def load_language_model(checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device) -> LanguageModel:
    """Read and fuse the language weights. CheckpointError names a tensor that is missing or misshapen."""
    if checkpoint.text.hidden_act not in ACTIVATIONS:
        raise CheckpointError(f"{checkpoint.path}: hidden_act {checkpoint.text.hidden_act!r} is not supported")
    return LanguageModel(checkpoint.text, _read_weights(_TensorReader(checkpoint, dtype, device), checkpoint))


class _TensorReader:
    """Reads tensors by canonical name, one at a time, into their final place."""

    def __init__(self, checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device) -> None:
        files = checkpoint.tensor_files(("language.", "lm_head."))
        self._places = {canonical_name(name): (name, file) for name, file in files.items()}
        self._path, self._dtype, self._device = checkpoint.path, dtype, device

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def read(self, names: list[str], columns: int | None) -> torch.Tensor:
        """Stack tensors along their first axis. `columns` is the second axis' size, None for vectors."""
        parts = [self._get(name) for name in names]
        for name, part in zip(names, parts, strict=True):
            if part.dim() != (1 if columns is None else 2) or (columns is not None and part.shape[1] != columns):
                raise CheckpointError(f"{self._path}: {name} has the unexpected shape {tuple(part.shape)}")
        shape = (sum(len(part) for part in parts), *parts[0].shape[1:])
        stacked = torch.empty(shape, dtype=self._dtype, device=self._device)
        torch._foreach_copy_(list(torch.split(stacked, [len(part) for part in parts])), parts)
        return stacked

    def _get(self, name: str) -> torch.Tensor:
        if name not in self._places:
            raise CheckpointError(f"{self._path}: the tensor {name} is missing")
        stored_name, file = self._places[name]
        with safe_open(file, framework="pt") as tensors:
            tensor: torch.Tensor = tensors.get_tensor(stored_name)
        return tensor


def _read_weights(reader: _TensorReader, checkpoint: Checkpoint) -> ModelWeights:
    config = checkpoint.text
    embedding = reader.read(["language.embed_tokens.weight"], config.hidden_size)
    if embedding.shape[0] != config.vocab_size:
        raise CheckpointError(f"{checkpoint.path}: {len(embedding)} embeddings for {config.vocab_size} tokens")
    tied = config.tie_word_embeddings or "lm_head.weight" not in reader
    return ModelWeights(
        embedding=embedding,
        layers=tuple(_read_layer(reader, checkpoint, index) for index in range(config.num_hidden_layers)),
        norm=reader.read(["language.norm.weight"], None),
        head=embedding if tied else reader.read(["lm_head.weight"], config.hidden_size),
    )


def _read_layer(reader: _TensorReader, checkpoint: Checkpoint, index: int) -> LayerWeights:
    config, prefix = checkpoint.text, f"language.layers.{index}."
    attention = [f"{prefix}self_attn.{part}_proj" for part in ("q", "k", "v")]
    return LayerWeights(
        input_norm=reader.read([f"{prefix}input_layernorm.weight"], None),
        qkv=reader.read([f"{name}.weight" for name in attention], config.hidden_size),
        qkv_bias=reader.read([f"{name}.bias" for name in attention], None),
        output=reader.read([f"{prefix}self_attn.o_proj.weight"], config.num_attention_heads * config.head_dim),
        post_norm=reader.read([f"{prefix}post_attention_layernorm.weight"], None),
        gate_up=reader.read([f"{prefix}mlp.gate_proj.weight", f"{prefix}mlp.up_proj.weight"], config.hidden_size),
        down=reader.read([f"{prefix}mlp.down_proj.weight"], config.intermediate_size),
    )
