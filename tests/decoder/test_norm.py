"""The norm of the language model is transformers'."""

import pytest
import torch
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLRMSNorm

from services.decoder.norm import RmsNorm

EPS = 1e-6
SIZE = 96


@pytest.mark.parametrize("scale", [1e-4, 1.0, 300.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rows_are_those_of_transformers(dtype: torch.dtype, scale: float) -> None:
    """In 16 bits to the last of them, in float32 to rounding; also where `eps` matters, and for a row of zeros."""
    theirs = Qwen2VLRMSNorm(SIZE, EPS).to(dtype)
    rows = (torch.randn(32, SIZE, generator=torch.Generator().manual_seed(0)) * scale).to(dtype)
    rows[0] = 0
    with torch.inference_mode():
        theirs.weight.copy_(torch.linspace(0.5, 2.0, SIZE))
        ours = RmsNorm(SIZE, EPS, rows.device)(rows, theirs.weight)
        assert ours.dtype == dtype
        tolerance = 1e-6 if dtype == torch.float32 else 0.0
        torch.testing.assert_close(ours, theirs(rows), rtol=tolerance, atol=0.0)
