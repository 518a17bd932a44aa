"""The norm of the language model is transformers'."""

from collections.abc import Iterator

import pytest
import torch
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLRMSNorm

from services.common.native import use_kernels
from services.decoder.norm import RmsNorm

EPS = 1e-6
SIZE = 96


@pytest.fixture(params=["auto", "torch"], autouse=True)
def _kernels(request: pytest.FixtureRequest) -> Iterator[None]:
    """With the project's kernels, where there are some, and without."""
    use_kernels(request.param)
    yield
    use_kernels("auto")


@pytest.mark.parametrize("scale", [1e-4, 1.0, 300.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rows_are_those_of_transformers(dtype: torch.dtype, scale: float) -> None:
    """In 16 bits to the last of them, in float32 to rounding; also where `eps` matters, and for a row of zeros."""
    theirs = Qwen2VLRMSNorm(SIZE, EPS).to(dtype)
    rows = (torch.randn(32, SIZE, generator=torch.Generator().manual_seed(0)) * scale).to(dtype)
    rows[0] = 0
    with torch.inference_mode():
        theirs.weight.copy_(torch.linspace(0.5, 2.0, SIZE))
        ours = RmsNorm(SIZE, EPS, dtype, rows.device)(rows, None, theirs.weight)
        assert ours.dtype == dtype
        tolerance = 1e-6 if dtype == torch.float32 else 0.0
        torch.testing.assert_close(ours, theirs(rows), rtol=tolerance, atol=0.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_added_stays_in_the_rows(dtype: torch.dtype) -> None:
    """The norm is that of the sum, which the rows are from then on."""
    rows, added = torch.randn(2, 5, SIZE).to(dtype)
    norm, weight, together = RmsNorm(SIZE, EPS, dtype, rows.device), torch.ones(SIZE, dtype=dtype), rows + added
    torch.testing.assert_close(norm(rows, added, weight), norm(together.clone(), None, weight), rtol=0, atol=0)
    torch.testing.assert_close(rows, together, rtol=0, atol=0)
