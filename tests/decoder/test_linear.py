"""Linear layers for steps of few rows and for prompts, by the kernels in C and by PyTorch."""

from collections.abc import Iterator

import pytest
import torch
from torch.nn import functional

from services.common.linear import PackedLinear, Quantization, QuantizedLinear, can_quantize, make_linear
from services.common.native import use_kernels
from services.common.native_linear import NativeLinear, can_run
from services.decoder.linear import (
    MAX_FEW_ROWS,
    FewOrMany,
    GatedLinear,
    HalfLinear,
    can_halve,
    fits_half,
    make_decoding_linear,
)
from tests.compiled import needs_kernels

STORED = (torch.bfloat16, torch.float16)
needs_halves = pytest.mark.skipif(not can_halve(), reason="this processor has no kernels for fp16 weights")


def _stored_weight(dtype: torch.dtype, *, size: float = 1.0) -> torch.Tensor:
    """A checkpoint's weight [200, 600] in float32, with some that are very small."""
    weight = torch.randn(200, 600, generator=torch.Generator().manual_seed(0)) * size
    weight[::7] *= 1e-4
    return weight.to(dtype).float()


@needs_halves
@pytest.mark.parametrize("size", [0.02, 1.0, 1000.0])
@pytest.mark.parametrize("dtype", STORED)
def test_sixteen_bits_lose_nothing(dtype: torch.dtype, size: float) -> None:
    """What a checkpoint stores in 16 bits is computed with as in fp32: no further from the true sums."""
    weight, bias = _stored_weight(dtype, size=size), torch.randn(200)
    assert fits_half(weight)
    rows = torch.randn(MAX_FEW_ROWS, 600)
    true = rows.double() @ weight.double().T + bias
    error, usual = (
        float((layer(rows) - true).abs().max())
        for layer in (HalfLinear(weight, bias), make_linear(weight.clone(), bias))
    )
    assert error < max(10 * usual, 1e-6 * size)


@needs_halves
def test_rows_do_not_depend_on_their_neighbours() -> None:
    """A row gives the same bits alone and in a step with others."""
    layer = HalfLinear(_stored_weight(torch.bfloat16))
    rows = torch.randn(MAX_FEW_ROWS, 600)
    together = layer(rows)
    for count in (1, 2, 7, 13):
        assert torch.equal(layer(rows[:count]), together[:count])


@pytest.fixture
def by_pytorch() -> Iterator[None]:
    """As where there are no compiled kernels."""
    use_kernels("torch")
    yield
    use_kernels("auto")


@needs_halves
@pytest.mark.usefixtures("by_pytorch")
@pytest.mark.parametrize("has_copy", [True, False])
def test_few_rows_and_many(has_copy: bool) -> None:
    """On both sides of the border between two forms, and without the second, products are the same."""
    weight = _stored_weight(torch.bfloat16)
    layer = make_decoding_linear(weight.clone(), has_copy=has_copy)
    assert isinstance(layer, FewOrMany if has_copy else HalfLinear)
    for count in (MAX_FEW_ROWS, MAX_FEW_ROWS + 1, 300):
        rows = torch.randn(count, 600)
        torch.testing.assert_close(layer(rows), functional.linear(rows, weight), atol=1e-4, rtol=1e-4)


def test_weights_of_32_bits_are_kept() -> None:
    """Weights that need more than 16 bits, or are not finite, are not given fewer."""
    weight = torch.randn(200, 600)
    assert not fits_half(weight)
    rows = torch.randn(3, 600)
    wanted = functional.linear(rows, weight)
    torch.testing.assert_close(make_decoding_linear(weight.clone())(rows), wanted, atol=1e-4, rtol=1e-4)
    for wrong in (torch.nan, torch.inf):
        broken = _stored_weight(torch.float16)
        broken[0, 0] = wrong
        assert not fits_half(broken)


def test_zeros_fit() -> None:
    """A layer of zeros has no scale of its own and gives zeros."""
    assert not make_decoding_linear(torch.zeros(32, 64))(torch.randn(3, 64)).any()


@needs_kernels
@pytest.mark.parametrize("dtype", STORED)
def test_kernels_read_sixteen_bits(dtype: torch.dtype) -> None:
    """What a checkpoint stores in 16 bits is read so by the kernels in C, at any number of rows."""
    assert isinstance(make_decoding_linear(_stored_weight(dtype)), NativeLinear)
    assert isinstance(make_decoding_linear(torch.randn(200, 600)), PackedLinear)


@pytest.mark.skipif(not (can_run(torch.int8) and can_quantize()), reason="this processor has no int8 kernels in C")
def test_kernels_compute_int8() -> None:
    """In int8 the kernels in C give what oneDNN's give, to the last bit."""
    weight, bias = torch.randn(200, 600), torch.randn(200)
    own, usual = make_decoding_linear(weight, bias, "int8"), QuantizedLinear(weight, bias)
    assert isinstance(own, NativeLinear)
    rows = torch.randn(50, 600) * torch.logspace(-3, 3, 50)[:, None]
    rows[3] = 0
    for count in (1, 7, 50):
        assert torch.equal(own(rows[:count]), usual(rows[:count]))


@pytest.mark.usefixtures("by_pytorch")
@pytest.mark.parametrize("quantization", ["none", *(["int8"] if can_quantize() else [])])
def test_gated_by_pytorch(quantization: Quantization) -> None:
    """Without compiled kernels a gated layer is a plain one, and SiLU after it."""
    weight = _stored_weight(torch.bfloat16)
    rows = torch.randn(3, 600)
    gated = make_decoding_linear(weight.clone(), None, quantization, is_gated=True)
    assert isinstance(gated, GatedLinear)
    gate, up = make_linear(weight.clone(), None, quantization)(rows).chunk(2, dim=1)
    torch.testing.assert_close(gated(rows), functional.silu(gate) * up, atol=1e-3, rtol=1e-4)


@needs_kernels
def test_gated_of_32_bits() -> None:
    """A gated layer whose weights need 32 bits is gated too."""
    weight, rows = torch.randn(200, 600), torch.randn(3, 600)
    gate, up = functional.linear(rows, weight).chunk(2, dim=1)
    found = make_decoding_linear(weight.clone(), is_gated=True)(rows)
    torch.testing.assert_close(found, functional.silu(gate) * up, atol=1e-3, rtol=1e-4)
