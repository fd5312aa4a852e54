"""A weight's gradient paid later against the one that autograd computes at once."""

import pytest
import torch

from fathom.kernels.gemm import linear
from fathom.kernels.owed import Owed, linear_owed


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gradient_of_the_weight_comes_when_paid_and_is_the_same(dtype: torch.dtype) -> None:
    x, weight, bias = torch.randn(3, 5, 8), torch.randn(6, 8), torch.randn(6)
    found, wanted = ([t.clone().requires_grad_() for t in (x, weight, bias)] for _ in range(2))
    owed: Owed = []
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        out, expected = linear_owed(found[0], found[1], found[2], owed), linear(*wanted)
    assert out.dtype == expected.dtype
    bfloat16 = dtype == torch.bfloat16  # adds the bias before it rounds, or after
    torch.testing.assert_close(out, expected, rtol=2e-2 if bfloat16 else 1e-5, atol=2e-2 if bfloat16 else 1e-5)
    for result in (out, expected):
        result.float().square().sum().backward()
    assert found[1].grad is None and len(owed) == 1
    owed.pop()()
    tolerance = {"rtol": 2e-2, "atol": 0.3} if bfloat16 else {"rtol": 1e-5, "atol": 1e-5}
    for mine, theirs in zip(found, wanted, strict=True):
        assert mine.grad is not None and mine.grad.dtype == torch.float32
        torch.testing.assert_close(mine.grad, theirs.grad, **tolerance)
