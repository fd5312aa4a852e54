"""Block quantisation: exact values, odd edges, bounded error."""

import pytest
import torch

from fathom.kernels.quant import block_grid, dequantize_blocks, quantize_blocks


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
