"""Products by either library against plain ones."""

import pytest
import torch
import torch.nn.functional as F

from fathom.kernels import gemm

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch was built without oneDNN")


@pytest.fixture(autouse=True, params=[False, True])
def slow_mkl(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Both ways on every processor."""
    monkeypatch.setattr(gemm, "MKL_IS_SLOW", request.param)
    return request.param


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("rows", [0, 1, 7, 8, 64, 97, 256, 300, 1000])
@pytest.mark.parametrize(("inputs", "outputs"), [(64, 512), (64, 128), (48, 64)])
def test_product_and_outer(rows: int, inputs: int, outputs: int) -> None:
    a, b, c = random(rows, inputs), random(inputs, outputs), random(rows, outputs)
    torch.testing.assert_close(gemm.product(a, b), a @ b, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(gemm.product(a, b.T.contiguous().T), a @ b, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(gemm.outer(a, c), a.T @ c, atol=1e-3, rtol=1e-5)
    total = random(inputs, outputs)
    wanted = total + a.T @ c
    gemm.add_outer_(total, a, c)
    torch.testing.assert_close(total, wanted, atol=1e-3, rtol=1e-5)


@pytest.mark.parametrize("shape", [(3, 100), (256,), (2, 5)])
@pytest.mark.parametrize("has_bias", [True, False])
def test_linear_and_its_gradients(shape: tuple[int, ...], has_bias: bool) -> None:
    x, weight, bias = (
        random(*shape, 64).requires_grad_(),
        random(128, 64).requires_grad_(),
        random(128).requires_grad_(),
    )
    grad = random(*shape, 128)
    found, wanted = gemm.linear(x, weight, bias if has_bias else None), F.linear(x, weight, bias if has_bias else None)
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-5)
    leaves = (x, weight, bias) if has_bias else (x, weight)
    for ours, plain in zip(
        torch.autograd.grad(found, leaves, grad), torch.autograd.grad(wanted, leaves, grad), strict=True
    ):
        torch.testing.assert_close(ours, plain, atol=1e-3, rtol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(gemm.linear(x, weight), F.linear(x, weight), atol=1e-4, rtol=1e-5)


def test_autocast_is_obeyed() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert gemm.linear(random(1024, 64), random(128, 64)).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("rows", "elements", "sizes"),
    [
        (1536, 1 << 12, [1024, 512]),
        (1000, 1 << 13, [512, 256, 128, 104]),  # 104 rows times 8,192 elements are too little work
        (100, 1 << 18, [64, 32, 4]),  # 4 rows are too few
        (256, 1 << 12, [256]),
    ],
)
def test_rows_come_in_few_shapes(rows: int, elements: int, sizes: list[int]) -> None:
    assert gemm._cut(rows, elements) == sizes
