"""Streamed products are the products."""

import pytest
import torch

from fathom.kernels.grouped import grouped_swiglu
from fathom.kernels.stream import FEW, stream, stream_swiglu, table

pytestmark = pytest.mark.skipif("fbgemm" not in torch.backends.quantized.supported_engines, reason="needs fbgemm")


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(3)


@pytest.mark.parametrize("rows", [1, 3, FEW, FEW + 1, 40])
@pytest.mark.parametrize(("inputs", "outputs"), [(24, 40), (256, 208), (7, 1000)])
@torch.inference_mode()
def test_a_streamed_product_is_the_product(rows: int, inputs: int, outputs: int) -> None:
    x, matrix = torch.randn(rows, inputs), torch.randn(outputs, inputs).T
    expected = x.double() @ matrix.double()
    assert (stream(x, table(matrix)) - expected).abs().max() < 1e-5 * expected.abs().max()


@torch.inference_mode()
def test_few_rows_do_not_depend_on_one_another() -> None:
    x, matrix = torch.randn(FEW, 64), table(torch.randn(64, 96))
    together = stream(x, matrix)
    assert all(torch.equal(stream(x[n : n + 1], matrix)[0], together[n]) for n in range(FEW))


@pytest.mark.parametrize("rows", [2, 40])
@torch.inference_mode()
def test_bytes_err_by_half_a_step_at_most(rows: int) -> None:
    matrix, x = torch.randn(32, 48), torch.randn(rows, 32)
    step = (matrix.amax(1) - matrix.amin(1)) / 255
    bound = (x.abs() * step / 2).sum(1, keepdim=True)  # every row of the table errs by half its step
    difference = (stream(x, table(matrix, int8=True)) - x @ matrix).abs()
    assert (difference <= bound * 1.01).all()
    assert difference.max() > bound.min() / 100  # they are bytes indeed


@pytest.mark.parametrize("tokens", [1, FEW, FEW + 1, 50])
@torch.inference_mode()
def test_streamed_experts_are_the_grouped_ones(tokens: int) -> None:
    experts, width, inner, chosen = 6, 16, 24, 3
    gate_up, down = torch.randn(experts, 2 * inner, width), torch.randn(experts, width, inner)
    x, weights = torch.randn(tokens, width), torch.rand(tokens, chosen)
    which = torch.rand(tokens, experts).topk(chosen).indices
    tables = (table(each.transpose(1, 2).flatten(0, 1)) for each in (gate_up, down))
    expected = grouped_swiglu(x.double(), which, weights.double(), gate_up.double(), down.double())
    assert (stream_swiglu(x, which, weights, *tables) - expected).abs().max() < 1e-5 * expected.abs().max()
