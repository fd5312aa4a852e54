"""Block quantisation: exact values, odd edges, bounded error."""

import pytest
import torch

from fathom.kernels.quant import (
    block_grid,
    column_strips,
    dequantize_blocks,
    dequantize_rows,
    quantize_blocks,
    quantize_columns,
    quantize_rows,
    quantize_rows_and_columns,
    quantize_swiglu,
    quantize_weight,
    round_e5m6,
)


def test_hand_numbers() -> None:
    weight = torch.tensor([[448.0, -224.0, 0.5, 3.0], [17.0, 18.0, 1.0, 0.25]])
    codes, scales = quantize_blocks(weight, block=2)
    assert torch.equal(scales, torch.tensor([[1.0, 3.0 / 448]]))
    # 17 lies between 16 and 18 and goes to the even mantissa; in the second block 3 -> 448, 0.5 -> 74.67 -> 72,
    # 1 -> 149.33 -> 144 and 0.25 -> 37.33 -> 36
    assert torch.equal(codes.float(), torch.tensor([[448.0, -224.0, 72.0, 448.0], [16.0, 18.0, 144.0, 36.0]]))
    expected = torch.tensor([[448.0, -224.0, 72 * 3 / 448, 3.0], [16.0, 18.0, 144 * 3 / 448, 36 * 3 / 448]])
    torch.testing.assert_close(dequantize_blocks(codes, scales, block=2), expected, rtol=1e-7, atol=0)


@pytest.mark.parametrize("shape", [(128, 128), (1, 1), (129, 128), (300, 257), (64, 700)])
def test_odd_edges_have_blocks_of_their_own(shape: tuple[int, int]) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    codes, scales = quantize_blocks(weight)
    assert codes.shape == shape
    assert codes.dtype == torch.float8_e4m3fn
    assert scales.dtype == torch.float32
    assert tuple(scales.shape) == block_grid(shape)
    for row in range(scales.shape[0]):
        for column in range(scales.shape[1]):
            block = weight[128 * row : 128 * (row + 1), 128 * column : 128 * (column + 1)]
            assert scales[row, column] == block.abs().max() / 448
    # e4m3 keeps three bits behind the leading one: 1/16 relative, and half a subnormal step near zero
    error = (dequantize_blocks(codes, scales) - weight).abs()
    assert (error <= torch.maximum(weight.abs() / 16, scales.max() * 2**-10)).all()
    assert error.max() > 0 or weight.numel() == 1


def test_quantising_again_changes_nothing() -> None:
    weight = torch.randn(200, 150, generator=torch.Generator().manual_seed(1))
    once = dequantize_blocks(*quantize_blocks(weight))
    assert torch.equal(dequantize_blocks(*quantize_blocks(once)), once)


def test_zeros_and_tiny_weights_have_a_scale() -> None:
    weight = torch.zeros(3, 130)
    weight[0, 129] = 1e-6
    codes, scales = quantize_blocks(weight)
    assert torch.equal(scales, torch.full((1, 2), 1e-4 / 448))
    found = dequantize_blocks(codes, scales)
    assert (found[:, :128] == 0).all()
    assert found[0, 129].item() == pytest.approx(1e-6, rel=1 / 16)


def test_bfloat16_weights_are_scaled_in_float32() -> None:
    weight = torch.randn(128, 128, generator=torch.Generator().manual_seed(2)).bfloat16()
    codes, scales = quantize_blocks(weight)
    assert torch.equal(scales.squeeze(), weight.float().abs().max() / 448)
    assert torch.equal(codes.float(), quantize_blocks(weight.float())[0].float())


def test_scales_of_another_shape_are_refused() -> None:
    codes, _ = quantize_blocks(torch.ones(200, 10))
    with pytest.raises(ValueError, match=r"scales of shape \(1, 1\) do not fit codes of shape \(200, 10\).*\(2, 1\)"):
        dequantize_blocks(codes, torch.ones(1, 1))


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_rows_by_hand() -> None:
    x = torch.zeros(2, 130)
    x[0, :3] = torch.tensor([896.0, -448.0, 3.0])
    x[0, 128:] = torch.tensor([0.5, 0.25])
    codes, scales = quantize_rows(x)
    floor = 1e-30 / 448
    torch.testing.assert_close(scales, torch.tensor([[2.0, 0.5 / 448], [floor, floor]]), rtol=1e-7, atol=0)
    assert codes[0, :3].tolist() == [448.0, -224.0, 1.5]
    assert codes[0, 128:].tolist() == [448.0, 224.0]
    assert not codes[1].float().any()


def test_power_of_two_scales_are_the_next_above() -> None:
    x = torch.tensor([[448.0], [449.0], [224.0], [1.0]])
    assert quantize_rows(x, power_of_two=True)[1].flatten().tolist() == [1.0, 2.0, 0.5, 2.0**-8]
    wide = drawn(40, 300) * torch.logspace(-3, 3, 300)
    plain, rounded = quantize_rows(wide)[1], quantize_rows(wide, power_of_two=True)[1]
    assert ((rounded >= plain) & (rounded < 2 * plain)).all()
    assert (torch.frexp(rounded).mantissa == 0.5).all()


