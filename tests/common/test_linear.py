"""Linear layers with an activation: what torch's own functions give."""

from collections.abc import Callable

import pytest
import torch
from torch.nn import functional

from services.common.linear import Activation, Quantization, can_quantize, make_linear, product_of_rows

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
