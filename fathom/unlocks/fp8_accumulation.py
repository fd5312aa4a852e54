"""Why FP8 sums are promoted to float32: Hopper's tensor cores add with about 14 bits (V3 3.3.2)."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from fathom.kernels.tensor_core import tensor_core_product
from fathom.unlocks.drawing import Curves
from fathom.unlocks.experiment import Claim, Context, Experiment, Figures, Result, Size
from fathom.unlocks.verdict import above, all_of, below, over_seeds

WIDTH = 4096  # inner width of V3's example
WIDTHS: dict[Size, tuple[int, ...]] = {
    "toy": (512, WIDTH),
    "cpu": (256, 512, 1024, 2048, WIDTH),
    "gpu": (256, 512, 1024, 2048, WIDTH, 8192, 16384),
}
SIDE: dict[Size, int] = {
    "toy": 64,
    "cpu": 256,
    "gpu": 2048,
}  # outputs per side, which the largest error grows with
PROMOTE = 128  # products between two promotions (V3: N_C)
LARGEST = 0.02  # printed: the largest relative error at WIDTH
NEAR = 0.5  # a share of it counts as "close to"

Product = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Sum:
    """How products are added up."""

    promote_every: int | None = None  # products between two sums in float32; None never


@dataclass(frozen=True)
class Errors:
    """How far a product lies from the exact one."""

    largest: float  # largest error, as a share of the outputs' root mean square
    frobenius: float  # norm of the error over norm of the result
    bias: float  # mean error over mean result, on numbers that are all positive


def variants(size: Size) -> dict[str, Sum]:
    """The same sums without promotion, and with."""
    return {"not promoted": Sum(), "promoted": Sum(promote_every=PROMOTE)}


def measure_seed(context: Context, seed: int) -> Figures:
    """Errors over inner widths: modelled, and real where the device is a Hopper GPU."""
    found: list[dict[str, Any]] = []
    for width in WIDTHS[context.size]:
        context.check_time()
        errors, same = errors_at(width, SIDE[context.size], seed, context.device)
        found.append({"width": width, "errors": {n: asdict(e) for n, e in errors.items()}, "same_as_hardware": same})
    return {"side": SIDE[context.size], "widths": found}


def errors_at(width: int, side: int, seed: int, device: torch.device) -> tuple[dict[str, Errors], dict[str, float]]:
    """The errors of every way to add at one inner width, and the share of outputs where model and GPU agree."""
    ways: dict[str, Product] = {
        name: lambda a, b, every=way.promote_every: tensor_core_product(a, b, every)
        for name, way in variants("cpu").items()
    }
    if device.type == "cuda" and torch.cuda.get_device_capability(device)[0] == 9:
        ways["this GPU, use_fast_accum=True"] = lambda a, b: hardware_product(a, b, fast=True)
        ways["this GPU, use_fast_accum=False"] = lambda a, b: hardware_product(a, b, fast=False)
    normal = [codes(torch.randn, side, width, 2 * seed + i).to(device) for i in range(2)]
    uniform = [codes(torch.rand, side, width, 2 * seed + i).to(device) for i in range(2)]
    outputs = {name: product(*normal) for name, product in ways.items()}
    errors = {name: measure(outputs[name], normal, product(*uniform), uniform) for name, product in ways.items()}
    return errors, agreements(outputs)


def conclude(seeds: Sequence[Figures]) -> Result:
    """Supported where the error without promotion is near the printed one, and promotion makes it ten times less."""
    at = [next(found for found in seed["widths"] if found["width"] == WIDTH)["errors"] for seed in seeds]
    plain, promoted = "not promoted", "promoted"
    largest = over_seeds([errors[plain]["largest"] for errors in at])
    cure = over_seeds([errors[plain]["frobenius"] / errors[promoted]["frobenius"] for errors in at])
    means = {name: [over_seeds([errors[name][k] for errors in at]).mean for k in KINDS] for name in at[0]}
    return Result(
        measured=f"largest error {largest.text('.2%')} of the outputs' rms; {cure.text('.1f')} times less if promoted",
        verdict=all_of(above(largest, NEAR * LARGEST), below(largest, LARGEST / NEAR), above(cure, 5.0)),
        because=f"the largest error is to lie between {NEAR * LARGEST:.0%} and {LARGEST / NEAR:.0%}, and promotion is "
        f"to make the error's norm more than 5 times smaller; {len(seeds)} seeds, 95 % intervals",
        headings=("sum kept in", "largest error / rms", "error norm", "bias of positive sums"),
        rows=[(name, f"{a:.2%}", f"{b:.1e}", f"{c:+.3%}") for name, (a, b, c) in means.items()],
        charts=[chart(seeds)],
        figures={"largest": asdict(largest), "cure": asdict(cure)},
    )


KINDS = ("largest", "frobenius", "bias")


def chart(seeds: Sequence[Figures]) -> Curves:
    """The norm of the error over the inner width."""
    names = seeds[0]["widths"][0]["errors"]
    curves = {
        name: [
            (width["width"], over_seeds([s["widths"][i]["errors"][name]["frobenius"] for s in seeds]).mean)
            for i, width in enumerate(seeds[0]["widths"])
        ]
        for name in names
    }
    return Curves(
        title="Error against inner width",
        caption="Norm of the error over the norm of the result; mean over seeds.",
        x="products added, K",
        y="relative error",
        curves=curves,
        log_x=True,
        log_y=True,
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


EXPERIMENT = Experiment(
    name="fp8-accumulation",
    title="FP8 sums need promotion",
    claim=Claim(
        says="FP8 products added inside Hopper's tensor cores lose precision; promotion to float32 every 128 cures it.",
        source="DeepSeek-V3 3.3.2, Increasing Accumulation Precision; ISCA'25 3.1",
        published="a maximum relative error near 2 % at an inner width of 4096",
        conditions="two random matrices, accumulation in about 14 bits on an H800 against float32",
    ),
    variants=variants,
    changes=frozenset({"promote_every"}),
    minutes={"toy": 0.02, "cpu": 0.3, "gpu": 0.5},
    seeds=3,
    measure=measure_seed,
    conclude=conclude,
    shows="how much of the result the tensor cores' short sums lose at each width, and what promotion gives back; on a "
    "Hopper GPU the real units stand beside the model.",
    does_not_show="whether a training run notices: errors of single products may average out over a step.",
)