def test_small_gradients_do_not_vanish() -> None:
    x = drawn(4, 200)
    codes, scales = quantize_rows(x * 2**-40)
    assert torch.equal(codes.float(), quantize_rows(x)[0].float())
    assert torch.equal(scales, quantize_rows(x)[1] * 2**-40)


@pytest.mark.parametrize("shape", [(1, 1), (5, 128), (130, 200), (3, 1000)])
def test_rows_come_back_within_half_a_step(shape: tuple[int, int]) -> None:
    x = drawn(*shape)
    codes, scales = quantize_rows(x)
    assert codes.shape == shape and scales.shape == (shape[0], -(-shape[1] // 128))
    error = (dequantize_rows(codes, scales) - x).abs()
    assert (error <= torch.maximum(x.abs() / 16, scales.max() * 2**-10) * 1.0001).all()


def test_columns_of_one_group_are_the_rows_of_the_transpose() -> None:
    x = drawn(150, 70)
    codes, scales, codes_t, scales_t = quantize_rows_and_columns(x)
    assert torch.equal(codes.float(), quantize_rows(x)[0].float()) and torch.equal(scales, quantize_rows(x)[1])
    wanted, wanted_scales = quantize_rows(x.T)
    assert torch.equal(codes_t[:, :150].float(), wanted.float())
    assert torch.equal(scales_t, wanted_scales)
    assert codes_t.shape == (70, 256) and not codes_t[:, 150:].float().any()


def test_no_strip_of_a_column_holds_two_groups() -> None:
    sizes = [130, 0, 1, 128, 0, 200]
    x = drawn(sum(sizes), 10, seed=3)
    offsets = torch.tensor([0, *sizes]).cumsum(0).int()
    codes, scales = quantize_columns(x, offsets)
    assert codes.shape == (10, 128 * column_strips(sum(sizes), len(sizes)))
    strip = 0
    for rows in x.split(sizes):
        alone, alone_scales = quantize_rows(rows.T) if len(rows) else (x.new_zeros(10, 0), x.new_zeros(10, 0))
        strips = -(-len(rows) // 128)
        assert torch.equal(codes[:, 128 * strip : 128 * strip + len(rows)].float(), alone.float())
        assert torch.equal(scales[:, strip : strip + strips], alone_scales)
        strip += strips
    assert codes.float().abs().sum() == sum(quantize_rows(r.T)[0].float().abs().sum() for r in x.split(sizes) if len(r))


@pytest.mark.parametrize(("sizes"), [[0], [1], [128, 128], [1] * 9, [127, 129, 0]])
def test_strips_suffice(sizes: list[int]) -> None:
    assert sum(-(-size // 128) for size in sizes) <= column_strips(sum(sizes), len(sizes))


def test_a_weight_in_both_layouts_has_the_same_codes() -> None:
    weight = drawn(3, 130, 257)
    w = quantize_weight(weight)
    for e in range(3):
        codes, scales = quantize_blocks(weight[e])
        assert torch.equal(w.codes[e].float(), codes.float()) and torch.equal(w.scales[e], scales)
    assert torch.equal(w.codes_t.float(), w.codes.float().mT) and torch.equal(w.scales_t, w.scales.mT)
    assert w.codes_t.is_contiguous() and w.scales_t.is_contiguous()


def test_swiglu_is_quantised_as_it_is_computed() -> None:
    hidden, weight = drawn(5, 400), drawn(5, seed=1)
    gate, up = hidden[:, :200], hidden[:, 200:]
    wanted = quantize_rows(gate / (1 + (-gate).exp()) * up * weight[:, None])
    torch.testing.assert_close(
        dequantize_rows(*quantize_swiglu(hidden, weight)), dequantize_rows(*wanted), rtol=0.13, atol=1e-3
    )
    torch.testing.assert_close(quantize_swiglu(hidden, weight)[1], wanted[1])


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
@pytest.mark.parametrize("power_of_two", [False, True])
def test_what_is_not_finite_stays_visible(bad: float, power_of_two: bool) -> None:
    x = drawn(2, 256)
    x[0, 3] = bad
    codes, scales = quantize_rows(x, power_of_two)
    back = dequantize_rows(codes, scales)
    assert not back[0, 3].isfinite() and not scales[0, 0].isfinite()
    assert back[0, 128:].isfinite().all() and back[1].isfinite().all()


def test_e5m6_keeps_six_bits_and_more_than_e4m3() -> None:
    x = drawn(20, 300)
    kept = round_e5m6(x)
    large = x.abs() > 1e-2
    assert ((kept - x).abs()[large] <= x.abs()[large] * (2**-7 + 2**-10)).all()  # float16 rounds first
    mantissa = torch.frexp(kept).mantissa.abs() * 2**7
    assert torch.equal(mantissa, mantissa.round())
    assert (kept - x).norm() < 0.2 * (dequantize_rows(*quantize_rows(x)) - x).norm()
