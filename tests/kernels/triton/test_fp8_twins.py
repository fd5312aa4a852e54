"""On a Hopper GPU: twins against their definitions, with odd sizes, empty groups and unwritten memory made visible."""

import pytest
import torch

from fathom.kernels import quant, scaled
from fathom.kernels.fp8 import Fp8Layer
from fathom.kernels.fp8_experts import fp8_grouped_swiglu
from fathom.kernels.fp8_linear import fp8_linear

pytestmark = pytest.mark.gpu

GROUPS = {
    "ragged": [5, 0, 131, 1, 300, 64],
    "aligned": [128, 256, 0, 384],
    "one": [200],
    "one token": [0, 1, 0],
    "many": [7] * 64,
}


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to("cuda", dtype)


def offsets_of(sizes: list[int]) -> torch.Tensor:
    return torch.tensor([0, *sizes]).cumsum(0).int().cuda()


def poison() -> None:
    """Fill free memory with NaN, so that what a kernel leaves out shows."""
    block = torch.full((1 << 28,), float("nan"), device="cuda")
    del block


def same_codes(found: torch.Tensor, wanted: torch.Tensor, scales: torch.Tensor, wanted_scales: torch.Tensor) -> None:
    """Equal scales, and codes equal but for one in a hundred thousand, whose quotient lay at a tie."""
    assert found.shape == wanted.shape and scales.shape == wanted_scales.shape
    torch.testing.assert_close(scales, wanted_scales, rtol=2e-7, atol=0)
    assert (found.float() != wanted.float()).float().mean() < 1e-5


