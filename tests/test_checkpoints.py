"""The checkpoints that the tests build are real Qwen2-VL checkpoints, and their answers depend on what they see."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, Qwen2VLForConditionalGeneration

from tests.checkpoints import CONTROL_TOKENS, CheckpointSpec, build_checkpoint, build_tokenizer

SPECS = [
    CheckpointSpec(),
    CheckpointSpec(layout="nested", weight_names="new", tied=False),
    CheckpointSpec(weight_names="new", num_shards=3, dtype="bfloat16"),
    CheckpointSpec(layout="nested", tied=False, dtype="float16", kv_heads=4, patch_size=8, vision_depth=1),
]


@pytest.mark.parametrize("spec", SPECS, ids=["flat", "nested-untied", "sharded-bf16", "fp16-patch8"])
def test_transformers_loads_every_tensor(tmp_path: Path, spec: CheckpointSpec) -> None:
    """Every form loads with no tensor missing and none left over."""
    folder = build_checkpoint(tmp_path, spec)
    loaded: Any = Qwen2VLForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    model, info = loaded
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert model.config.text_config.rope_parameters["mrope_section"] == spec.mrope_section
    assert model.config.text_config.rope_parameters["rope_theta"] == 100.0
    assert model.dtype == getattr(torch, spec.dtype)


def test_tokenizer_reads_the_same_through_transformers(tmp_path: Path) -> None:
    """AutoTokenizer and the raw tokenizer agree, on control tokens too."""
    reference = AutoTokenizer.from_pretrained(build_checkpoint(tmp_path))
    raw = build_tokenizer()
    for text in ("Größe 12345\n\n it's  fine 😀", "".join(CONTROL_TOKENS), "<|im_start|>user\nHi<|im_end|>\n"):
        assert reference.encode(text) == raw.encode(text).ids
        assert reference.decode(raw.encode(text).ids) == text
