"""Which layers of a model compute in FP8 (V3 3.3.1)."""

import logging
from collections.abc import Generator, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from fathom.kernels.dispatch import GLUON, speaks_gluon
from fathom.kernels.fp8 import Fp8Layer, Kept, TensorCount
from fathom.model.linear import Linear
from fathom.model.moe import MoE

log = logging.getLogger(__name__)


def use_fp8(model: nn.Module, after_attention: Kept = "bfloat16") -> bool:
    """Let every linear map and all experts compute in FP8 from now on; False where this device cannot.

    Embedding, output head, router, norms and the attention itself keep their precision. `after_attention` is what is
    kept of the input of the projection after attention, which the attention's own backward pass reads too.
    """
    device = device_of(model)
    if device.type == "cuda" and not has_fp8_units(torch.cuda.get_device_capability(device)):
        name = torch.cuda.get_device_name(device)
        log.warning("%s cannot multiply FP8 as Hopper does: training runs without it, in bfloat16", name)
        return False
    if device.type == "cuda" and not speaks_gluon():
        log.warning("FP8 kernels need Triton %sx, which comes with torch 2.11: training runs in bfloat16", GLUON)
        return False
    for name, module in model.named_modules():
        if (isinstance(module, Linear) and name != "head") or isinstance(module, MoE):
            module.fp8 = Fp8Layer(name, after_attention if name.endswith("o_proj") else "e4m3")
    return True


def has_fp8_units(capability: tuple[int, int]) -> bool:
    """Whether a GPU of this compute capability multiplies FP8 by Hopper's instructions, which our products use."""
    return capability[0] == 9


def device_of(model: nn.Module) -> torch.device:
    """Where the model's weights lie."""
    return next(model.parameters()).device


def fp8_modules(model: nn.Module) -> Iterator[tuple[str, Linear | MoE]]:
    """Every module that computes in FP8, under its name."""
    for module in model.modules():
        if isinstance(module, (Linear, MoE)) and module.fp8 is not None:
            yield module.fp8.name, module


def fp8_layers(model: nn.Module) -> Iterator[Fp8Layer]:
    """The FP8 side of every module that has one."""
    return (module.fp8 for _, module in fp8_modules(model) if module.fp8 is not None)


def forget_codes(model: nn.Module) -> None:
    """Have the codes of all weights made anew, whatever their versions say."""
    for layer in fp8_layers(model):
        layer.forget()


def where_not_finite(model: nn.Module) -> str:
    """The first tensor of the newest forward pass, and the first of the backward one, that FP8 met an inf or NaN in.

    Empty where there is none. On a GPU this waits; it is for when training has diverged.
    """
    layers = [(layer.name, layer.not_finite()) for layer in fp8_layers(model)]
    forward = [f"the {what} of {name}" for name, found in layers for what in found if "gradient" not in what]
    backward = [f"the {what} of {name}" for name, found in reversed(layers) for what in found if "gradient" in what]
    return " and ".join([*forward[:1], *backward[:1]])


@contextmanager
def without_fp8(model: nn.Module) -> Generator[None]:
    """The model as it computes without FP8."""
    held = [(module, module.fp8) for _, module in fp8_modules(model)]
    for module, _ in held:
        module.fp8 = None
    try:
        yield
    finally:
        for module, layer in held:
            module.fp8 = layer


@contextmanager
def watched(model: nn.Module) -> Generator[dict[str, dict[str, TensorCount]]]:
    """Count underflow and saturation of every tensor, by layer and tensor; what is not finite raises, by name."""
    counts: dict[str, dict[str, TensorCount]] = {}
    layers = list(fp8_layers(model))
    for layer in layers:
        layer.watch = counts.setdefault(layer.name, {})
    try:
        yield counts
    finally:
        for layer in layers:
            layer.watch = None
