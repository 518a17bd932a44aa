"""Checkpoint folders of every form."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

from services.common.checkpoint import Checkpoint, CheckpointError, ImageLimits, canonical_name
from tests.checkpoints import CheckpointSpec, build_checkpoint

FLAT = CheckpointSpec()
NESTED = CheckpointSpec(layout="nested", weight_names="new", num_shards=2)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A flat checkpoint that a test may change."""
    return build_checkpoint(tmp_path / "flat", FLAT)


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a JSON file in place."""
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def test_flat_and_nested_read_the_same(tmp_path: Path) -> None:
    """Both layouts and both ways to name weights say the same of the same model."""
    flat = Checkpoint.open(str(build_checkpoint(tmp_path / "flat", FLAT)))
    nested = Checkpoint.open(str(build_checkpoint(tmp_path / "nested", NESTED)))
    assert (flat.vision, flat.text, flat.special_tokens) == (nested.vision, nested.text, nested.special_tokens)
    assert (flat.preprocessor, flat.generation) == (nested.preprocessor, nested.generation)
    names = [sorted(canonical_name(name) for name in checkpoint.tensors) for checkpoint in (flat, nested)]
    assert names[0] == names[1]


def test_reads_what_transformers_saves(tmp_path: Path) -> None:
    """The files that this transformers writes are understood, down to every number."""
    rope = {"rope_type": "default", "type": "mrope", "mrope_section": [2, 3, 3], "rope_theta": 5e5}
    text = {"vocab_size": 300, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "eos_token_id": 2, "rope_parameters": rope}
    vision = {"depth": 1, "embed_dim": 32, "hidden_size": 64, "num_heads": 2, "patch_size": 8}
    config = Qwen2VLConfig(text_config=text | heads, vision_config=vision, image_token_id=5, tie_word_embeddings=True)
    model: Any = Qwen2VLForConditionalGeneration(config)
    model.to(torch.bfloat16).save_pretrained(tmp_path)
    processor = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "patch_size": 8}
    size = {"size": {"shortest_edge": 100, "longest_edge": 200}}
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": processor | size}))
    checkpoint = Checkpoint.open(str(tmp_path))
    assert (checkpoint.text.rope_theta, checkpoint.text.mrope_section) == (5e5, (2, 3, 3))
    assert (checkpoint.text.head_dim, checkpoint.text.tie_word_embeddings) == (16, True)
    assert checkpoint.vision.embed_dim == 32
    assert (checkpoint.image_token_id, checkpoint.weight_dtype) == (5, "bfloat16")
    assert checkpoint.generation.eos_token_ids == (2,)
    assert checkpoint.preprocessor.image == ImageLimits(100, 200)
    assert len(checkpoint.tensor_files(["language.", "lm_head."])) == 14
    assert len(checkpoint.tensor_files(["visual."])) == 19


@pytest.mark.parametrize(
    ("stored", "canonical"),
    [
        ("visual.blocks.0.norm1.weight", "visual.blocks.0.norm1.weight"),
        ("model.visual.blocks.0.norm1.weight", "visual.blocks.0.norm1.weight"),
        ("model.layers.0.mlp.up_proj.weight", "language.layers.0.mlp.up_proj.weight"),
        ("model.language_model.norm.weight", "language.norm.weight"),
        ("lm_head.weight", "lm_head.weight"),
    ],
)
def test_names_are_made_one(stored: str, canonical: str) -> None:
    """Old and new weight names have one canonical form."""
    assert canonical_name(stored) == canonical


def test_limits_come_from_the_checkpoint_or_the_rules(folder: Path) -> None:
    """min_pixels, then size, then the published defaults; videos have their own."""
    path = folder / "preprocessor_config.json"
    edit(path, lambda data: data.update(min_pixels=784, max_pixels=7840))
    assert Checkpoint.open(str(folder)).preprocessor.image == ImageLimits(784, 7840)
    edit(path, lambda data: (data.pop("min_pixels"), data.pop("max_pixels"), data.pop("size", None)))
    preprocessor = Checkpoint.open(str(folder)).preprocessor
    assert preprocessor.image == ImageLimits(3136, 12845056)
    assert preprocessor.video == ImageLimits(128 * 784, 768 * 784)
    (folder / "video_preprocessor_config.json").write_text('{"size": {"shortest_edge": 784, "longest_edge": 1568}}')
    assert Checkpoint.open(str(folder)).preprocessor.video == ImageLimits(784, 1568)


def test_the_preprocessing_version_follows_what_changes_pixels(folder: Path) -> None:
    """Another mean is another version; other limits are not, for sizes stand in the keys themselves."""
    path = folder / "preprocessor_config.json"
    version = Checkpoint.open(str(folder)).preprocessor.version
    edit(path, lambda data: data.update(max_pixels=784000))
    assert Checkpoint.open(str(folder)).preprocessor.version == version
    edit(path, lambda data: data.update(image_mean=[0.5, 0.5, 0.5]))
    assert Checkpoint.open(str(folder)).preprocessor.version != version


@pytest.mark.parametrize(("stored", "expected"), [(7, (7,)), ([7, 8], (7, 8))])
def test_end_ids_are_one_or_many(folder: Path, stored: Any, expected: tuple[int, ...]) -> None:
    """generation_config.json names one end id or a list."""
    edit(folder / "generation_config.json", lambda data: data.update(eos_token_id=stored))
    assert Checkpoint.open(str(folder)).generation.eos_token_ids == expected


def test_end_ids_without_a_generation_config(folder: Path) -> None:
    """config.json's id is next, then the tokenizer's own end token."""
    (folder / "generation_config.json").unlink()
    edit(folder / "config.json", lambda data: data.update(eos_token_id=9))
    assert Checkpoint.open(str(folder)).generation.eos_token_ids == (9,)
    edit(folder / "config.json", lambda data: data.pop("eos_token_id"))
    tokenizer = {"eos_token": {"content": "<end>"}, "added_tokens_decoder": {"11": {"content": "<end>"}}}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    assert Checkpoint.open(str(folder)).generation.eos_token_ids == (11,)


def quantized(method: str, **fields: Any) -> dict[str, Any]:
    """A config.json that tells of packed weights."""
    return {"quantization_config": {"quant_method": method, **fields}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "qwen2_5_vl"}, r"config.json: model_type is 'qwen2_5_vl'"),
        (quantized("bitsandbytes"), r"config.json: quantization_config.quant_method is 'bitsandbytes'"),
        (quantized("awq", version="gemv"), r"config.json: quantization_config.version is 'gemv'"),
        (quantized("awq", zero_point=False), r"config.json: quantization_config.zero_point is false"),
        (quantized("awq", bits=8), r"config.json: quantization_config.bits is 8; 4 is supported"),
        (quantized("gptq", bits=3), r"config.json: quantization_config.bits is 3; 4 or 8 is supported"),
        (quantized("gptq", checkpoint_format="marlin"), r"config.json: quantization_config.checkpoint_format"),
        (quantized("gptq", dynamic={"-:x": {}}), r"config.json: quantization_config.dynamic"),
        ({"use_sliding_window": True}, r"config.json: use_sliding_window"),
        ({"hidden_size": "64"}, r"config.json: hidden_size"),
        ({"vocab_size": None}, r"config.json: vocab_size is missing"),
        ({"rope_scaling": {"type": "yarn", "mrope_section": [2, 3, 3]}}, r"config.json: rope_scaling.type is 'yarn'"),
        ({"rope_scaling": {"type": "mrope", "mrope_section": [2, 3]}}, r"config.json: rope_scaling.mrope_section"),
    ],
)
def test_what_cannot_be_run_is_refused_by_field(folder: Path, change: dict[str, Any], message: str) -> None:
    """An error names the file and the field."""
    edit(folder / "config.json", lambda data: data.update(change))
    with pytest.raises(CheckpointError, match=message):
        Checkpoint.open(str(folder))


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
def test_missing_files_are_named(folder: Path, name: str) -> None:
    """A missing file stands in the error."""
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=name):
        Checkpoint.open(str(folder))


def test_missing_and_damaged_weights_are_named(folder: Path, tmp_path: Path) -> None:
    """Weights that are absent, cut short, or named by an index and not there are told by file."""
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"model.safetensors: is truncated"):
        Checkpoint.open(str(folder)).digest()
    weights.write_bytes(b"garbage")
    with pytest.raises(CheckpointError, match=r"model.safetensors: is no safetensors file"):
        Checkpoint.open(str(folder)).digest()
    weights.unlink()
    with pytest.raises(CheckpointError, match="has no weights"):
        Checkpoint.open(str(folder)).digest()
    sharded = build_checkpoint(tmp_path / "sharded", NESTED)
    shard = next(sharded.glob("model-*.safetensors"))
    shard.unlink()
    with pytest.raises(CheckpointError, match=shard.name):
        Checkpoint.open(str(sharded)).tensor_files(["visual."])


def test_no_such_folder() -> None:
    """A path that is not there is no request to the hub."""
    with pytest.raises(CheckpointError, match="no such folder"):
        Checkpoint.open("./nowhere")


def test_the_hub_out_of_reach(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An id that is neither cached nor to be had is one clear error."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match="someone/some-model"):
        Checkpoint.open("someone/some-model")


def test_digests_follow_the_weights(tmp_path: Path) -> None:
    """A digest is stable, does not depend on sharding or names, and changes with the weights it is of."""
    flat = Checkpoint.open(str(build_checkpoint(tmp_path / "flat", FLAT)))
    nested = Checkpoint.open(str(build_checkpoint(tmp_path / "nested", NESTED)))
    other = Checkpoint.open(str(build_checkpoint(tmp_path / "other", CheckpointSpec(seed=1))))
    assert flat.digest() == Checkpoint.open(str(tmp_path / "flat")).digest()
    assert flat.vision_digest() == nested.vision_digest() != other.vision_digest()
    assert flat.digest() != other.digest()
