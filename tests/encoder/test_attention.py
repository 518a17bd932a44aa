"""Attention inside slices, by whichever form their length calls for."""

import pytest
import torch
from torch import Tensor

from services.encoder.attention import attend

NUM_HEADS, HEAD_DIM = 2, 80


def mixed(heads: Tensor, groups: list[tuple[int, int]]) -> Tensor:
    out = torch.empty(heads.shape[2], NUM_HEADS, HEAD_DIM)
    attend(heads, groups, out)
    return out


def plain(heads: Tensor, groups: list[tuple[int, int]]) -> Tensor:
    """The formula, slice by slice, in float64."""
    lengths = [num_patches for num_slices, num_patches in groups for _ in range(num_slices)]
    parts = []
    for query, key, value in torch.split(heads.double(), lengths, dim=2):
        weights = torch.softmax(query @ key.transpose(1, 2) * HEAD_DIM**-0.5, dim=-1)
        parts.append((weights @ value).transpose(0, 1))
    return torch.cat(parts).float()


@pytest.mark.parametrize("num_patches", [1, 383, 384, 511, 512, 513, 1025])
def test_is_the_plain_formula(num_patches: int) -> None:
    """Slices of any length, between others, are mixed as the formula says: around a block's size too."""
    groups = [(3, 4), (2, num_patches), (1, 400)]
    heads = torch.randn(3, NUM_HEADS, sum(a * b for a, b in groups), HEAD_DIM, generator=torch.manual_seed(0))
    torch.testing.assert_close(mixed(heads, groups), plain(heads, groups), atol=1e-5, rtol=0)


@pytest.mark.parametrize("direction", [1.0, -1.0])
@pytest.mark.parametrize(("size", "error"), [(2, 5e-5), (10, 2e-3)], ids=["just safe", "beyond"])
def test_large_scores_are_safe(size: float, error: float, direction: float) -> None:
    """Exponentials near float32's ends and beyond, all of a row on one side, beside a head of small scores."""
    groups = [(1, 600)]
    heads = torch.randn(3, NUM_HEADS, 600, HEAD_DIM, generator=torch.manual_seed(0))
    heads[0, 0] += size
    heads[1, 0] += size * direction  # scores around +-36 and +-900
    torch.testing.assert_close(mixed(heads, groups), plain(heads, groups), atol=error, rtol=0)
