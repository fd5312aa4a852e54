"""One optimizer step: the same for pretraining, fine-tuning and reinforcement learning."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn

from fathom.config import OptimizerConfig
from fathom.model import Transformer, update_selection_bias
from fathom.model.lora import adapters, merge, trained_parameters
from fathom.parallel.world import World
from fathom.train.loss import Losses
from fathom.train.microscope import Fallback
from fathom.train.optimizer import build_optimizer

M = TypeVar("M")


@runtime_checkable
class Steppable(Protocol):
    """What a step asks for: a model with its optimizer, and copies of the weights of which "ema" follows them."""

    @property
    def step(self) -> int: ...

    @property
    def model(self) -> nn.Module: ...

    @property
    def optimizer(self) -> torch.optim.Optimizer: ...

    @property
    def copies(self) -> dict[str, list[Tensor]]: ...


@dataclass
class TrainState:
    """What steps change and a checkpoint keeps; `step` counts finished steps of the stage."""

    model: Transformer
    optimizer: torch.optim.Optimizer
    step: int = 0
    # "ema", "reference": weights apart, selection biases included, in the order of the model's state_dict
    copies: dict[str, list[Tensor]] = field(default_factory=dict[str, list[Tensor]])
    fallbacks: dict[str, Fallback] = field(default_factory=dict[str, Fallback])  # layers that FP8 was taken from

    @staticmethod
    def start(model: Transformer, config: OptimizerConfig) -> "TrainState":
        state = TrainState(model, build_optimizer(config, model))
        if adapters(model):
            state.copies["lora"] = [parameter.data for parameter in trained_parameters(model)]

            def after(*_: object) -> None:
                merge(model)

            state.optimizer.register_step_post_hook(after)
        if config.ema_decay:
            state.keep_copy("ema")
        return state

    def keep_copy(self, name: str) -> None:
        """Set the current weights apart under `name`, in place of an earlier copy."""
        self.copies[name] = [weight.clone() for weight in self.model.state_dict().values()]


@dataclass(frozen=True)
class Rates:
    """The rates of one step."""

    lr: float
    clip_norm: float
    bias_speed: float
    ema_decay: float = 0.0


@dataclass(frozen=True)
class StepReport:
    """What a step did, summed over micro-batches and processes."""

    parts: dict[str, float]
    grad_norm: float
    loads: Tensor  # (L, E); empty without experts


def train_step(
    state: Steppable,
    micro_batches: Sequence[M],
    losses_of: Callable[[M], Losses],
    rates: Rates,
    world: World,
    dtype: torch.dtype = torch.float32,
) -> StepReport:
    """Accumulate gradients over the micro-batches and processes, clip, update, then move the selection bias.

    `losses_of` divides by denominators of the whole step, so the gradient does not depend on how the step is
    cut into micro-batches or processes. Every process brings at least one micro-batch, if only of weight zero.
    """
    model = state.model
    parameters = trained_parameters(model)
    parts: dict[str, Tensor] = {}
    loads: list[Tensor] = []
    for micro_batch in micro_batches:
        with torch.autocast(world.device.type, dtype, enabled=dtype != torch.float32):
            losses = losses_of(micro_batch)
        losses.total.backward()
        for name, value in losses.parts.items():
            parts[name] = parts[name] + value if name in parts else value
        loads = [a + b for a, b in zip(loads, losses.loads, strict=True)] if loads else losses.loads
    _sum_over_world(parameters, parts, loads, world)
    gradients = [p.grad for p in parameters if p.grad is not None]
    grad_norm = clip_gradients(gradients, rates.clip_norm)
    if not math.isfinite(grad_norm):
        raise RuntimeError(
            f"the gradient is not finite at step {state.step + 1}: training has diverged; the weights are those of the "
            "step before, repeat the stage with a lower learning rate"
        )
    for group in state.optimizer.param_groups:
        group["lr"] = rates.lr
    state.optimizer.step()
    torch.autograd.graph.increment_version(
        list(model.parameters())
    )  # fused AdamW does not, and FP8 codes are kept by version
    state.optimizer.zero_grad(set_to_none=False)  # one buffer a gradient for the whole run
    stacked = torch.stack(loads) if loads else torch.zeros(0, 0)
    if rates.bias_speed and loads:
        update_selection_bias(model, stacked, rates.bias_speed)
    if "ema" in state.copies:
        torch._foreach_lerp_(state.copies["ema"], list(model.state_dict().values()), 1 - rates.ema_decay)  # pyright: ignore
    return StepReport({name: float(value) for name, value in parts.items()}, grad_norm, stacked)


def clip_gradients(gradients: Sequence[Tensor], clip_norm: float) -> float:
    """Scale the gradients down to `clip_norm` if their global norm exceeds it; the norm before that."""
    norm = torch.nn.utils.get_total_norm(gradients)
    if clip_norm and norm > clip_norm:
        torch._foreach_mul_(list(gradients), clip_norm / (float(norm) + 1e-6))  # pyright: ignore
    return float(norm)


def _sum_over_world(
    parameters: Sequence[torch.nn.Parameter], parts: dict[str, Tensor], loads: list[Tensor], world: World
) -> None:
    """Sum gradients, loss parts and loads over the processes, in place and in one message."""
    if world.size == 1:
        return
    # which weights have a gradient follows from the config alone, so the message has one form everywhere
    world.sum([p.grad for p in parameters if p.grad is not None] + [parts[name] for name in sorted(parts)] + loads)
