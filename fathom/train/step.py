"""One optimizer step: the same for pretraining, fine-tuning and reinforcement learning."""

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from fathom.config import OptimizerConfig
from fathom.model import Transformer, update_selection_bias
from fathom.model.lora import adapters, merge, trained_parameters
from fathom.model.parallelize import before_micro_batch, copies_of, count_replica_sums, is_spread, let_go, local
from fathom.model.precision import forget_codes, where_not_finite
from fathom.parallel.world import World
from fathom.train.guard import Guard
from fathom.train.loss import Losses
from fathom.train.microscope import Fallback
from fathom.train.optimizer import build_optimizer, hand_over_gradients

log = logging.getLogger(__name__)

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
    left_out: str = ""  # why the update was not made
    sent: dict[str, int] = field(default_factory=dict[str, int])  # bytes of this process, by what they carried


def train_step(
    state: Steppable,
    micro_batches: Sequence[M],
    losses_of: Callable[[M], Losses],
    rates: Rates,
    world: World,
    dtype: torch.dtype = torch.float32,
    guard: Guard | None = None,
) -> StepReport:
    """Accumulate gradients over the micro-batches and processes, clip, update, then move the selection bias.

    An update that `guard` objects to is left out: nothing moves. Without a guard a gradient that is not finite raises.

    `losses_of` divides by denominators of the whole step, so the gradient does not depend on how the step is
    cut into micro-batches or processes. Every process brings at least one micro-batch, if only of weight zero.
    """
    before = world.sent()
    parts, loads = accumulate(state.model, micro_batches, losses_of, world, dtype)
    sum_over_world(state.model, parts, loads, world)
    report = update(state, parts, loads, rates, world, guard)
    return replace(report, sent={kind: count - before.get(kind, 0) for kind, count in world.sent().items()})


def accumulate(
    model: nn.Module,
    micro_batches: Sequence[M],
    losses_of: Callable[[M], Losses],
    world: World,
    dtype: torch.dtype = torch.float32,
) -> tuple[dict[str, Tensor], list[Tensor]]:
    """Gradients of this process's micro-batches in the parameters; the losses' parts and the loads, added up."""
    parts: dict[str, Tensor] = {}
    loads: list[Tensor] = []
    for number, micro_batch in enumerate(micro_batches, 1):
        before_micro_batch(model, world.layout.zero, is_last=number == len(micro_batches))
        with torch.autocast(world.device.type, dtype, enabled=dtype != torch.float32):
            losses = losses_of(micro_batch)
        losses.total.backward()
        for name, value in losses.parts.items():
            parts[name] = parts[name] + value if name in parts else value
        loads = [a + b for a, b in zip(loads, losses.loads, strict=True)] if loads else losses.loads
    return parts, loads


def sum_over_world(model: nn.Module, parts: dict[str, Tensor], loads: list[Tensor], world: World) -> None:
    """Sum gradients, loss parts and loads over the processes, in place and in one message.

    Gradients of shards come summed from FSDP; those of experts that are spread, but not sharded, are summed over the
    processes with the same experts.
    """
    if isinstance(model, FSDPModule) and world.mesh.data.size > 1:
        count_replica_sums(model, world)
    if world.tokens.size == 1:
        return
    # which weights have a gradient follows from the config alone, so the message has one form everywhere
    gradients = (
        [] if isinstance(model, FSDPModule) else [p.grad for p in trained_parameters(model) if p.grad is not None]
    )
    world.mesh.expert_data.sum([local(g) for g in gradients if isinstance(g, DTensor)], "gradients")
    own = [gradient for gradient in gradients if not isinstance(gradient, DTensor)]
    world.tokens.sum(own + [parts[name] for name in sorted(parts)] + loads, "gradients" if own else "sums")


