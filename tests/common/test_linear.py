"""Linear layers with an activation: what torch's own functions give."""

from collections.abc import Callable

import pytest
import torch
from torch.nn import functional

from services.common.linear import (
    MAX_FEW_ROWS,
    Activation,
    HalfLinear,
    Quantization,
    can_halve,
    can_quantize,
    fits_half,
    make_decoding_linear,
    make_linear,
    product_of_rows,
)

WANTED: dict[Activation, Callable[[torch.Tensor], torch.Tensor]] = {
    "none": lambda x: x,
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "gelu": functional.gelu,
    "gelu_pytorch_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "silu": functional.silu,
    "relu": functional.relu,
}
INT8: list[tuple[torch.dtype, Quantization]] = [(torch.float32, "int8")] if can_quantize() else []


@pytest.mark.parametrize(("dtype", "quantization"), [(torch.float32, "none"), (torch.bfloat16, "none"), *INT8])
@pytest.mark.parametrize("activation", WANTED)
def test_activations(activation: Activation, dtype: torch.dtype, quantization: Quantization) -> None:
    """Every activation is torch's, in fp32 to its last digits, else as near as the arithmetic allows."""
    generator = torch.Generator().manual_seed(0)
    weight, bias = (torch.randn(*shape, generator=generator).to(dtype) / 8 for shape in ((96, 64), (96,)))
    rows = torch.randn(40, 64, generator=generator).to(dtype)
    wanted = WANTED[activation](functional.linear(rows, weight, bias).float())
    found = make_linear(weight.clone(), bias.clone(), quantization, activation)(rows).float()
    tolerance = 2e-5 if dtype == torch.float32 and quantization == "none" else 0.05
    torch.testing.assert_close(found, wanted, atol=tolerance, rtol=tolerance)


def test_products_of_rows() -> None:
    """Products with strided rows are matrix products with the transposed."""
    left, right = torch.randn(30, 3, 16)[:, 1], torch.randn(50, 16)
    torch.testing.assert_close(product_of_rows(left, right), left @ right.T, atol=1e-5, rtol=1e-5)


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


@needs_halves
@pytest.mark.parametrize("has_copy", [True, False])
def test_few_rows_and_many(has_copy: bool) -> None:
    """On both sides of the border between two forms, and without the second, products are the same."""
    weight = _stored_weight(torch.bfloat16)
    layer = make_decoding_linear(weight.clone(), has_copy=has_copy)
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
