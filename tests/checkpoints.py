"""Random Qwen2-VL checkpoints, small and in the forms that published ones have."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

# Qwen2's control tokens, in the order of their ids.
CONTROL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
# How Qwen2's tokenizer.json splits text before merging bytes.
QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# What Qwen2-VL's template means: a default system turn, and a placeholder for each image and video.
CHAT_TEMPLATE = (
    "{% set image_count = namespace(value=0) %}{% set video_count = namespace(value=0) %}"
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n{% else %}"
    "{% for content in message['content'] %}"
    "{% if content['type'] == 'image' or 'image' in content or 'image_url' in content %}"
    "{% set image_count.value = image_count.value + 1 %}"
    "{% if add_vision_id %}Picture {{ image_count.value }}: {% endif %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif content['type'] == 'video' or 'video' in content %}"
    "{% set video_count.value = video_count.value + 1 %}"
    "{% if add_vision_id %}Video {{ video_count.value }}: {% endif %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CORPUS = (
    "You are a helpful assistant. What can you see in this picture? Describe the image. Which shape is red, and where?",
    "A blue circle, a green square and a yellow triangle are on the left, on the right, at the top, at the bottom.",
    'system user assistant {"name": "ANNA BERG", "number": "X1234567", "born": "1990-01-31"} Which digit? Video 1: 2:',
    "Does the shape move to the left or to the right? Was the first picture the same as the second one? No. Yes.",
    "Größe, naïve, 東京, Привет, 😀🙂 — it's, we're, I'll, don't\n\n\tindented    text",
)
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True, slots=True)
class CheckpointSpec:
    """What a checkpoint looks like, on disk and inside."""

    layout: Literal["flat", "nested"] = "flat"
    weight_names: Literal["old", "new"] = "old"
    tied: bool = True
    num_shards: int = 1
    dtype: str = "float32"
    hidden: int = 64
    layers: int = 2
    heads: int = 4
    kv_heads: int = 2
    intermediate: int = 128
    vision_depth: int = 2
    vision_dim: int = 64
    vision_heads: int = 4
    patch_size: int = 14
    merge_size: int = 2
    temporal_patch_size: int = 2
    min_pixels: int = 4 * 28 * 28
    max_pixels: int = 16384 * 28 * 28
    greedy: bool = True
    video_preprocessor: bool = False
    max_context: int = 32768
    seed: int = 0

    @property
    def head_dim(self) -> int:
        """Width of one attention head of the language model."""
        return self.hidden // self.heads

    @property
    def mrope_section(self) -> list[int]:
        """Rotary frequencies for time, height and width: the published shares 16, 24, 24 of 64."""
        half = self.head_dim // 2
        side = half * 3 // 8
        return [half - 2 * side, side, side]


# A tower that dwarfs its language model, and the reverse: who loads what shows in resident memory (about 100 MiB).
LARGE_VISION = CheckpointSpec(vision_depth=8, vision_dim=512, vision_heads=8)
LARGE_LANGUAGE = CheckpointSpec(hidden=512, layers=8, heads=8, intermediate=1536, tied=False)


def build_checkpoint(folder: Path, spec: CheckpointSpec = CheckpointSpec()) -> Path:
    """Writes a checkpoint in Hugging Face's format into `folder` and returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer()
    write_json(folder / "config.json", config_json(spec, tokenizer))
    write_json(folder / "generation_config.json", generation_json(spec, tokenizer))
    write_json(folder / "preprocessor_config.json", preprocessor_json(spec))
    if spec.video_preprocessor:
        write_json(folder / "video_preprocessor_config.json", video_preprocessor_json(spec))
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", tokenizer_json(tokenizer))
    write_json(folder / "chat_template.json", {"chat_template": CHAT_TEMPLATE})
    write_weights(folder, spec, tokenizer.get_vocab_size())
    return folder


def write_json(path: Path, value: object) -> None:
    """Writes `value` as indented JSON."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False), encoding="utf-8")


def build_tokenizer() -> Tokenizer:
    """A byte-level BPE in Qwen2's manner with a vocabulary of a few hundred; always the same."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=400, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens(list(CONTROL_TOKENS))
    return tokenizer


