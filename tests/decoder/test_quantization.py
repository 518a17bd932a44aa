"""int8: close to fp32, independent of the batch, and refused where it cannot run."""

import pytest
import torch

from services.common.linear import PlainLinear, QuantizedLinear, can_quantize, require_quantizable
from services.decoder.weights import load_language_model
from tests.decoder.harness import Harness, Model

pytestmark = pytest.mark.skipif(not can_quantize(), reason="oneDNN has no int8 kernels for this processor")

CPU = torch.device("cpu")


@pytest.fixture
def linears() -> tuple[QuantizedLinear, PlainLinear]:
    """The same layer in int8 and in fp32."""
    generator = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(96, 128, generator=generator), torch.randn(96, generator=generator)
    return QuantizedLinear(weight, bias), PlainLinear(weight, bias)


def test_products_are_close(linears: tuple[QuantizedLinear, PlainLinear]) -> None:
    """Rows of any size come out within 2 % of fp32."""
    rows = torch.randn(17, 128) * torch.logspace(-3, 3, 17)[:, None]
    quantized, plain = (linear(rows) for linear in linears)
    assert ((quantized - plain).norm(dim=1) / plain.norm(dim=1)).max() < 0.02


def test_rows_do_not_depend_on_their_neighbours(linears: tuple[QuantizedLinear, PlainLinear]) -> None:
    """A row's result is bit for bit the same alone and beside others of another size."""
    rows = torch.randn(9, 128) * torch.logspace(-2, 2, 9)[:, None]
    together = linears[0](rows)
    assert all(torch.equal(together[i : i + 1], linears[0](rows[i : i + 1])) for i in range(len(rows)))


def test_rows_of_nothing(linears: tuple[QuantizedLinear, PlainLinear]) -> None:
    """No rows give no rows, zeros the bias, and what is not finite stays so, in its own row."""
    quantized, plain = linears
    assert quantized(torch.empty(0, 128)).shape == (0, 96)
    rows = torch.zeros(2, 128)
    rows[1, 5] = torch.nan
    product = quantized(rows)
    assert torch.equal(product[0], plain(rows[:1])[0])
    assert product[1].isnan().all()


def test_answers_do_not_depend_on_the_batch(gqa_model: Model) -> None:
    """Greedy tokens of an int8 model are the same alone, in a batch and in small chunks."""
    model = load_language_model(gqa_model.checkpoint, torch.float32, CPU, "int8")
    cases = [gqa_model.case(5 + 9 * i, ("image", (1, 2, 2)), 3, seed=i) for i in range(4)]

    def answers(group: list[int], max_step_tokens: int) -> list[list[int]]:
        harness = Harness(gqa_model, max_step_tokens=max_step_tokens)
        harness.engine = harness.build(model).engine
        harness.engine.start()
        found = [answer.ids for answer in harness.run([cases[i] for i in group])]
        harness.engine.stop()
        return found

    together = answers([0, 1, 2, 3], 1024)
    assert [answers([i], 1024)[0] for i in range(4)] == together
    assert answers([0, 1, 2, 3], 7) == together


@pytest.mark.parametrize(("dtype", "device"), [("bfloat16", "cpu"), ("float32", "cuda"), ("bfloat16", "cuda")])
def test_refused_elsewhere(dtype: str, device: str) -> None:
    """int8 beside another dtype or on CUDA ends the process with the name of the variable."""
    with pytest.raises(SystemExit, match="THE_VARIABLE"):
        require_quantizable("int8", dtype, torch.device(device), "THE_VARIABLE")
    require_quantizable("none", dtype, torch.device(device), "THE_VARIABLE")
