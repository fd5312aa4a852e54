"""AdamW: torch's fused one, or one that keeps its moments in bfloat16 beside float32 masters (V3 3.3.3)."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from fathom.config import OptimizerConfig
from fathom.kernels.optimizer import adamw_
from fathom.model.lora import trained_parameters


class LowMomentAdamW(torch.optim.Optimizer):
    """AdamW whose two moments are stored in bfloat16; parameters and arithmetic stay float32."""

    def __init__(self, groups: Iterable[dict[str, Any]], lr: float, betas: tuple[float, float], eps: float) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["step"] = torch.zeros(())
                    state["exp_avg"] = torch.zeros_like(parameter, dtype=torch.bfloat16)
                    state["exp_avg_sq"] = torch.zeros_like(parameter, dtype=torch.bfloat16)
                state["step"] += 1
                adamw_(
                    parameter,
                    parameter.grad,
                    state["exp_avg"],
                    state["exp_avg_sq"],
                    step=int(state["step"]),
                    lr=group["lr"],
                    beta1=group["betas"][0],
                    beta2=group["betas"][1],
                    eps=group["eps"],
                    weight_decay=group["weight_decay"],
                )


def build_optimizer(config: OptimizerConfig, model: nn.Module) -> torch.optim.Optimizer:
    """AdamW over all parameters or, where there are adapters, theirs; norms and biases (one dimension) do not decay."""
    parameters = trained_parameters(model)
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    betas = (config.beta1, config.beta2)
    if config.moments == "bfloat16":
        return LowMomentAdamW(groups, config.lr, betas, config.eps)
    return torch.optim.AdamW(groups, lr=config.lr, betas=betas, eps=config.eps, fused=True)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Every tensor of the optimizer's state under a flat name, `INDEX.exp_avg` and so on."""
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