def config_json(spec: CheckpointSpec, tokenizer: Tokenizer) -> dict[str, Any]:
    """config.json: everything on one level as published in 2024, or with `text_config` as transformers 5 saves it."""
    rope = {"rope_type": "default", "type": "mrope", "mrope_section": spec.mrope_section}
    text = {
        "vocab_size": tokenizer.get_vocab_size(),
        "hidden_size": spec.hidden,
        "intermediate_size": spec.intermediate,
        "num_hidden_layers": spec.layers,
        "num_attention_heads": spec.heads,
        "num_key_value_heads": spec.kv_heads,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": spec.max_context,
        "max_window_layers": spec.layers,
        "use_sliding_window": False,
        "tie_word_embeddings": spec.tied,
        "bos_token_id": tokenizer.token_to_id("<|endoftext|>"),
        "eos_token_id": tokenizer.token_to_id("<|im_end|>"),
    }
    config: dict[str, Any] = {
        "architectures": ["Qwen2VLForConditionalGeneration"],
        "model_type": "qwen2_vl",
        "tie_word_embeddings": spec.tied,
        "vision_start_token_id": tokenizer.token_to_id("<|vision_start|>"),
        "vision_end_token_id": tokenizer.token_to_id("<|vision_end|>"),
        "vision_token_id": tokenizer.token_to_id("<|vision_pad|>"),
        "image_token_id": tokenizer.token_to_id("<|image_pad|>"),
        "video_token_id": tokenizer.token_to_id("<|video_pad|>"),
        "vision_config": vision_json(spec),
    }
    if spec.layout == "nested":
        text_config = {**text, "model_type": "qwen2_vl_text", "rope_parameters": {**rope, "rope_theta": 100.0}}
        return {**config, "dtype": spec.dtype, "text_config": text_config}
    return {**config, **text, "torch_dtype": spec.dtype, "rope_theta": 100.0, "rope_scaling": rope}


def vision_json(spec: CheckpointSpec) -> dict[str, Any]:
    """`vision_config`, where `hidden_size` is the language model's width."""
    return {
        "model_type": "qwen2_vl",
        "depth": spec.vision_depth,
        "embed_dim": spec.vision_dim,
        "hidden_size": spec.hidden,
        "hidden_act": "quick_gelu",
        "in_chans": 3,
        "in_channels": 3,
        "mlp_ratio": 4,
        "num_heads": spec.vision_heads,
        "patch_size": spec.patch_size,
        "spatial_patch_size": spec.patch_size,
        "spatial_merge_size": spec.merge_size,
        "temporal_patch_size": spec.temporal_patch_size,
    }


def generation_json(spec: CheckpointSpec, tokenizer: Tokenizer) -> dict[str, Any]:
    """generation_config.json: greedy, or sampling as the published checkpoints ask for."""
    ends = [tokenizer.token_to_id(token) for token in ("<|im_end|>", "<|endoftext|>")]
    common = {"bos_token_id": ends[1], "pad_token_id": ends[1], "eos_token_id": ends}
    if spec.greedy:
        return {**common, "do_sample": False}
    sampling = {"do_sample": True, "repetition_penalty": 1.05, "temperature": 0.7, "top_p": 0.8, "top_k": 20}
    return {**common, **sampling}


def preprocessor_json(spec: CheckpointSpec) -> dict[str, Any]:
    """preprocessor_config.json as published."""
    return {
        "min_pixels": spec.min_pixels,
        "max_pixels": spec.max_pixels,
        "patch_size": spec.patch_size,
        "temporal_patch_size": spec.temporal_patch_size,
        "merge_size": spec.merge_size,
        "image_mean": MEAN,
        "image_std": STD,
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen2VLProcessor",
    }


def video_preprocessor_json(spec: CheckpointSpec) -> dict[str, Any]:
    """video_preprocessor_config.json as transformers 5 saves it; the limits are areas, despite their names."""
    size = {"shortest_edge": 16 * 28 * 28, "longest_edge": 64 * 28 * 28}
    return {**preprocessor_json(spec), "size": size, "video_processor_type": "Qwen2VLVideoProcessor"}


def tokenizer_json(tokenizer: Tokenizer) -> dict[str, Any]:
    """tokenizer_config.json with the chat template inside, as published."""
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    added = {str(tokenizer.token_to_id(token)): {"content": token, **flags} for token in CONTROL_TOKENS}
    return {
        "added_tokens_decoder": added,
        "additional_special_tokens": list(CONTROL_TOKENS[1:]),
        "add_prefix_space": False,
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": None,
        "clean_up_tokenization_spaces": False,
        "errors": "replace",
        "model_max_length": 32768,
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "chat_template": CHAT_TEMPLATE,
    }


