from pathlib import Path

import pytest
import torch
from transformers import Qwen2VLForConditionalGeneration

from services.common.checkpoint import Checkpoint
from services.encoder import vision_model
from services.encoder.vision_model import VisionTransformer
from services.encoder.weights import load_vision
from tests.checkpoints import CheckpointSpec, build_checkpoint

SPECS = {
    "odd depth": CheckpointSpec(vision_depth=3),
    "nested": CheckpointSpec(layout="nested", weight_names="new", num_shards=2),
    "small patches, merge 3": CheckpointSpec(patch_size=8, merge_size=3, vision_depth=1),
    "no merge, three frames a slice": CheckpointSpec(merge_size=1, temporal_patch_size=3, vision_heads=2),
    "wide": CheckpointSpec(vision_dim=320, vision_heads=4, vision_depth=2),
}
# slices of one item stand side by side; sizes repeat, differ, and are equal in number of patches but not in shape
GRIDS = [(1, 6, 6), (1, 6, 6), (3, 6, 12), (1, 12, 6), (1, 18, 24)]


def random_patches(model: VisionTransformer, num_patches: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(num_patches, model.patch_dim, generator=generator)


@torch.inference_mode()
def reference(folder: Path, patches: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    visual = Qwen2VLForConditionalGeneration.from_pretrained(folder, dtype=dtype).model.visual.eval()
    out: torch.Tensor = visual(patches, grid_thw=torch.tensor(GRIDS)).pooler_output
    return out


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
def test_equals_transformers(spec: CheckpointSpec, tmp_path: Path) -> None:
    """Embeddings of a packed batch are transformers' within 1e-4 in float32, for every shape of network."""
    folder = build_checkpoint(tmp_path, spec)
    model = load_vision(Checkpoint.open(str(folder)), dtype="float32", device="cpu").model
    patches = random_patches(model, sum(t * h * w for t, h, w in GRIDS))
    out = model(patches, [(h, w) for t, h, w in GRIDS for _ in range(t)])
    torch.testing.assert_close(out, reference(folder, patches), atol=1e-4, rtol=0)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_near_the_reference(dtype: str, tmp_path: Path) -> None:
    """In 16 bits the direction of every row is the reference's own."""
    folder = build_checkpoint(tmp_path, CheckpointSpec(dtype=dtype))
    model = load_vision(Checkpoint.open(str(folder)), dtype=dtype, device="cpu").model
    patches = random_patches(model, sum(t * h * w for t, h, w in GRIDS))
    out = model(patches, [(h, w) for t, h, w in GRIDS for _ in range(t)]).float()
    expected = reference(folder, patches, getattr(torch, dtype)).float()
    assert torch.cosine_similarity(out, expected).min() > 0.999


def test_a_slice_does_not_see_the_others(tmp_path: Path) -> None:
    """Alone and in any company a slice has the same embedding: what makes slices cacheable."""
    model = load_vision(Checkpoint.open(str(build_checkpoint(tmp_path))), dtype="float32", device="cpu").model
    patches = random_patches(model, 3 * 36)
    together = model(patches, [(6, 6)] * 3)
    alone = torch.cat([model(part, [(6, 6)]) for part in torch.split(patches, 36)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


def test_rows_at_once_make_no_difference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Linear layers take any number of rows at once: the embeddings are the same."""
    model = load_vision(Checkpoint.open(str(build_checkpoint(tmp_path))), dtype="float32", device="cpu").model
    patches = random_patches(model, 36 + 72)
    at_once = model(patches, [(6, 6), (6, 12)])
    monkeypatch.setattr(vision_model, "_HIDDEN_IN_CACHE", 25 * int(model.config.embed_dim * model.config.mlp_ratio))
    torch.testing.assert_close(model(patches, [(6, 6), (6, 12)]), at_once, atol=1e-5, rtol=0)
