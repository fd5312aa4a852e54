"""Why FP8 sums are promoted to float32: Hopper's tensor cores add with about 14 bits (V3 3.3.2)."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fathom.kernels.tensor_core import tensor_core_product
from fathom.unlocks.card import Card

WIDTH = 4096  # inner width of V3's example
SIDE = {"cpu": 256, "cuda": 2048}  # outputs per side; the largest error grows a little with their number
PROMOTE = 128  # products between two promotions (V3: N_C)

Product = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Errors:
    """How far a product lies from the exact one."""

    largest: float  # largest error, as a share of the outputs' root mean square
    frobenius: float  # norm of the error over norm of the result
    bias: float  # mean error over mean result, on numbers that are all positive


def main(device: torch.device, width: int = WIDTH, side: int | None = None, seed: int = 0) -> Card:
    """The errors with and without promotion: modelled here, and real where `device` is a Hopper GPU."""
    side = side or SIDE[device.type]
    ways: dict[str, Product] = {
        "modelled, not promoted": lambda a, b: tensor_core_product(a, b, None),
        f"modelled, promoted every {PROMOTE}": lambda a, b: tensor_core_product(a, b, PROMOTE),
    }
    if device.type == "cuda" and torch.cuda.get_device_capability(device)[0] == 9:
        ways["this GPU, use_fast_accum=True"] = lambda a, b: hardware_product(a, b, fast=True)
        ways["this GPU, use_fast_accum=False"] = lambda a, b: hardware_product(a, b, fast=False)
    normal = [codes(torch.randn, side, width, seed + i).to(device) for i in range(2)]
    uniform = [codes(torch.rand, side, width, seed + i).to(device) for i in range(2)]
    outputs = {name: product(*normal) for name, product in ways.items()}
    errors = {name: measure(outputs[name], normal, product(*uniform), uniform) for name, product in ways.items()}
    return Card(
        name=f"fp8-accumulation: {side} x {side} outputs, inner width {width}",
        claim="FP8 products added inside Hopper's tensor cores lose precision; promotion to float32 every 128 cures it",
        source="DeepSeek-V3 3.3.2, Increasing Accumulation Precision; ISCA'25 3.1",
        published="a maximum relative error near 2 % at an inner width of 4096, accumulating in about 14 bits",
        headings=("sum kept in", "largest error / rms", "error norm", "bias of positive sums"),
        rows=[(n, f"{e.largest:.2%}", f"{e.frobenius:.1e}", f"{e.bias:+.3%}") for n, e in errors.items()],
        reading=reading(errors, agreements(outputs)),
        figures={
            "width": width,
            "side": side,
            "errors": {name: vars(e) for name, e in errors.items()},
            "same_as_hardware": agreements(outputs),
        },
    )


def codes(draw: Callable[..., Tensor], rows: int, width: int, seed: int) -> Tensor:
    """Numbers rounded to e4m3, in float32."""
    numbers = draw(rows, width, generator=torch.Generator().manual_seed(seed))
    return numbers.to(torch.float8_e4m3fn).float()


def hardware_product(a: Tensor, b: Tensor, fast: bool) -> Tensor:
    """a @ b.T by this GPU's FP8 units, without promotion (`fast`) or with."""
    one = torch.ones((), device=a.device)
    left, right = a.to(torch.float8_e4m3fn), b.to(torch.float8_e4m3fn).T
    return torch._scaled_mm(left, right, one, one, out_dtype=torch.float32, use_fast_accum=fast)  # pyright: ignore


def measure(normal: Tensor, normal_inputs: list[Tensor], uniform: Tensor, uniform_inputs: list[Tensor]) -> Errors:
    """The errors of one way to multiply, on normal and on uniform numbers."""
    exact = normal_inputs[0].double() @ normal_inputs[1].double().T
    error = normal.double() - exact
    positive = uniform_inputs[0].double() @ uniform_inputs[1].double().T
    return Errors(
        largest=float(error.abs().max() / exact.square().mean().sqrt()),
        frobenius=float(error.norm() / exact.norm()),
        bias=float((uniform.double() - positive).mean() / positive.mean()),
    )


def agreements(outputs: dict[str, Tensor]) -> dict[str, float]:
    """Share of outputs in which the model has the hardware's very bits."""
    names = list(outputs)
    pairs = zip(names[:2], names[2:], strict=False)
    return {real: float((outputs[model] == outputs[real]).float().mean()) for model, real in pairs}


def reading(errors: dict[str, Errors], same: dict[str, float]) -> str:
    """What the rows say."""
    without, promoted = list(errors.values())[:2]
    factor = without.frobenius / promoted.frobenius
    text = (
        f"Without promotion the error is {factor:.0f} times as large, and one-sided: what lies below the last place\n"
        "is cut off, so sums of one sign shrink as they grow."
    )
    if same:
        text += "\nThe model has the hardware's very bits in " + ", ".join(
            f"{share:.1%} of outputs ({name})" for name, share in same.items()
        )
    return text
