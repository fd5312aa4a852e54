"""FP8 under the microscope: one micro-batch again without FP8, layer by layer, and what drifts falls back."""

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from fathom.kernels.fp8 import Fp8Layer, TensorCount
from fathom.model import Transformer
from fathom.model.linear import Linear
from fathom.model.moe import MoE
from fathom.model.precision import fp8_modules, watched, without_fp8
from fathom.parallel.world import World

log = logging.getLogger(__name__)

Fallback = Literal["wgrad", "layer"]


@dataclass(frozen=True)
class Limits:
    """How far a layer's gradient may lie from the one without FP8."""

    cosine: float = 0.9  # at least
    norm: float = 1.25  # ratio of norms, either way, at most


@dataclass(frozen=True)
class Finding:
    """One layer's gradient with FP8 beside the one without, and how its tensors took quantisation."""

    layer: str
    cosine: float
    norm_ratio: float
    counts: dict[str, TensorCount]
    fallback: Fallback | None  # what became of it: its wgrad or the whole layer goes on without FP8


def examine(model: Transformer, loss_of: Callable[[], Tensor], world: World, limits: Limits) -> list[Finding]:
    """Compare the gradients of one micro-batch's loss and let layers that drift fall back.

    A layer that is near enough once its own weight's gradient is computed without FP8 keeps the rest. All processes
    look at micro-batches of their own and decide together. `.grad` is left as it is.
    """
    layers = dict(fp8_modules(model))
    with watched(model) as counts:
        low = _gradients(layers, loss_of)
    with without_fp8(model):
        plain = _gradients(layers, loss_of)
    seen = _compare(low, plain, world)
    drifting = [name for name, sight in seen.items() if not _is_near(*sight, limits)]
    cured: set[str] = set()
    if drifting:
        _set_wgrad(layers, drifting, fp8=False)
        again = _compare(_gradients(layers, loss_of), plain, world)
        cured = {name for name in drifting if _is_near(*again[name], limits)}
    fallbacks: dict[str, Fallback] = {name: "wgrad" if name in cured else "layer" for name in drifting}
    for name, fallback in fallbacks.items():
        log.warning(
            "%s: the gradient with FP8 has cosine %.3f and %.3f of the norm of the one without; %s goes on without FP8",
            name,
            *seen[name],
            "its weight's gradient" if fallback == "wgrad" else "the layer",
        )
    fall_back(model, fallbacks)
    return [Finding(name, *sight, counts.get(name, {}), fallbacks.get(name)) for name, sight in seen.items()]


def fall_back(model: nn.Module, fallbacks: dict[str, Fallback]) -> None:
    """Take FP8 from the named layers, or from their weights' gradients."""
    for name, module in fp8_modules(model):
        if name in fallbacks and module.fp8 is not None:
            module.fp8.fp8_wgrad = False
            if fallbacks[name] == "layer":
                module.fp8 = None


def summarise(findings: list[Finding]) -> dict[str, object]:
    """What goes into the step's metrics: the worst of everything, and how many fell back."""
    counts = [count for finding in findings for count in finding.counts.values()]
    return {
        "fp8_cosine": round(min(f.cosine for f in findings), 6),
        "fp8_norm_ratio": round(max((f.norm_ratio for f in findings), key=lambda r: abs(r - 1)), 6),
        "fp8_underflow": round(max((c.underflowed / max(c.numbers, 1) for c in counts), default=0.0), 6),
        "fp8_saturation": round(max((c.saturated / max(c.numbers, 1) for c in counts), default=0.0), 6),
        "fp8_fallbacks": sum(f.fallback is not None for f in findings),
    }


def _set_wgrad(layers: Mapping[str, Linear | MoE], names: list[str], fp8: bool) -> None:
    for name in names:
        layer = layers[name].fp8
        assert isinstance(layer, Fp8Layer)
        layer.fp8_wgrad = fp8


def _gradients(layers: Mapping[str, Linear | MoE], loss_of: Callable[[], Tensor]) -> dict[str, Tensor]:
    """Every layer's own gradient as one vector; zero for weights that this micro-batch did not reach."""
    parameters = [list(_matrices(module)) for module in layers.values()]
    flat = [parameter for own in parameters for parameter in own]
    found = iter(torch.autograd.grad(loss_of(), flat, allow_unused=True, materialize_grads=True))
    return {name: torch.cat([next(found).flatten() for _ in own]) for name, own in zip(layers, parameters, strict=True)}


def _matrices(module: nn.Module) -> Iterator[nn.Parameter]:
    """The weights that FP8 products give a gradient to."""
    return (p for name, p in module.named_parameters(recurse=False) if name != "bias")


def _compare(low: dict[str, Tensor], plain: dict[str, Tensor], world: World) -> dict[str, tuple[float, float]]:
    """Cosine and ratio of norms of every layer, averaged over the processes; a gradient of zero has none to lose."""
    numbers: list[float] = []
    for name, exact in plain.items():
        norms = low[name].norm(), exact.norm()
        if float(norms[0]) == float(norms[1]) == 0.0:
            numbers += [1.0, 1.0]
        else:
            numbers += [float(torch.dot(low[name], exact) / (norms[0] * norms[1])), float(norms[0] / norms[1])]
    means = [number / world.size for number in world.sum_numbers(*numbers)]
    return dict(zip(plain, zip(means[::2], means[1::2], strict=True), strict=True))


def _is_near(cosine: float, norm_ratio: float, limits: Limits) -> bool:
    """A NaN is not."""
    return cosine >= limits.cosine and 1 / limits.norm <= norm_ratio <= limits.norm
