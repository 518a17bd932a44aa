from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from services.common.checkpoint import Checkpoint, CheckpointError
from services.encoder.weights import choose_dtype, load_vision
from tests.checkpoints import CheckpointSpec, build_checkpoint


def load(folder: Path, spec: CheckpointSpec | None = None, dtype: str = "auto") -> str:
    if spec is not None:
        build_checkpoint(folder, spec)
    return load_vision(Checkpoint.open(str(folder)), dtype=dtype, device="cpu").digest


def test_the_digest_is_of_the_weights_alone(tmp_path: Path) -> None:
    """Layout, names, shards and the dtype of the arithmetic do not change it; the weights do."""
    spec = CheckpointSpec(dtype="bfloat16")
    digest = load(tmp_path / "a", spec)
    other = CheckpointSpec(dtype="bfloat16", layout="nested", weight_names="new", num_shards=3)
    assert digest == load(tmp_path / "b", other)
    assert digest == load(tmp_path / "a", dtype="bfloat16")
    assert digest != load(tmp_path / "c", CheckpointSpec(dtype="bfloat16", seed=1))


def test_one_changed_bit_changes_the_digest(tmp_path: Path) -> None:
    """Every byte counts, not samples of them."""
    digest = load(tmp_path, CheckpointSpec())
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    tensors["visual.blocks.0.mlp.fc1.weight"][7, 7] += 1e-3
    save_file(tensors, path)
    assert load(tmp_path) != digest


def test_the_language_model_is_not_read(tmp_path: Path) -> None:
    """Only vision tensors are in memory, in the arithmetic that was chosen."""
    build_checkpoint(tmp_path, CheckpointSpec(dtype="float16"))
    vision = load_vision(Checkpoint.open(str(tmp_path)), dtype="auto", device="cpu")
    assert vision.dtype == "float32"
    assert {parameter.dtype for parameter in vision.model.parameters()} == {torch.float32}
    assert not [name for name, _ in vision.model.named_parameters() if "language" in name or "lm_head" in name]


def test_auto_is_fp32_on_the_cpu_and_the_checkpoints_own_on_cuda() -> None:
    """16-bit arithmetic is emulated on most CPUs."""
    assert choose_dtype("auto", "bfloat16", torch.device("cpu")) == "float32"
    assert choose_dtype("auto", "bfloat16", torch.device("cuda")) == "bfloat16"
    assert choose_dtype("float16", "bfloat16", torch.device("cpu")) == "float16"


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    """A damaged checkpoint fails at start with the tensor's name."""
    build_checkpoint(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    del tensors["visual.merger.mlp.0.bias"]
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match=r"merger\.mlp\.0\.bias"):
        load(tmp_path)