def update(
    state: Steppable,
    parts: dict[str, Tensor],
    loads: list[Tensor],
    rates: Rates,
    world: World,
    guard: Guard | None = None,
    norm: float | None = None,
) -> StepReport:
    """Clip the summed gradients, update the weights, then move the selection bias and the weights' average.

    `loads` are those of this process's layers; `norm` is that of all gradients, where others lie with other processes.
    """
    model, spread = state.model, is_spread(state.model)
    if spread:
        hand_over_gradients(model, state.optimizer)
    parameters = trained_parameters(model)
    give_missing_gradients(parameters, state.optimizer)
    gradients = _locals(p.grad for p in parameters if p.grad is not None)
    if spread and norm is None:
        norm = spread_norm(parameters, world)
    known = torch.nn.utils.get_total_norm(gradients) if norm is None else torch.tensor(norm)
    stacked = _stack(loads)
    values, grad_norm, counts = read(parts, known, stacked)  # the one time that a step's host waits for its GPU
    clip_gradients(gradients, rates.clip_norm, grad_norm)
    if not math.isfinite(grad_norm) and (places := where_not_finite(model)):
        log.warning("numbers that are infinite or NaN, which have no FP8 code, were in %s", places)
    objection = guard.objection(state.step + 1, values["loss"], grad_norm, world) if guard else ""
    if objection:
        let_go(model)
        forget_gradients(state.optimizer, world)
        return StepReport(values, grad_norm, counts, objection)
    if not math.isfinite(grad_norm):
        raise RuntimeError(
            f"the gradient is not finite at step {state.step + 1}: training has diverged; the weights are those of the "
            "step before, repeat the stage with a lower learning rate"
        )
    for group in state.optimizer.param_groups:
        group["lr"] = rates.lr
    let_go(model)  # weights that were gathered are those before the update
    state.optimizer.step()
    if spread:
        forget_codes(model)  # of gathered weights, whose versions FSDP leaves as they are
    else:
        torch.autograd.graph.increment_version(
            list(model.parameters())
        )  # fused AdamW does not, and FP8 codes are kept by version
    forget_gradients(state.optimizer, world)
    if rates.bias_speed and loads:
        update_selection_bias(model, stacked, rates.bias_speed)
    if "ema" in state.copies:
        averages, weights = map(_locals, (state.copies["ema"], model.state_dict().values()))
        torch._foreach_lerp_(averages, weights, 1 - rates.ema_decay)  # pyright: ignore
    return StepReport(values, grad_norm, counts)


def read(parts: dict[str, Tensor], norm: Tensor, loads: Tensor) -> tuple[dict[str, float], float, Tensor]:
    """A step's numbers on the host, all in one message: the losses' parts, the gradient's norm, the loads."""
    together = [value.detach().double().view(1) for value in (*parts.values(), norm)]
    device = together[0].device
    numbers = torch.cat([value.to(device) for value in (*together, loads.detach().double().flatten())]).cpu()
    *values, grad_norm = numbers[: len(together)].tolist()
    counts = numbers[len(together) :].view(loads.shape).to(loads.dtype)
    return dict(zip(parts, values, strict=True)), grad_norm, counts


def forget_gradients(optimizer: torch.optim.Optimizer, world: World) -> None:
    """Set gradients to zero: on a CPU in one buffer for the whole run, on a GPU by taking the next ones as they come.

    Adding to zeros costs a GPU more than memory that its allocator has at hand. Shards keep the buffers they share.
    """
    optimizer.zero_grad(set_to_none=world.device.type == "cuda" and world.size == 1)


def give_missing_gradients(parameters: Sequence[Tensor], optimizer: torch.optim.Optimizer) -> None:
    """Zeros for a weight that a step leaves out but one before did not: its momentum and decay go on everywhere."""
    for parameter in parameters:
        if parameter.grad is None and optimizer.state.get(parameter):
            parameter.grad = torch.zeros_like(parameter)


def _stack(loads: list[Tensor]) -> Tensor:
    return torch.stack(loads) if loads else torch.zeros(0, 0)


def clip_gradients(gradients: Sequence[Tensor], clip_norm: float, norm: float | None = None) -> float:
    """Scale the gradients down to `clip_norm` if their global norm exceeds it; the norm before that.

    `norm` is given where these are parts of the gradients alone.
    """
    norm = float(torch.nn.utils.get_total_norm(gradients)) if norm is None else norm
    if clip_norm and norm > clip_norm:
        torch._foreach_mul_(list(gradients), clip_norm / (norm + 1e-6))  # pyright: ignore
    return norm


def spread_norm(parameters: Iterable[Tensor], world: World) -> float:
    """The norm of gradients that lie in parts: squares summed over the processes, those of replicas once."""
    by_copies: dict[int, list[Tensor]] = {}
    for parameter in parameters:
        if parameter.grad is not None:
            by_copies.setdefault(copies_of(parameter, world), []).append(local(parameter.grad))
    squares = (float(torch.nn.utils.get_total_norm(own)) ** 2 / copies for copies, own in by_copies.items())
    return math.sqrt(world.everyone.sum_numbers(sum(squares))[0])


def _locals(tensors: Iterable[Tensor]) -> list[Tensor]:
    return [local(tensor) for tensor in tensors]
