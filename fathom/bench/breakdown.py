"""Where a training step's time goes: what a profile saw on the GPU, by the part of the step that asked for it."""

from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function

from fathom.model.linear import Linear, RMSNorm
from fathom.model.moe import MoE, Router

PARTS = ("attention", "experts", "dense", "router", "head and loss", "optimizer", "norms and sums", "casts", "other")

# The innermost name that matches decides: routers and shared experts lie inside the layer of experts.
NAMES = {
    "attention": ("scaled_dot_product", "ScaledDotProduct", "_Assemble", "_ShortAttention"),
    "experts": ("_Experts", "_Fp8Experts", "_GroupedSwiGLU", "part experts"),
    "router": ("_Route", "_NarrowLogits", "CompiledFunctionBackward", "part router"),
    "dense": ("part dense", "MmBackward", "_Fp8Linear", "_WeightedSwiGLU", "_LinearBackward"),
    "head and loss": ("_LinearLoss", "NarrowLogprobs", "_TokenLogprobs"),
    "optimizer": ("Optimizer.step", "part optimizer"),
    "norms and sums": ("_FusedNorm", "_AddRMSNorm", "_RMSNorm", "part norm", "AddBackward", "AccumulateGrad"),
    "casts": ("ToCopyBackward", "part embedding", "EmbeddingBackward"),
}

# Kernels of Triton that no operation of torch encloses.
KERNELS = {"optimizer": ("_update",), "head and loss": ("_rows",)}


def breakdown(model: nn.Module, step: Callable[[], object], device: torch.device) -> dict[str, float]:
    """Milliseconds that the device was busy for each part in one call of `step`; on a CPU, those of its operations."""
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if on_gpu else [])
    with named(model), profile(activities=activities) as found:
        step()
        if on_gpu:
            torch.cuda.synchronize()
    spent, linked, seen = Counter[str](), Counter[str](), Counter[str]()
    for event in found.events() or []:
        if not on_gpu:
            spent[part_of(event)] += event.self_cpu_time_total / 1e3
        elif event.device_type.name == "CUDA" and not event.name.startswith(("Optimizer.", "part ")):
            seen[event.name] += event.device_time_total / 1e3
        for kernel in event.kernels:
            spent[part_of(event)] += kernel.duration / 1e3
            linked[kernel.name] += kernel.duration / 1e3
    for name, millis in (seen - linked).items():  # what a node of another compiler launched belongs to no operation
        spent[next((part for part, names in KERNELS.items() if name in names), "other")] += millis
    return {part: round(spent[part], 3) for part in PARTS}


def part_of(event: Any) -> str:
    """The part of a step that an event belongs to."""
    while event is not None:
        for part, names in NAMES.items():
            if any(name in event.name for name in names):
                return part
        event = event.cpu_parent
    return "other"


@contextmanager
def named(model: nn.Module) -> Generator[None]:
    """Let a profile know which layers of the model the forward pass is in."""
    kinds: dict[type[nn.Module], str] = {
        MoE: "experts",
        Router: "router",
        Linear: "dense",
        RMSNorm: "norm",
        nn.Embedding: "embedding",
    }
    ranges: list[record_function] = []

    def enter(module: nn.Module, _: object) -> None:
        ranges.append(record_function(f"part {kinds[type(module)]}"))
        ranges[-1].__enter__()

    def leave(module: nn.Module, *_: object) -> None:
        ranges.pop().__exit__(None, None, None)

    hooks = list[Any]()
    for module in model.modules():
        if type(module) in kinds:
            hooks += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
