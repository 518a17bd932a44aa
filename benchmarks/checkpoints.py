"""Random checkpoints at real shapes: what speed depends on, without anything to download.

There is no tokenizer. For the engine's figures the vision tower has one block, for the encoder's the language model
has one layer: neither depends on the other.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

VOCAB_SIZE = 151_936
END_IDS = [151_645, 151_643]
IMAGE_PAD = 151_655
MAX_TEXT_ID = 151_643  # ids of ordinary text are below


@dataclass(frozen=True, slots=True)
class Shape:
    """A language model's dimensions; its embedding is its head too."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    mrope_section: tuple[int, int, int]
    vision_dim: int
    vision_heads: int
    tower_depth: int
    vision_layers: int = 1

    def for_vision(self) -> "Shape":
        """The whole tower under a language model of one layer."""
        return replace(self, layers=1, vision_layers=self.tower_depth)

    @property
    def head_dim(self) -> int:
        """Width of an attention head."""
        return self.hidden // self.heads

    @property
    def num_layer_weights(self) -> int:
        """Weights of all layers' matrices."""
        attention = self.hidden * (2 * self.heads + 2 * self.kv_heads) * self.head_dim
        return self.layers * (attention + 3 * self.hidden * self.intermediate)

    @property
    def num_head_weights(self) -> int:
        """Weights of the head, which is used once a sampled row."""
        return VOCAB_SIZE * self.hidden

    @property
    def kv_values_per_token(self) -> int:
        """Keys and values of one token, all layers."""
        return 2 * self.layers * self.kv_heads * self.head_dim


SHAPES = {
    "small": Shape(512, 8, 8, 2, 1408, (8, 12, 12), 320, 5, 8),
    "2b": Shape(1536, 28, 12, 2, 8960, (16, 24, 24), 1280, 16, 32),  # Qwen2-VL-2B
}


def ensure_checkpoint(folder: Path, shape: Shape) -> Path:
    """The checkpoint of a shape, written the first time. config.json comes last: where it is, the rest is whole."""
    if not (folder / "config.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        _write_weights(folder / "model.safetensors", shape)
        _write_json(folder / "generation_config.json", {"do_sample": False, "eos_token_id": END_IDS})
        _write_json(folder / "preprocessor_config.json", _preprocessor())
        _write_json(folder / "config.json", _config(shape))
    return folder


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1))


def _write_weights(path: Path, shape: Shape) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, dimensions in _tensor_shapes(shape):
        deviation = 0.02 if "embed_tokens" in name else 1 / math.sqrt(math.prod(dimensions[1:]))
        tensor = torch.empty(dimensions, dtype=torch.bfloat16)
        if len(dimensions) > 1:
            tensors[name] = tensor.normal_(0, deviation, generator=generator)
        else:
            tensors[name] = tensor.fill_(0.0 if name.endswith("bias") else 1.0)
    save_file(tensors, path, metadata={"format": "pt"})


def _tensor_shapes(shape: Shape) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, kv_width = shape.hidden, shape.kv_heads * shape.head_dim
    yield "model.embed_tokens.weight", (VOCAB_SIZE, hidden)
    yield "model.norm.weight", (hidden,)
    for layer in range(shape.layers):
        block = f"model.layers.{layer}."
        for part, rows in (("q", hidden), ("k", kv_width), ("v", kv_width)):
            yield from _linear(f"{block}self_attn.{part}_proj", rows, hidden)
        yield f"{block}self_attn.o_proj.weight", (hidden, hidden)
        for part in ("gate", "up"):
            yield f"{block}mlp.{part}_proj.weight", (shape.intermediate, hidden)
        yield f"{block}mlp.down_proj.weight", (hidden, shape.intermediate)
        for norm in ("input", "post_attention"):
            yield f"{block}{norm}_layernorm.weight", (hidden,)
    yield from _vision_shapes(shape, hidden)


def _vision_shapes(shape: Shape, hidden: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    dim, blocks = shape.vision_dim, [f"visual.blocks.{index}." for index in range(shape.vision_layers)]
    yield "visual.patch_embed.proj.weight", (dim, 3, 2, 14, 14)
    for norm in (*(f"{block}norm{number}" for block in blocks for number in (1, 2)), "visual.merger.ln_q"):
        yield f"{norm}.weight", (dim,)
        yield f"{norm}.bias", (dim,)
    for block in blocks:
        yield from _linear(f"{block}attn.qkv", 3 * dim, dim)
        yield from _linear(f"{block}attn.proj", dim, dim)
        yield from _linear(f"{block}mlp.fc1", 4 * dim, dim)
        yield from _linear(f"{block}mlp.fc2", dim, 4 * dim)
    yield from _linear("visual.merger.mlp.0", 4 * dim, 4 * dim)
    yield from _linear("visual.merger.mlp.2", hidden, 4 * dim)


def _linear(name: str, rows: int, columns: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", (rows, columns)
    yield f"{name}.bias", (rows,)


def _config(shape: Shape) -> dict[str, Any]:
    return {
        "architectures": ["Qwen2VLForConditionalGeneration"],
        "model_type": "qwen2_vl",
        "vocab_size": VOCAB_SIZE,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "rope_scaling": {"type": "mrope", "mrope_section": list(shape.mrope_section)},
        "max_position_embeddings": 32768,
        "max_window_layers": shape.layers,
        "use_sliding_window": False,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "bos_token_id": END_IDS[1],
        "eos_token_id": END_IDS[0],
        "vision_start_token_id": 151_652,
        "vision_end_token_id": 151_653,
        "vision_token_id": 151_654,
        "image_token_id": IMAGE_PAD,
        "video_token_id": 151_656,
        "vision_config": {
            "model_type": "qwen2_vl",
            "depth": shape.vision_layers,
            "embed_dim": shape.vision_dim,
            "hidden_size": shape.hidden,
            "hidden_act": "quick_gelu",
            "in_chans": 3,
            "in_channels": 3,
            "mlp_ratio": 4,
            "num_heads": shape.vision_heads,
            "patch_size": 14,
            "spatial_patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
        },
    }


def _preprocessor() -> dict[str, Any]:
    return {
        "min_pixels": 56 * 56,
        "max_pixels": 28 * 28 * 1280,
        "patch_size": 14,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "image_processor_type": "Qwen2VLImageProcessor",
    }
