"""Attention inside slices: by the compiled kernel, and in the forms that stand in for it."""

import pytest
import torch
from torch import Tensor

from services.common import native
from services.encoder import attention, compiled
from services.encoder.attention import attend
from services.encoder.rotary import place_heads
from tests.compiled import needs_kernels

NUM_HEADS, HEAD_DIM = 2, 80


@pytest.fixture(params=[pytest.param("auto", marks=needs_kernels), "torch"])
def _both(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the compiled kernels and without."""
    monkeypatch.setattr(native, "_wanted", [request.param])


def random_heads(num_rows: int, head_dim: int = HEAD_DIM) -> Tensor:
    return torch.randn(3, NUM_HEADS, num_rows, head_dim, generator=torch.manual_seed(0))


def mixed(heads: Tensor, groups: list[tuple[int, int]]) -> Tensor:
    out = torch.empty(heads.shape[2], NUM_HEADS, heads.shape[3])
    attend(heads, groups, out)
    return out


def plain(heads: Tensor, groups: list[tuple[int, int]]) -> Tensor:
    """The formula, slice by slice, in float64."""
    lengths = [num_patches for num_slices, num_patches in groups for _ in range(num_slices)]
    parts = []
    for query, key, value in torch.split(heads.double(), lengths, dim=2):
        weights = torch.softmax(query @ key.transpose(1, 2) * heads.shape[3] ** -0.5, dim=-1)
        parts.append((weights @ value).transpose(0, 1))
    return torch.cat(parts).float()


@pytest.mark.usefixtures("_both")
@pytest.mark.parametrize("num_patches", [1, 17, 129, 383, 384, 511, 512, 513, 1025])
def test_is_the_plain_formula(num_patches: int) -> None:
    """Slices of any length, between others, are mixed as the formula says: around a block's size too."""
    groups = [(3, 4), (2, num_patches), (1, 400)]
    heads = random_heads(sum(a * b for a, b in groups))
    torch.testing.assert_close(mixed(heads, groups), plain(heads, groups), atol=2e-6, rtol=1e-5)


@pytest.mark.usefixtures("_both")
@pytest.mark.parametrize("head_dim", [1, 6, 32, 40, 64, 72, 128, 255, 256, 272])
def test_heads_of_any_width(head_dim: int) -> None:
    """Widths that fill no vector, and those that the kernel leaves to PyTorch."""
    groups = [(2, 36), (1, 150)]
    heads = random_heads(222, head_dim)
    torch.testing.assert_close(mixed(heads, groups), plain(heads, groups), atol=2e-6, rtol=1e-5)


@pytest.mark.usefixtures("_both")
@pytest.mark.parametrize("direction", [1.0, -1.0])
@pytest.mark.parametrize(("size", "error"), [(2, 5e-5), (10, 2e-3)], ids=["just safe", "beyond"])
def test_large_scores_are_safe(size: float, error: float, direction: float) -> None:
    """Exponentials near float32's ends and beyond, all of a row on one side, beside a head of small scores."""
    heads = random_heads(600)
    heads[0, 0] += size
    heads[1, 0] += size * direction  # scores around +-36 and +-900
    torch.testing.assert_close(mixed(heads, [(1, 600)]), plain(heads, [(1, 600)]), atol=error, rtol=0)


@pytest.mark.usefixtures("_both")
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_no_number_stays_none(value: float) -> None:
    """In a query it spoils its row, in a key all rows of its head, in a value a column, and no other slice."""
    groups, heads = [(1, 500), (1, 500)], random_heads(1000)
    expected = plain(heads, groups)
    heads[0, 0, 7, 3] = heads[1, 1, 600, 3] = heads[2, 0, 700, 5] = value
    out, spoilt = mixed(heads, groups), torch.zeros(expected.shape, dtype=torch.bool)
    spoilt[7, 0] = spoilt[500:, 1] = spoilt[500:, 0, 5] = True
    assert not out[7, 0].isfinite().any()
    assert not out[500:, 0, 5].isfinite().any()
    torch.testing.assert_close(out.isfinite(), plain(heads, groups).isfinite())
    torch.testing.assert_close(out[~spoilt], expected[~spoilt], atol=2e-6, rtol=1e-5)


@needs_kernels
def test_a_row_is_the_same_in_any_company_by_any_threads() -> None:
    """Bit by bit: what else is in the batch and the number of threads change nothing."""
    heads = random_heads(1300)
    together = mixed(heads, [(1, 1000), (3, 100)])
    slices = torch.split(heads, [1000, 100, 100, 100], dim=2)
    alone = torch.cat([mixed(part.contiguous(), [(1, part.shape[2])]) for part in slices])
    num_threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        threaded = mixed(heads, [(1, 1000), (3, 100)])
    finally:
        torch.set_num_threads(num_threads)
    assert torch.equal(together, alone)
    assert torch.equal(together, threaded)


@needs_kernels
@pytest.mark.parametrize("head_dim", [2, 32, 40, 72, 80, 254])
def test_pairs_are_the_formula_of_what_is_rounded(head_dim: int) -> None:
    """Heads rounded to bf16: only the weights' own rounding is between their attention and the formula."""
    groups, angles = [(1, 2), (2, 98), (1, 400)], torch.zeros(598, head_dim // 2)
    if not compiled.can_pair(angles, head_dim, 2):
        pytest.skip("this processor has no products of bf16")
    heads = random_heads(598, head_dim)
    pairs = torch.empty(3, NUM_HEADS, 598, head_dim // 2, dtype=torch.int32)
    for rows in (slice(0, 100), slice(100, 598)):
        qkv = heads[:, :, rows].permute(2, 0, 1, 3).contiguous()
        place_heads(qkv, angles[rows].cos(), angles[rows].sin(), pairs[:, :, rows])
    out = torch.empty(598, NUM_HEADS, head_dim)
    attend(pairs, groups, out)
    torch.testing.assert_close(out, plain(heads.bfloat16().float(), groups), atol=4e-3, rtol=8e-3)


def test_what_is_odd_is_not_paired() -> None:
    """Pairs are of rows of one slice, and of columns of one head."""
    assert not compiled.can_pair(torch.empty(0), 80, 3)
    assert not compiled.can_pair(torch.empty(0), 81, 2)


@needs_kernels
def test_the_kernel_is_chosen_for_float32_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other types, wide heads and a process that wants none have PyTorch's operators."""
    calls: list[torch.dtype] = []
    monkeypatch.setattr(compiled, "attend_in_slices", lambda _kernels, heads, *_: calls.append(heads.dtype))
    out = torch.empty(8, NUM_HEADS, HEAD_DIM)
    attention.attend(random_heads(8), [(1, 8)], out)
    attention.attend(random_heads(8).bfloat16(), [(1, 8)], out.bfloat16())
    attention.attend(random_heads(8, 272), [(1, 8)], torch.empty(8, NUM_HEADS, 272))
    monkeypatch.setattr(native, "_wanted", ["torch"])
    attention.attend(random_heads(8), [(1, 8)], out)
    assert calls == [torch.float32]
