"""What the vision tower does beside its products, compiled and by PyTorch's operators."""

import pytest
import torch
from torch.nn import functional

from services.common import native
from services.encoder import compiled
from services.encoder.rotary import place_heads, rotary_table
from services.encoder.vision_model import Norm
from tests.compiled import needs_kernels


@needs_kernels
@pytest.mark.parametrize("head_dim", [4, 32, 64, 80, 100])
def test_heads_are_placed_as_by_pytorch(head_dim: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Queries and keys rotated, values as they are, in some rows of all: the other rows are left alone."""
    qkv = torch.randn(24, 3, 5, head_dim, generator=torch.manual_seed(0))
    cos, sin = rotary_table(4, 6, 2, head_dim)
    heads, expected = torch.zeros(2, 3, 5, 40, head_dim)
    place_heads(qkv.clone(), cos, sin, heads[:, :, 10:34])
    monkeypatch.setattr(native, "_wanted", ["torch"])
    place_heads(qkv, cos, sin, expected[:, :, 10:34])
    torch.testing.assert_close(heads, expected, atol=1e-6, rtol=0)


@needs_kernels
@pytest.mark.parametrize("dim", [1, 15, 128, 1280, 1283])
@pytest.mark.parametrize("adds", [False, True])
def test_norm_is_that_of_the_sum(dim: int, adds: bool) -> None:
    """What is added stays in the rows, and the rows returned are normalised, around a mean far from zero too."""
    rows, added = torch.randn(2, 37, dim, generator=torch.manual_seed(0)) + 100
    norm = Norm(dim, eps=1e-6).requires_grad_(requires_grad=False)
    norm.weight.normal_()
    norm.bias.normal_()
    total = rows + added if adds else rows.clone()
    expected = functional.layer_norm(total.double(), (dim,), norm.weight.double(), norm.bias.double(), norm.eps)
    out = norm(rows, added if adds else None)
    torch.testing.assert_close(rows, total, atol=0, rtol=0)
    torch.testing.assert_close(out, expected.float(), atol=1e-4, rtol=1e-4)


@needs_kernels
def test_norm_of_what_is_no_number_is_none() -> None:
    """A row with NaN or infinity becomes NaN, and no other row does."""
    rows = torch.randn(3, 40)
    rows[0, 3], rows[2, 39] = torch.nan, torch.inf
    out = Norm(40).requires_grad_(requires_grad=False)(rows)
    assert out.isnan().all(dim=1).tolist() == [True, False, True]


def test_other_types_have_no_kernels() -> None:
    """What is not float32 is PyTorch's."""
    assert compiled.kernels_for(torch.empty(1, dtype=torch.bfloat16)) is None
