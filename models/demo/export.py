"""Write the checkpoint as Qwen2-VL checkpoints are published: flat config, safetensors, tokenizer, template."""

import json
import tempfile
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from tokenizers import Tokenizer

from models.demo.batches import IMAGE_MEAN, IMAGE_STD
from models.demo.network import FRAMES_PER_SLICE, MERGE, PATCH, Network, Shape
from models.demo.picture import CELL
from models.demo.vocabulary import save_tokenizer

TEMPLATE = (
    "{% set image_count = namespace(value=0) %}{% set video_count = namespace(value=0) %}"
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
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
"""The template of the official checkpoints."""
SMALLEST_PICTURE = 4 * CELL**2
LARGEST_PICTURE = 256 * CELL**2


def export(network: Network, tokenizer: Tokenizer, folder: Path) -> None:
    """Write all files beside the folder first, then move each into place: readers never see half a file."""
    with tempfile.TemporaryDirectory(dir=folder, prefix=".export-") as name:
        written = Path(name)
        write(network, tokenizer, written)
        for file in written.iterdir():
            file.chmod(0o644)
            file.replace(folder / file.name)


def write(network: Network, tokenizer: Tokenizer, folder: Path) -> None:
    """All files of the checkpoint."""
    weights = {name: tensor.detach().clone().contiguous() for name, tensor in network.state_dict().items()}
    save_file(weights, str(folder / "model.safetensors"), metadata={"format": "pt"})
    save_tokenizer(tokenizer, folder, TEMPLATE)
    settings = {
        "config": model_config(network.model.shape, tokenizer),
        "generation_config": generation_config(tokenizer),
        "chat_template": {"chat_template": TEMPLATE},
        "preprocessor_config": picture_config(),
        "video_preprocessor_config": video_config(),
    }
    for stem, content in settings.items():
        (folder / f"{stem}.json").write_text(json.dumps(content, indent=2) + "\n")


def model_config(shape: Shape, tokenizer: Tokenizer) -> dict[str, Any]:
    """The flat form of published checkpoints."""
    token = tokenizer.token_to_id
    return {
        "architectures": ["Qwen2VLForConditionalGeneration"],
        "attention_dropout": 0.0,
        "bos_token_id": token("<|endoftext|>"),
        "eos_token_id": token("<|im_end|>"),
        "vision_start_token_id": token("<|vision_start|>"),
        "vision_end_token_id": token("<|vision_end|>"),
        "vision_token_id": token("<|vision_pad|>"),
        "image_token_id": token("<|image_pad|>"),
        "video_token_id": token("<|video_pad|>"),
        "hidden_act": "silu",
        "hidden_size": shape.hidden,
        "initializer_range": 0.05,
        "intermediate_size": shape.intermediate,
        "max_position_embeddings": 8192,
        "max_window_layers": shape.num_layers,
        "model_type": "qwen2_vl",
        "num_attention_heads": shape.num_heads,
        "num_hidden_layers": shape.num_layers,
        "num_key_value_heads": shape.num_kv_heads,
        "rms_norm_eps": shape.rms_eps,
        "rope_theta": shape.rope_theta,
        "sliding_window": 8192,
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
        "transformers_version": "4.41.2",
        "use_cache": True,
        "use_sliding_window": False,
        "vision_config": {
            "depth": shape.vision_depth,
            "embed_dim": shape.vision_width,
            "hidden_act": "quick_gelu",
            "hidden_size": shape.hidden,
            "in_channels": 3,
            "in_chans": 3,
            "mlp_ratio": shape.vision_mlp_ratio,
            "model_type": "qwen2_vl",
            "num_heads": shape.vision_heads,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "spatial_patch_size": PATCH,
            "temporal_patch_size": FRAMES_PER_SLICE,
        },
        "rope_scaling": {"type": "mrope", "mrope_section": list(shape.mrope_section)},
        "vocab_size": shape.vocab_size,
    }


def generation_config(tokenizer: Tokenizer) -> dict[str, Any]:
    """As official checkpoints, but greedy: short exact answers gain nothing from sampling."""
    end, pad = tokenizer.token_to_id("<|im_end|>"), tokenizer.token_to_id("<|endoftext|>")
    return {"bos_token_id": pad, "pad_token_id": pad, "do_sample": False, "eos_token_id": [end, pad]}


def picture_config() -> dict[str, Any]:
    """Official limits below; above, no more than a small tower can make use of."""
    return {
        "min_pixels": SMALLEST_PICTURE,
        "max_pixels": LARGEST_PICTURE,
        "patch_size": PATCH,
        "temporal_patch_size": FRAMES_PER_SLICE,
        "merge_size": MERGE,
        "image_mean": list(IMAGE_MEAN),
        "image_std": list(IMAGE_STD),
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen2VLProcessor",
    }


def video_config() -> dict[str, Any]:
    """Areas per frame: clips of 56 pixels a side are seen at their own size."""
    return {
        "size": {"shortest_edge": SMALLEST_PICTURE, "longest_edge": LARGEST_PICTURE},
        "patch_size": PATCH,
        "temporal_patch_size": FRAMES_PER_SLICE,
        "merge_size": MERGE,
        "image_mean": list(IMAGE_MEAN),
        "image_std": list(IMAGE_STD),
        "video_processor_type": "Qwen2VLVideoProcessor",
        "processor_class": "Qwen2VLProcessor",
    }
