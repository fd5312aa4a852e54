"""The training step's own kernels beside torch, as it stands and compiled, at a small model's sizes and at V3's.

Forward and backward together, captured in CUDA graphs that take turns (see `fathom.bench.gemm`). Rates count every
number that must be read or written once, beside those of a copy in the same run. The faster of what `fastest` may call
goes to the table of this GPU (`fathom.kernels.choices`).
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor

from fathom.bench.gemm import SETS, Side, race, random
from fathom.bench.rounds import describe_conditions
from fathom.kernels import activation, assembly, choices, linear_loss, norm, optimizer, permute, router

log = logging.getLogger(__name__)

TIE = 1.03  # ratio of rates up to which a difference is noise


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """One layer's widths, and the tokens that pass it."""

    tokens: int
    width: int
    experts: int
    chosen: int
    groups: tuple[int, int, int]  # groups of experts, those kept, scores that count in each
    expert_width: int
    heads: int
    vocabulary: int


SIZES = {
    "small": Sizes(
        tokens=32768, width=1024, experts=64, chosen=6, groups=(1, 1, 2), expert_width=384, heads=16, vocabulary=32768
    ),
    "v3": Sizes(
        tokens=8192,
        width=7168,
        experts=256,
        chosen=8,
        groups=(8, 4, 2),
        expert_width=2048,
        heads=128,
        vocabulary=129280,
    ),
}


@dataclass(frozen=True)
class Case:
    """One operation, the sets of inputs that it is given in turn, and the bytes that a call must move."""

    operation: Callable[..., Any]
    inputs: list[list[Any]]
    bytes: float
    differentiable: bool = True

    def side(self, f: Callable[..., Any]) -> Side:
        """A call of `f` on a set of inputs, gradients included."""
        pulls: list[Tensor] = []

        def run(index: int) -> Tensor:
            given = self.inputs[index]
            out = f(*given)
            outs = [t for t in (out if isinstance(out, tuple) else (out,)) if torch.is_tensor(t) and t.requires_grad]
            if not self.differentiable:
                return out[0] if isinstance(out, tuple) else out
            if not pulls:
                pulls.extend(torch.randn_like(t) for t in outs)
            torch.autograd.grad(outs, [t for t in given if torch.is_tensor(t) and t.requires_grad], pulls)
            return outs[0].detach()

        return run


def main(peer: str = "none") -> dict[str, Any]:
    """GB/s of every kernel and its rivals; writes the table of this GPU. `peer` is torch in any case."""
    if peer not in ("none", "torch"):
        raise ValueError(f"--peer {peer} does not go with fathom bench kernels, which runs beside torch; leave it out")
    if not torch.cuda.is_available():
        raise ValueError("fathom bench kernels measures kernels for a GPU, and there is none here")
    torch.manual_seed(0)
    winners: dict[choices.Place, str] = {}
    measured: dict[str, Any] = {"copy": copy_rate()}
    for name, sizes in SIZES.items():
        for case in cases(sizes):
            key = f"{name} {case.operation.__name__}"
            rates = measured[key] = race_of(case)
            winners[case.operation.__name__, *choices.bucket(case.inputs[0][0])] = winner(rates)
    measured["adamw"] = adamw_rates()
    choices.write(choices.path(), choices.this_gpu(), winners)
    return {
        "bench": "kernels",
        "gpu": torch.cuda.get_device_name(),
        "unit": "GB/s",
        "measured": measured,
        "table": str(choices.path()),
        **describe_conditions(),
    }


def winner(rates: dict[str, float]) -> str:
    """ "torch" where the definition as it stands is faster by more than noise, or ours does not run."""
    return "torch" if rates.get("torch", 0.0) > TIE * rates.get("ours", 0.0) else "triton"


def race_of(case: Case, **more: Callable[..., Any]) -> dict[str, float]:
    """GB/s of the definition, of the same compiled, of our twin, and of `more`."""
    definition = case.operation.__wrapped__  # type: ignore[attr-defined]
    sides = {
        "torch": definition,
        "compiled": torch.compile(definition, dynamic=False),
        "ours": _twin(definition),
        **more,
    }
    wanted = case.side(definition)(0).float()
    return race({name: case.side(f) for name, f in sides.items()}, case.bytes / 1e9, lambda _: wanted)


def _twin(definition: Callable[..., Any]) -> Callable[..., Any]:
    from importlib import import_module

    file = definition.__module__.rpartition(".")[2]
    return getattr(import_module(f"fathom.kernels.triton.{file}"), definition.__name__)