@pytest.mark.parametrize("shape", [(1, 1), (5, 130), (300, 513), (1000, 2048)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("power_of_two", [False, True])
def test_rows_and_columns(shape: tuple[int, int], dtype: torch.dtype, power_of_two: bool) -> None:
    x = drawn(*shape, dtype=dtype) * 10
    poison()
    rows = quant.quantize_rows(x, power_of_two)
    wanted = quant.quantize_rows(x.cpu(), power_of_two)
    same_codes(rows[0].cpu(), wanted[0], rows[1].cpu(), wanted[1])
    both = quant.quantize_rows_and_columns(x, None, power_of_two)
    wanted = quant.quantize_rows_and_columns(x.cpu(), None, power_of_two)
    same_codes(both[0].cpu(), wanted[0], both[1].cpu(), wanted[1])
    same_codes(both[2].cpu(), wanted[2], both[3].cpu(), wanted[3])
    columns = quant.quantize_columns(x, None, power_of_two)
    same_codes(columns[0].cpu(), wanted[2], columns[1].cpu(), wanted[3])


@pytest.mark.parametrize("groups", GROUPS)
def test_columns_of_groups(groups: str) -> None:
    sizes = GROUPS[groups]
    x, offsets = drawn(sum(sizes), 200), offsets_of(sizes)
    poison()
    found = quant.quantize_rows_and_columns(x, offsets)
    wanted = quant.quantize_rows_and_columns(x.cpu(), offsets.cpu())
    strips = sum(-(-size // 128) for size in sizes)  # behind them nothing is said
    same_codes(found[0].cpu(), wanted[0], found[1].cpu(), wanted[1])
    same_codes(
        found[2][:, : strips * 128].cpu(),
        wanted[2][:, : strips * 128],
        found[3][:, :strips].cpu(),
        wanted[3][:, :strips],
    )


def test_swiglu_and_weights() -> None:
    hidden, weight = drawn(333, 600, dtype=torch.bfloat16), drawn(333)
    found = quant.quantize_swiglu(hidden, weight)
    exact = quant.swiglu(hidden.cpu(), weight.cpu())
    error = (quant.dequantize_rows(*found).cpu() - exact).norm() / exact.norm()
    assert 0.01 < error < 0.04
    for shape in ((300, 200), (3, 257, 384)):
        w = drawn(*shape, seed=3)
        ours, wanted = quant.quantize_weight(w), quant.quantize_weight(w.cpu())
        for a, b in zip(ours, wanted, strict=True):
            assert torch.equal(a.float().cpu(), b.float())


def test_what_is_not_finite_stays_visible() -> None:
    x = drawn(130, 256)
    x[0, 3], x[129, 200] = float("nan"), float("inf")
    for codes, scales in (quant.quantize_rows(x), quant.quantize_rows_and_columns(x)[:2]):
        back = quant.dequantize_rows(codes, scales)
        assert not back[0, 3].isfinite() and not back[129, 200].isfinite() and back[1:129].isfinite().all()
        assert not scales[0, 0].isfinite() and not scales[129, 1].isfinite()


def close(found: torch.Tensor, wanted: torch.Tensor) -> None:
    """The tensor core keeps about 14 bits within a strip, and bfloat16 outputs 8."""
    assert found.shape == wanted.shape and found.isfinite().all()
    limit = 4e-3 if found.dtype == torch.bfloat16 else 5e-4
    error = (found.double().cpu() - wanted.double()).norm()
    assert error <= limit * wanted.double().norm(), float(error / wanted.double().norm())


@pytest.mark.parametrize(
    ("m", "n", "k"), [(1, 128, 128), (64, 1, 1), (200, 264, 300), (1024, 2112, 1536), (130, 100, 1408)]
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_dense(m: int, n: int, k: int, dtype: torch.dtype) -> None:
    a, b = quant.quantize_rows(drawn(m, k)), quant.quantize_weight(drawn(n, k, seed=1))
    poison()
    found = scaled.scaled_product(*a, b.codes, b.scales, dtype)
    close(found, scaled.scaled_product(*(t.cpu() for t in (*a, b.codes, b.scales))))


@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize("width", [(256, 384), (200, 300)])
def test_grouped(groups: str, width: tuple[int, int]) -> None:
    from fathom.kernels.triton import scaled as twin

    sizes, (n, k) = GROUPS[groups], width
    offsets = offsets_of(sizes)
    a = quant.quantize_rows(drawn(sum(sizes), k, dtype=torch.bfloat16))
    b = quant.quantize_weight(drawn(len(sizes), n, k, seed=1))
    wanted = scaled.grouped_scaled_product(*(t.cpu() for t in (*a, b.codes, b.scales, offsets)))
    for tiling in (twin.SMALL, twin.TALL):
        poison()
        found = twin.grouped_scaled_product(*a, b.codes, b.scales, offsets, torch.bfloat16, tiling)
        close(found, wanted)


@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize("width", [(256, 384), (200, 90)])
def test_grouped_outer(groups: str, width: tuple[int, int]) -> None:
    sizes, (m, n) = GROUPS[groups], width
    offsets = offsets_of(sizes)
    a = quant.quantize_columns(drawn(sum(sizes), m), offsets)
    b = quant.quantize_columns(drawn(sum(sizes), n, seed=1), offsets)
    poison()
    found = scaled.grouped_scaled_outer(*a, *b, offsets)
    close(found, scaled.grouped_scaled_outer(*(t.cpu() for t in (*a, *b, offsets))))
    for e, size in enumerate(sizes):
        assert size or not found[e].any()


def test_linear_and_experts_as_on_a_cpu() -> None:
    x, weight, direction = drawn(300, 200), drawn(130, 200, seed=1), drawn(300, 130, seed=2)
    results = []
    for device in ("cuda", "cpu"):
        leaves = [t.to(device).requires_grad_() for t in (x, weight)]
        out = fp8_linear(*leaves, None, Fp8Layer("layer"))
        results.append((out, *torch.autograd.grad(out, leaves, direction.to(device))))
    for ours, wanted in zip(*results, strict=True):
        close(ours, wanted)
    chosen = torch.stack([torch.randperm(6, generator=torch.Generator().manual_seed(i))[:2] for i in range(200)])
    shapes = (200, 256), (200, 2), (6, 272, 256), (6, 256, 136)
    tensors = [drawn(*shape, seed=i) / shape[-1] ** 0.5 for i, shape in enumerate(shapes)]
    results = []
    for device in ("cuda", "cpu"):
        x, weights, gate_up, down = leaves = [t.to(device).requires_grad_() for t in tensors]
        out = fp8_grouped_swiglu(x, chosen.to(device), weights, gate_up, down, Fp8Layer("experts"))
        results.append((out, *torch.autograd.grad(out.square().sum(), leaves)))
    for ours, wanted in zip(*results, strict=True):
        assert (ours.cpu() - wanted).norm() < 0.02 * wanted.norm()  # a code may fall to the other side


def test_a_layer_that_nobody_watches_names_what_was_not_finite() -> None:
    layer, x = Fp8Layer("third"), drawn(40, 256)
    weight = drawn(128, 256, seed=1).requires_grad_()
    fp8_linear(x, weight, None, layer).sum().backward()
    assert layer.not_finite() == []
    x[3, 7] = float("inf")
    fp8_linear(x, weight, None, layer)
    assert layer.not_finite() == ["input"]