def write_weights(folder: Path, spec: CheckpointSpec, vocab_size: int) -> None:
    """One model.safetensors, or shards with an index that deals the tensors out in turn."""
    generator = torch.Generator().manual_seed(spec.seed)
    tensors = {name: random_tensor(name, shape, generator, spec) for name, shape in tensor_shapes(spec, vocab_size)}
    if spec.num_shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return
    files = [f"model-{shard:05d}-of-{spec.num_shards:05d}.safetensors" for shard in range(1, spec.num_shards + 1)]
    weight_map = {name: files[place % spec.num_shards] for place, name in enumerate(tensors)}
    for file in files:
        shard = {name: tensor for name, tensor in tensors.items() if weight_map[name] == file}
        save_file(shard, folder / file, metadata={"format": "pt"})
    total = sum(tensor.nbytes for tensor in tensors.values())
    write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map})


def random_tensor(name: str, shape: tuple[int, ...], generator: torch.Generator, spec: CheckpointSpec) -> torch.Tensor:
    """Matrices keep the size of what they multiply, norms are near one, biases near zero: activations stay alive."""
    noise = torch.randn(*shape, generator=generator)
    if len(shape) > 1:
        # Embeddings far apart make the next token depend on more than the last one.
        value = noise * (0.5 if "embed_tokens" in name else 1.4 / math.sqrt(math.prod(shape[1:])))
    else:
        value = 0.1 * noise + (1.0 if "norm" in name or "ln_q.weight" in name else 0.0) * (not name.endswith("bias"))
    dtype: torch.dtype = getattr(torch, spec.dtype)
    return value.to(dtype)


def tensor_shapes(spec: CheckpointSpec, vocab_size: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """(name on disk, shape) of every tensor; names of 2024 (`visual.`, `model.`) or of transformers 5."""
    visual, language = {
        "old": ("visual.", "model."),
        "new": ("model.visual.", "model.language_model."),
    }[spec.weight_names]
    yield from ((visual + name, shape) for name, shape in vision_shapes(spec))
    yield from ((language + name, shape) for name, shape in language_shapes(spec, vocab_size))
    if not spec.tied:
        yield "lm_head.weight", (vocab_size, spec.hidden)


def vision_shapes(spec: CheckpointSpec) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The vision tower's tensors."""
    dim, merged = spec.vision_dim, spec.vision_dim * spec.merge_size**2
    yield "patch_embed.proj.weight", (dim, 3, spec.temporal_patch_size, spec.patch_size, spec.patch_size)
    for layer in range(spec.vision_depth):
        block = f"blocks.{layer}."
        for norm in ("norm1", "norm2"):
            yield block + norm + ".weight", (dim,)
            yield block + norm + ".bias", (dim,)
        yield from linear(block + "attn.qkv", 3 * dim, dim)
        yield from linear(block + "attn.proj", dim, dim)
        yield from linear(block + "mlp.fc1", 4 * dim, dim)
        yield from linear(block + "mlp.fc2", dim, 4 * dim)
    yield "merger.ln_q.weight", (dim,)
    yield "merger.ln_q.bias", (dim,)
    yield from linear("merger.mlp.0", merged, merged)
    yield from linear("merger.mlp.2", spec.hidden, merged)


def language_shapes(spec: CheckpointSpec, vocab_size: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The language model's tensors, its head left out."""
    hidden, kv_width = spec.hidden, spec.kv_heads * spec.head_dim
    yield "embed_tokens.weight", (vocab_size, hidden)
    for layer in range(spec.layers):
        block = f"layers.{layer}."
        yield from linear(block + "self_attn.q_proj", hidden, hidden)
        yield from linear(block + "self_attn.k_proj", kv_width, hidden)
        yield from linear(block + "self_attn.v_proj", kv_width, hidden)
        yield block + "self_attn.o_proj.weight", (hidden, hidden)
        yield block + "mlp.gate_proj.weight", (spec.intermediate, hidden)
        yield block + "mlp.up_proj.weight", (spec.intermediate, hidden)
        yield block + "mlp.down_proj.weight", (hidden, spec.intermediate)
        yield block + "input_layernorm.weight", (hidden,)
        yield block + "post_attention_layernorm.weight", (hidden,)
    yield "norm.weight", (hidden,)


def linear(name: str, rows: int, columns: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """A linear layer with a bias."""
    yield name + ".weight", (rows, columns)
    yield name + ".bias", (rows,)