def cases(s: Sizes) -> list[Case]:
    """Every operation at these sizes, in bfloat16 but for the router and the logits."""
    n, d, k, pairs = s.tokens, s.width, s.chosen, s.tokens * s.chosen
    nope, rope = 128, 64

    def sets(make: Callable[[], list[Any]]) -> list[list[Any]]:
        return [make() for _ in range(SETS)]

    def wanting(*shape: int) -> Tensor:
        return random(*shape).requires_grad_()

    experts = [torch.rand(n, s.experts, device="cuda").topk(k).indices for _ in range(SETS)]
    places = [permute.permutation(e, s.experts) for e in experts]
    angle = torch.rand(1, n, rope // 2, device="cuda")
    heads = s.heads * n
    rows = min(n, (1 << 28) // s.vocabulary)
    return [
        Case(norm.add_rms_norm, sets(lambda: [wanting(n, d), wanting(n, d), wanting(d), 1e-6]), 2 * n * d * 8),
        Case(
            router.route,
            sets(
                lambda: [
                    random(n, s.experts).float().requires_grad_(),
                    random(s.experts).float() / 100,
                    k,
                    "sigmoid",
                    *s.groups,
                ]
            ),
            4 * n * s.experts * 5,
        ),
        Case(permute.permutation, [[e, s.experts] for e in experts], 8 * pairs + 8 * pairs, differentiable=False),
        Case(permute.permute, [[wanting(n, d), p] for p in places], 2 * 2 * d * (n + pairs)),
        Case(permute.unpermute, [[wanting(pairs, d), p] for p in places], 2 * 2 * d * (n + pairs)),
        Case(
            activation.weighted_swiglu,
            sets(lambda: [wanting(pairs, 2 * s.expert_width), torch.rand(pairs, device="cuda").requires_grad_()]),
            2 * pairs * s.expert_width * (3 + 5),
        ),
        Case(
            activation.through_swiglu,
            sets(
                lambda: [
                    random(pairs, 2 * s.expert_width),
                    random(pairs, s.expert_width),
                    torch.rand(pairs, device="cuda"),
                ]
            ),
            2 * pairs * s.expert_width * 6,
            differentiable=False,
        ),
        Case(
            assembly.assemble_heads,
            sets(
                lambda: [
                    wanting(1, n, s.heads, nope + rope),
                    wanting(1, n, s.heads, 2 * nope),
                    wanting(1, n, rope),
                    angle.cos(),
                    angle.sin(),
                ]
            ),
            2 * heads * (3 * (nope + rope) + nope) + 2 * heads * (3 * (nope + rope) + 4 * nope),
        ),
        Case(
            linear_loss.loss_rows,
            sets(
                lambda: [
                    random(rows, s.vocabulary).float(),
                    torch.randint(s.vocabulary, (rows,), device="cuda"),
                    torch.ones(rows, device="cuda"),
                    torch.bfloat16,
                ]
            ),
            rows * s.vocabulary * 6,
            differentiable=False,
        ),
    ]


def adamw_rates(numbers: int = 400_000_000, tensors: int = 200) -> dict[str, float]:
    """AdamW with bfloat16 moments, the host included: ours, also rounding by chance, and the definition per tensor.

    torch's own fused AdamW takes no moments in another precision than the parameters'.
    ."""
    parameters = [torch.randn(numbers // tensors, device="cuda") for _ in range(tensors)]
    gradients = [torch.randn_like(p) for p in parameters]
    first, second = ([torch.zeros_like(p, dtype=torch.bfloat16) for p in parameters] for _ in range(2))
    settings: dict[str, Any] = {"lr": 1e-3, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.1}

    def ours(seed: int | None) -> Callable[[], None]:
        update = _twin(optimizer.adamw_many_.__wrapped__)  # type: ignore[attr-defined]
        return lambda: update(parameters, gradients, first, second, step=5, seed=seed, **settings)

    def one_by_one(update: Callable[..., None]) -> Callable[[], None]:
        def run() -> None:
            for tensors in zip(parameters, gradients, first, second, strict=True):
                update(*tensors, step=5, **settings)

        return run

    sides = {
        "torch": one_by_one(optimizer.adamw_),
        "compiled": one_by_one(torch.compile(optimizer.adamw_)),
        "ours": ours(None),
        "ours by chance": ours(1),
    }
    return _in_turns(sides, numbers * 20e-9)


def copy_rate() -> float:
    """GB/s of a copy on the device, read and written."""
    source = random(1 << 29)
    target = torch.empty_like(source)
    return _in_turns({"copy": lambda: target.copy_(source)}, source.nbytes * 2e-9)["copy"]


def _in_turns(sides: dict[str, Callable[[], Any]], work: float, rounds: int = 5, calls: int = 8) -> dict[str, float]:
    """Units of work a second of every side, host included."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds + 1):
        for name, call in sides.items():
            torch.cuda.synchronize()
            start = time.perf_counter()
            for _ in range(calls):
                call()
            torch.cuda.synchronize()
            seconds[name].append((time.perf_counter() - start) / calls)
    return {name: round(work / median(taken[1:]), 1) for name, taken in seconds.items()}
