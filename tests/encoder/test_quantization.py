"""int8: near fp32 in every row, never mixed up with it, and refused where it cannot run."""

from pathlib import Path

import pytest
import torch

from services.common.checkpoint import Checkpoint
from services.common.linear import Quantization, can_quantize
from services.encoder import compiled
from services.encoder.weights import Vision, load_vision
from tests.checkpoints import CheckpointSpec, build_checkpoint

pytestmark = pytest.mark.skipif(not can_quantize(), reason="oneDNN has no int8 kernels for this processor")

DEMO = Path(__file__).resolve().parents[2] / "models" / "demo"
GRIDS = [(6, 6), (6, 12), (18, 24)]


def load(folder: Path, quantization: Quantization) -> Vision:
    return load_vision(Checkpoint.open(str(folder)), dtype="float32", device="cpu", quantization=quantization)


@pytest.fixture(params=["random", "demo"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A random checkpoint, and the trained one."""
    return DEMO if request.param == "demo" else build_checkpoint(tmp_path, CheckpointSpec(vision_depth=3))


def test_rows_point_where_fp32_points(folder: Path) -> None:
    """The cosine of every row with fp32's is at least 0.99."""
    generator = torch.Generator().manual_seed(1)
    models = [load(folder, "int8").model, load(folder, "none").model]
    patches = torch.randn(sum(h * w for h, w in GRIDS), models[0].patch_dim, generator=generator)
    quantized, plain = (model(patches, GRIDS) for model in models)
    assert not torch.equal(quantized, plain)
    assert torch.cosine_similarity(quantized, plain).min() >= 0.99


@pytest.mark.parametrize(("quantization", "has_kernels"), [("int8", True), ("int8", False), ("none", True)])
def test_attention_is_rounded_beside_int8_alone(
    quantization: Quantization, has_kernels: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Heads are pairs of bf16 where the layers are int8 and the processor multiplies such; else they are float32."""
    monkeypatch.setattr(compiled, "can_pair", lambda *_: has_kernels)
    packing = load(DEMO, quantization).model._pack(GRIDS)
    assert packing.heads.dtype == (torch.int32 if quantization == "int8" and has_kernels else torch.float32)


def test_the_cache_tells_them_apart(tmp_path: Path) -> None:
    """int8 has a digest of its own, so that no cached row is taken for one of the other kind."""
    folder = build_checkpoint(tmp_path)
    assert load(folder, "int8").digest != load(folder, "none").digest


def test_refused_beside_another_dtype(tmp_path: Path) -> None:
    """int8 in bfloat16 ends the process with the name of the variable."""
    checkpoint = Checkpoint.open(str(build_checkpoint(tmp_path)))
    with pytest.raises(SystemExit, match="DIPTYCH_ENCODER_QUANTIZE"):
        load_vision(checkpoint, dtype="bfloat16", device="cpu", quantization="int8")
