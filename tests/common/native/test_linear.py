"""Linear layers by the kernels in C: what torch's own functions give, at every size."""

import pytest
import torch
from torch.nn import functional

from services.common.native_linear import NativeActivation, NativeLinear, can_run, in_16_bits
from tests.compiled import needs_kernels

SIXTEEN_BITS = (torch.bfloat16, torch.float16)
SHAPES = ((1, 1), (3, 5), (64, 64), (66, 129), (200, 600), (130, 1537))  # out, in
COUNTS = (1, 2, 5, 11, 12, 13, 31, 48, 49, 100, 481)  # of rows: tiles, groups, blocks, and more than are made ready

pytestmark = needs_kernels
needs_int8 = pytest.mark.skipif(not can_run(torch.int8), reason="this processor has no int8 kernels in C")


def _layer(dtype: torch.dtype, out: int, inputs: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(out)
    weight, bias = torch.randn(out, inputs, generator=generator) / 8, torch.randn(out, generator=generator)
    return weight.to(dtype), bias


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", SIXTEEN_BITS)
def test_products(dtype: torch.dtype, shape: tuple[int, int]) -> None:
    """Sums in fp32 are as near to the true ones as torch's."""
    weight, bias = _layer(dtype, *shape)
    rows = torch.randn(COUNTS[-1], shape[1])
    found, true = NativeLinear(weight, bias)(rows), functional.linear(rows.double(), weight.double(), bias.double())
    usual = functional.linear(rows, weight.float(), bias)
    assert (found - true).abs().max() <= 2 * (usual - true).abs().max() + 1e-7


@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape[0] % 2 == 0])
@pytest.mark.parametrize("dtype", SIXTEEN_BITS)
def test_gated(dtype: torch.dtype, shape: tuple[int, int]) -> None:
    """A gated layer gives silu(first half) * second half."""
    weight, bias = _layer(dtype, *shape)
    rows = torch.randn(17, shape[1])
    gate, up = functional.linear(rows.double(), weight.double(), bias.double()).chunk(2, dim=1)
    found = NativeLinear(weight, bias, activation="silu", is_gated=True)(rows)
    torch.testing.assert_close(found.double(), functional.silu(gate) * up, atol=1e-4, rtol=1e-6)


@pytest.mark.parametrize(("activation", "steepness"), [("silu", 1.0), ("quick_gelu", 1.702)])
def test_activations(activation: NativeActivation, steepness: float) -> None:
    """Each is x * sigmoid(steepness * x), of what is huge and of what is not finite too."""
    weight, bias = _layer(torch.bfloat16, 66, 129)
    bias[:6] = torch.tensor([torch.inf, -torch.inf, torch.nan, 1e38, -1e38, -60.0])
    rows = torch.randn(17, 129)
    plain = functional.linear(rows, weight.float(), bias)
    found = NativeLinear(weight, bias, activation=activation)(rows)
    torch.testing.assert_close(found, plain * torch.sigmoid(steepness * plain), atol=1e-5, rtol=1e-5, equal_nan=True)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [*SIXTEEN_BITS, pytest.param(torch.int8, marks=needs_int8)])
def test_rows_depend_on_nothing_else(dtype: torch.dtype, shape: tuple[int, int]) -> None:
    """A row gives the same bits beside any others, and with any number of threads."""
    weight, bias = _layer(torch.float32, *shape)
    is_int8 = dtype == torch.int8
    weight = (weight * 64).clamp(-127, 127).to(dtype)
    layer = NativeLinear(weight, bias, scales=torch.rand(shape[0]) if is_int8 else None)
    rows = torch.randn(COUNTS[-1], shape[1])
    together = layer(rows)
    torch.set_num_threads(2)
    try:
        assert all(torch.equal(layer(rows[:count]), together[:count]) for count in COUNTS)
    finally:
        torch.set_num_threads(1)


@needs_int8
@pytest.mark.parametrize("is_gated", [False, True])
def test_whole_numbers(is_gated: bool) -> None:
    """In int8, rows are rounded to 127 levels of their largest value, and sums are exact."""
    weight, scales, bias = torch.randint(-127, 128, (66, 129), dtype=torch.int8), torch.rand(66), torch.randn(66)
    rows = torch.randn(13, 129)
    row_scales = rows.abs().amax(dim=1, keepdim=True) / 127
    products = (rows / row_scales).round().double() @ weight.double().T
    wanted = products.float() * scales * row_scales + bias
    if is_gated:
        gate, up = wanted.chunk(2, dim=1)
        wanted = functional.silu(gate) * up
    found = NativeLinear(weight, bias, scales=scales, activation="silu" if is_gated else "none", is_gated=is_gated)(
        rows
    )
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", SIXTEEN_BITS)
def test_what_is_not_finite(dtype: torch.dtype) -> None:
    """NaN and infinities of a row come out as torch's do, and touch no other row."""
    weight, bias = _layer(dtype, 66, 129)
    rows = torch.randn(20, 129)
    rows[3, 7], rows[13, 128] = torch.nan, torch.inf
    found, wanted = NativeLinear(weight, bias)(rows), functional.linear(rows, weight.float(), bias)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5, equal_nan=True)


@needs_int8
def test_int8_of_what_is_not_finite() -> None:
    """In int8 a row with NaN or an infinity is NaN; one of zeros gives the bias."""
    weight, bias = torch.randint(-127, 128, (40, 70), dtype=torch.int8), torch.randn(40)
    rows = torch.randn(4, 70)
    rows[0], rows[1, 3], rows[2, 69] = 0, torch.nan, -torch.inf
    found = NativeLinear(weight, bias, scales=torch.rand(40))(rows)
    assert torch.equal(found[0], bias)
    assert found[1:3].isnan().all()
    assert found[3].isfinite().all()


def test_rows_anywhere() -> None:
    """No rows give none, and rows may be strided."""
    weight, _ = _layer(torch.bfloat16, 40, 70)
    layer, rows = NativeLinear(weight), torch.randn(70, 6)
    assert layer(torch.empty(0, 70)).shape == (0, 40)
    assert torch.equal(layer(rows.T), layer(rows.T.contiguous()))


def test_weights_that_lose_nothing() -> None:
    """Weights of 16 bits are found out; any other is left alone."""
    weight = torch.randn(30, 40)
    assert in_16_bits(weight) is None
    for dtype in SIXTEEN_BITS:
        found = in_16_bits(weight.to(dtype).float())
        assert found is not None
        assert found.dtype == dtype
    weight[0, 0] = torch.nan
    assert in_16_bits(weight.bfloat16().float()) is None


def test_refusals() -> None:
    """What the kernels do not take is refused before they see it, by its name."""
    weight, bias = _layer(torch.bfloat16, 41, 70)
    for wrong, arguments in (
        ("weight", (weight.float(),)),
        ("weight", (weight[0],)),
        ("bias", (weight, bias.double())),
        ("bias", (weight, bias[:-1])),
    ):
        with pytest.raises(ValueError, match=wrong):
            NativeLinear(*arguments)
    with pytest.raises(ValueError, match="41 columns"):
        NativeLinear(weight, is_gated=True)
    with pytest.raises(ValueError, match="scales"):
        NativeLinear(weight, scales=bias)
    for rows in (torch.randn(3, 69), torch.randn(70), torch.randn(3, 70).double()):
        with pytest.raises(ValueError, match="rows"):
            NativeLinear(weight)(rows)
