"""bf16 and fp16 run, and stay close to transformers in the same dtype."""

import pytest
import torch
from transformers import Qwen2VLForConditionalGeneration

from services.decoder.scheduler import Chunk
from services.decoder.weights import load_language_model
from tests.decoder.harness import Harness, Model


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_close_to_transformers(gqa_model: Model, dtype: torch.dtype) -> None:
    """The first token's distribution agrees with the reference in the same dtype."""
    harness = Harness(gqa_model)
    half = load_language_model(gqa_model.checkpoint, dtype, torch.device("cpu"))
    parts = harness.build(half)
    case = gqa_model.case(40)
    request = harness.request(case).request
    sequence = request.sequences[0]
    sequence.blocks = [parts.pool.allocate() for _ in range(5)]
    ours = parts.engine._runner.run([Chunk(sequence, 0, 40)])[0].softmax(dim=-1)
    reference = Qwen2VLForConditionalGeneration.from_pretrained(gqa_model.path, dtype=dtype)
    with torch.inference_mode():
        theirs = reference(input_ids=torch.tensor([case.token_ids])).logits[0, -1].float().softmax(dim=-1)
    assert (ours - theirs).abs().sum() / 2 < 0.05
