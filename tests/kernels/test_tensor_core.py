"""The model of Hopper's accumulator: by hand, and against errors measured on one H200 (normal and uniform data)."""

import pytest
import torch

from fathom.kernels.tensor_core import tensor_core_product


def codes(kind: str, rows: int, width: int, seed: int) -> torch.Tensor:
    draw = torch.randn if kind == "normal" else torch.rand
    generator = torch.Generator().manual_seed(seed)
    return draw(rows, width, generator=generator).to(torch.float8_e4m3fn).float()


def test_what_lies_below_the_last_place_is_cut_off() -> None:
    a = torch.zeros(1, 32)
    a[0, 0], a[0, 1:5] = 64.0, torch.tensor([2.0**-8, 2.0**-7, -(2.0**-8), 1.0])
    ones = torch.ones(1, 32)
    # 64 has its 13th place at 2^-7: the numbers of 2^-8 vanish, whatever their sign
    assert tensor_core_product(a, ones).item() == 65 + 2**-7
    # the exponent is that of the factors: 1.75 * 1.75 counts as 2^0, so 2^-13 is kept beside it
    pair = torch.zeros(1, 32)
    pair[0, 0], pair[0, 1] = 1.75, 2.0**-7
    other = torch.zeros(1, 32)
    other[0, 0], other[0, 1] = 1.75, 2.0**-6
    assert tensor_core_product(pair, other).item() == 1.75**2  # the register cuts 2^-13 off again


def test_short_sums_are_exact_and_promotion_restarts_the_sum() -> None:
    ones = torch.ones(1, 128 * 200)
    assert tensor_core_product(ones, ones).item() == 25600
    huge = torch.cat((torch.full((1, 32), 448.0), torch.full((1, 32), 1.0)), dim=1)
    unit = torch.cat((torch.full((1, 32), 448.0), torch.full((1, 32), 0.25)), dim=1)
    assert tensor_core_product(huge, unit, None).item() == 32 * 448**2
    assert tensor_core_product(huge, unit, 32).item() == 32 * 448**2 + 8


@pytest.mark.parametrize(
    ("width", "promote", "frobenius", "bias"),
    [(4096, None, 1.3e-3, -0.066), (8192, None, 2.1e-3, -0.134), (4096, 128, 1.3e-4, -5e-4), (4096, 32, 4.4e-5, -4e-5)],
)
def test_errors_are_those_of_the_hardware(width: int, promote: int | None, frobenius: float, bias: float) -> None:
    a, b = codes("normal", 64, width, 0), codes("normal", 64, width, 1)
    exact = a.double() @ b.double().T
    error = tensor_core_product(a, b, promote).double() - exact
    assert float(error.norm() / exact.norm()) == pytest.approx(frobenius, rel=0.06)
    a, b = codes("uniform", 32, width, 0), codes("uniform", 32, width, 1)
    exact = a.double() @ b.double().T
    found = float((tensor_core_product(a, b, promote).double() - exact).mean() / exact.mean())
    assert found == pytest.approx(bias, rel=0.06)


def test_only_whole_instructions_are_promoted() -> None:
    with pytest.raises(ValueError, match="promote_every=48 is no multiple of 32"):
        tensor_core_product(torch.ones(1, 64), torch.ones(1, 64), 48)
