"""bf16 and fp16 run, and stay close to transformers in the same dtype."""

from functools import partial
from pathlib import Path

import pytest
import torch
from transformers import Qwen2VLForConditionalGeneration

from services.common.native import Kernels, use_kernels
from services.common.native_linear import NativeLinear, can_run
from services.decoder.linear import FewOrMany, HalfLinear, can_halve
from services.decoder.scheduler import Chunk
from services.decoder.weights import load_language_model
from tests.checkpoints import CheckpointSpec, build_checkpoint
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


FORMS: list[tuple[Kernels, bool]] = [("auto", True)] if can_run(torch.bfloat16) else []
if can_halve():
    FORMS += [("torch", True), ("torch", False)]


@pytest.mark.parametrize(("kernels", "prompt_weights"), FORMS)
@pytest.mark.parametrize("stored", ["bfloat16", "float16"])
def test_float32_reads_sixteen_bits(
    tmp_path: Path, request: pytest.FixtureRequest, stored: str, kernels: Kernels, prompt_weights: bool
) -> None:
    """A checkpoint of 16 bits keeps its weights in 16 bits, and fp32 answers from them are transformers' own."""
    use_kernels(kernels)
    request.addfinalizer(partial(use_kernels, "auto"))
    model = Model(build_checkpoint(tmp_path, CheckpointSpec(dtype=stored, seed=3)))
    weights = load_language_model(model.checkpoint, torch.float32, torch.device("cpu"), prompt_weights=prompt_weights)
    down = weights.weights.layers[0].down
    assert isinstance(down, NativeLinear if kernels == "auto" else FewOrMany if prompt_weights else HalfLinear)
    harness = Harness(model)
    harness.parts = harness.build(weights)
    harness.engine = harness.parts.engine
    cases = [model.case(40, seed=1), model.case(3, ("image", (1, 5, 6)), 9), model.case(7, seed=2)]
    harness.engine.start()
    try:
        answers = [harness.submit(case) for case in cases]
        assert [answer.wait().ids for answer in answers] == [model.generate(case, 12) for case in cases]
    finally:
        harness.engine.stop()
