"""AdamW: torch's fused one, or one that keeps its moments in bfloat16 beside float32 masters (V3 3.3.3)."""

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from fathom.config import OptimizerConfig
from fathom.kernels.optimizer import adamw_many_
from fathom.model.lora import trained_parameters
from fathom.model.parallelize import local, part


class LowMomentAdamW(torch.optim.Optimizer):
    """AdamW whose two moments are stored in bfloat16; parameters and arithmetic stay float32."""

    def __init__(self, groups: Iterable[dict[str, Any]], lr: float, betas: tuple[float, float], eps: float) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            states = [self._state_of(parameter) for parameter in parameters]
            for state in states:
                state["step"] += 1
            by_step: dict[int, list[int]] = {}  # a weight that had no gradient at first is behind the others
            for index, state in enumerate(states):
                by_step.setdefault(int(state["step"]), []).append(index)
            for step, own in by_step.items():
                adamw_many_(
                    [parameters[i] for i in own],
                    [parameters[i].grad for i in own],
                    [states[i]["exp_avg"] for i in own],
                    [states[i]["exp_avg_sq"] for i in own],
                    step=step,
                    lr=group["lr"],
                    beta1=group["betas"][0],
                    beta2=group["betas"][1],
                    eps=group["eps"],
                    weight_decay=group["weight_decay"],
                )

    def _state_of(self, parameter: Tensor) -> dict[str, Tensor]:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros(())
            state["exp_avg"] = torch.zeros_like(parameter, dtype=torch.bfloat16)
            state["exp_avg_sq"] = torch.zeros_like(parameter, dtype=torch.bfloat16)
        return state


def build_optimizer(config: OptimizerConfig, model: nn.Module) -> torch.optim.Optimizer:
    """AdamW over all parameters, or the adapters' alone where there are any; of spread ones over this process's parts.

    Norms and biases (one dimension) are not decayed.
    """
    decayed, others = _groups(model)
    groups: list[dict[str, Any]] = [
        {"params": [_own(p) for p in decayed], "weight_decay": config.weight_decay},
        {"params": [_own(p) for p in others], "weight_decay": 0.0},
    ]
    betas = (config.beta1, config.beta2)
    if config.moments == "bfloat16":
        return LowMomentAdamW(groups, config.lr, betas, config.eps)
    return torch.optim.AdamW(groups, lr=config.lr, betas=betas, eps=config.eps, fused=True)


def hand_over_gradients(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Let the optimizer see the gradients of the parts that it works on."""
    owned = chain(*(group["params"] for group in optimizer.param_groups))
    for parameter, own in zip(chain(*_groups(model)), owned, strict=True):
        if parameter is not own:
            assert own.data_ptr() == local(parameter.detach()).data_ptr(), "a shard has moved since the optimizer began"
            if parameter.grad is not None:
                own.grad = local(parameter.grad)


def owned_parameters(
    model: nn.Module, optimizer: torch.optim.Optimizer
) -> Iterator[tuple[str, nn.Parameter, nn.Parameter]]:
    """Name of every parameter, the parameter, and what the optimizer works on: itself, or this process's part."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    owned = chain(*(group["params"] for group in optimizer.param_groups))
    for parameter, own in zip(chain(*_groups(model)), owned, strict=True):
        yield names[parameter], parameter, own


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Every tensor of the optimizer's state on this process under a flat name, `INDEX.exp_avg` and so on."""
    state = optimizer.state_dict()["state"]
    return {f"{index}.{name}": tensor for index, entries in state.items() for name, tensor in entries.items()}


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put back what `optimizer_tensors` gave, each in the precision that it was stored in.

    `load_state_dict` would not do: it raises bfloat16 moments to the parameters' precision.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for flat, tensor in tensors.items():
        index, name = flat.split(".")
        parameter = parameters[int(index)]
        optimizer.state[parameter][name] = tensor
        if parameter.grad is None:  # an unbroken run keeps the buffer, so decay and momentum go on without a gradient
            parameter.grad = torch.zeros_like(parameter)


def parted_tensors(tensors: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """This process's parts of what `optimizer_tensors` gave in one process."""
    parameters = list(chain(*_groups(model)))
    own = ((name, tensor, parameters[int(name.split(".")[0])]) for name, tensor in tensors.items())
    return {name: part(tensor, like).clone() if tensor.ndim else tensor for name, tensor, like in own}


def _groups(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The trained parameters that are decayed, and the others."""
    parameters = trained_parameters(model)
    return [p for p in parameters if p.ndim >= 2], [p for p in parameters if p.ndim < 2]


def _own(parameter: nn.Parameter) -> nn.Parameter:
    """What the optimizer works on: the parameter, or the memory of this process's part of it."""
    return nn.Parameter(local(parameter.detach())) if isinstance(parameter, DTensor) else parameter
