"""The FP8 linear map is the definition, step by step, to the bit."""

import pytest
import torch

from fathom.kernels.fp8 import Fp8Layer
from fathom.kernels.fp8_linear import fp8_linear
from fathom.kernels.quant import quantize_blocks, quantize_rows, round_e5m6
from fathom.kernels.scaled import scaled_product


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


SHAPES = [(6, 128, 256), (1, 1, 1), (130, 200, 72), (300, 40, 130)]


@pytest.mark.parametrize(("rows", "inputs", "outputs"), SHAPES)
def test_values_and_gradients_are_the_definition(rows: int, inputs: int, outputs: int) -> None:
    x, weight = drawn(rows, inputs).requires_grad_(), drawn(outputs, inputs, seed=1).requires_grad_()
    direction = drawn(rows, outputs, seed=2)
    out = fp8_linear(x, weight, None, Fp8Layer("layer"))
    codes, scales = quantize_blocks(weight.detach())
    assert torch.equal(out, scaled_product(*quantize_rows(x.detach()), codes, scales))
    grad_x, grad_weight = torch.autograd.grad(out, (x, weight), direction)
    transposed = codes.float().T.contiguous().to(torch.float8_e4m3fn)
    assert torch.equal(grad_x, scaled_product(*quantize_rows(direction), transposed, scales.T.contiguous()))
    padded = torch.nn.functional.pad  # rows are padded to whole strips, which changes no sum
    columns = [quantize_rows(padded(t.T, (0, -rows % 128))) for t in (direction, x.detach())]
    assert torch.equal(grad_weight, scaled_product(*columns[0], *columns[1]))


def test_errors_are_those_of_the_format() -> None:
    x, weight = drawn(256, 512).requires_grad_(), drawn(384, 512, seed=1).requires_grad_()
    direction = drawn(256, 384, seed=2)
    found = fp8_linear(x, weight, None, Fp8Layer("layer"))
    wanted = x @ weight.T
    for ours, exact in zip(
        (found, *torch.autograd.grad(found, (x, weight), direction)),
        (wanted, *torch.autograd.grad(wanted, (x, weight), direction)),
        strict=True,
    ):
        assert 0.02 < (ours - exact).norm() / exact.norm() < 0.045  # 3.6 % on an H200 at larger shapes


def test_bias_leading_dims_and_autocast() -> None:
    x, weight, bias = drawn(2, 3, 40), drawn(8, 40, seed=1), drawn(8, seed=2)
    layer = Fp8Layer("layer")
    out = fp8_linear(x, weight, bias, layer)
    assert torch.equal(out, fp8_linear(x.view(6, 40), weight, None, layer).view(2, 3, 8) + bias)
    with torch.autocast("cpu", torch.bfloat16):
        low = fp8_linear(x, weight, bias, layer)
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), out, rtol=2e-2, atol=2e-2)


def test_what_is_kept_of_the_input_is_a_choice() -> None:
    x, weight = drawn(130, 150).requires_grad_(), drawn(20, 150, seed=1).requires_grad_()
    direction = drawn(130, 20, seed=2)

    def gradient(layer: Fp8Layer) -> torch.Tensor:
        return torch.autograd.grad(fp8_linear(x, weight, None, layer), weight, direction)[0]

    codes = gradient(Fp8Layer("layer"))
    assert torch.equal(gradient(Fp8Layer("layer", kept="bfloat16")), codes)  # on a CPU the input is kept in float32
    through_e5m6 = gradient(Fp8Layer("layer", kept="e5m6"))
    rounded = round_e5m6(x.detach()).requires_grad_()
    again = torch.autograd.grad(fp8_linear(rounded, weight, None, Fp8Layer("layer")), weight, direction)[0]
    assert torch.equal(through_e5m6, again) and not torch.equal(through_e5m6, codes)
    plain = gradient(Fp8Layer("layer", fp8_wgrad=False))
    torch.testing.assert_close(plain, direction.T @ x.detach())


def test_a_weight_is_quantised_once_per_step() -> None:
    weight = drawn(4, 4).requires_grad_()
    layer = Fp8Layer("layer")
    first = layer.codes(weight)
    assert layer.codes(weight) is first
    weight.grad = torch.ones_like(weight)
    torch.optim.SGD([weight], lr=0.1).step()
    after = layer.codes(weight)
    assert after is not first and torch.equal(after.scales, quantize_blocks(weight.detach())[1])
    weight.data = weight.data.clone()
    assert layer.codes(weight) is not after


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_what_is_not_finite_is_reported_with_its_name(bad: float) -> None:
    layer = Fp8Layer("layers.3.attention.kv_a_proj")
    x, weight = drawn(3, 5), drawn(2, 5, seed=1).requires_grad_()
    broken = x.clone()
    broken[1, 2] = bad
    with pytest.raises(RuntimeError, match=r"the input of layers\.3\.attention\.kv_a_proj holds 1 .* out of 15"):
        fp8_linear(broken, weight, None, layer)
    gradient = torch.tensor([[bad, 1.0], [1.0, bad], [0.0, 0.0]])
    with pytest.raises(RuntimeError, match=r"the output's gradient of layers\.3\.attention\.kv_a_proj holds 2 numbers"):
        fp8_linear(x, weight, None, layer).backward(gradient)
    with torch.no_grad():
        weight[0, 0] = bad
    with pytest.raises(RuntimeError, match=r"the weight of layers\.3\.attention\.kv_a_proj holds 1 numbers"):
        fp8_linear(x, weight, None, layer)


def test_a_watched_layer_counts() -> None:
    layer = Fp8Layer("layer", watch={})
    x = torch.ones(2, 256)
    x[0, 1], x[0, 2] = 1e-9, 0.0
    fp8_linear(x, drawn(3, 256), None, layer)
    assert layer.watch is not None
    count = layer.watch["input"]
    assert (count.numbers, count.underflowed, count.saturated) == (512, 1, 510)
