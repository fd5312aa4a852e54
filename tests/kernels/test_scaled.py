"""Scaled products against the same numbers multiplied in float64."""

import pytest
import torch

from fathom.kernels.quant import (
    dequantize_blocks,
    dequantize_rows,
    quantize_blocks,
    quantize_columns,
    quantize_rows,
    quantize_weight,
)
from fathom.kernels.scaled import grouped_scaled_outer, grouped_scaled_product, scaled_product


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_hand_numbers() -> None:
    a = torch.tensor([[1.0, 2.0]]).repeat(1, 65)[:, :129].to(torch.float8_e4m3fn)  # 65 ones, 64 twos; strips of 128, 1
    b = torch.full((2, 129), 0.5).to(torch.float8_e4m3fn)
    out = scaled_product(a, torch.tensor([[2.0, 10.0]]), b, torch.tensor([[1.0, 3.0], [4.0, 0.0]]))
    assert out.tolist() == [[96 * 2 + 0.5 * 30, 96 * 8.0]]


@pytest.mark.parametrize(("m", "n", "k"), [(1, 1, 1), (7, 130, 200), (33, 64, 1000)])
def test_blocks_and_strips(m: int, n: int, k: int) -> None:
    a, b = drawn(m, k), drawn(n, k, seed=1)
    codes, scales = quantize_rows(a)
    left = dequantize_rows(codes, scales).double()
    blocks = quantize_blocks(b)
    torch.testing.assert_close(
        scaled_product(codes, scales, *blocks).double(),
        left @ dequantize_blocks(*blocks).double().T,
        rtol=1e-4,
        atol=1e-4,
    )
    strips = quantize_rows(b)
    torch.testing.assert_close(
        scaled_product(codes, scales, *strips).double(),
        left @ dequantize_rows(*strips).double().T,
        rtol=1e-4,
        atol=1e-4,
    )


def test_the_result_is_rounded_once() -> None:
    a, b = quantize_rows(drawn(4, 600)), quantize_rows(drawn(5, 600, seed=1))
    assert torch.equal(scaled_product(*a, *b, torch.bfloat16), scaled_product(*a, *b).bfloat16())


def test_scales_of_another_shape_are_refused() -> None:
    codes, scales = quantize_rows(drawn(300, 128))
    with pytest.raises(ValueError, match=r"2 rows of scales do not fit 300 rows of codes; .* 128 rows, 3"):
        scaled_product(codes, scales, codes, scales[:2])


@pytest.mark.parametrize("sizes", [[5, 0, 131, 1], [0, 0, 9], [64, 64], [1, 0, 0, 0, 0, 0]])
def test_groups_are_products_of_their_own(sizes: list[int]) -> None:
    offsets = torch.tensor([0, *sizes]).cumsum(0).int()
    x, y = drawn(sum(sizes), 150), drawn(sum(sizes), 40, seed=2)
    w = quantize_weight(drawn(len(sizes), 140, 150, seed=1))
    codes, scales = quantize_rows(x)
    out = grouped_scaled_product(codes, scales, w.codes, w.scales, offsets)
    totals = grouped_scaled_outer(*quantize_columns(y, offsets), *quantize_columns(x, offsets), offsets)
    assert totals.shape == (len(sizes), 40, 150)
    for e, (start, end) in enumerate(zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)):
        rows = slice(start, end)
        assert torch.equal(out[rows], scaled_product(codes[rows], scales[rows], w.codes[e], w.scales[e]))
        if end == start:
            assert not totals[e].any()
        else:
            wanted = scaled_product(*quantize_rows(y[rows].T), *quantize_rows(x[rows].T))
            torch.testing.assert_close(totals[e], wanted, rtol=1e-6, atol=1e-6)  # padding may change a sum's order
