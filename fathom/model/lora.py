"""Low-rank adapters (LoRA): attention and feed-forward weights stay as they are, a product of two thin ones is trained.

The layer's own weight is always the sum of both, so that whatever reads weights (the engine, an export, a checkpoint)
sees the trained model, and sampling and training agree as they do without adapters.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from fathom.config.lora import LoRAConfig
from fathom.model.linear import Linear
from fathom.model.mla import MLA
from fathom.model.transformer import Transformer


@dataclass(frozen=True)
class Adapter:
    """The trained product of one layer, and the weight that it is added to."""

    a: Float[nn.Parameter, "R I"]
    b: Float[nn.Parameter, "O R"]
    scale: float
    base: Float[Tensor, "O I"]  # in bfloat16 where that holds it exactly, as it does published weights

    @staticmethod
    def on(layer: Linear, config: LoRAConfig, generator: torch.Generator) -> "Adapter":
        """A product that is zero at first: A is drawn, B is not."""
        weight = layer.weight.detach()
        a = torch.empty(config.rank, layer.in_features).normal_(0.0, layer.in_features**-0.5, generator=generator)
        short = weight.bfloat16()
        return Adapter(
            nn.Parameter(a.to(weight.device)),
            nn.Parameter(torch.zeros(layer.out_features, config.rank, device=weight.device)),
            config.alpha / config.rank,
            short if torch.equal(short.to(weight.dtype), weight) else weight.clone(),
        )

    def gradient_path(self, x: Float[Tensor, "*N I"]) -> Float[Tensor, "*N O"]:
        """Zeros through which the gradient of the layer's output reaches A and B: the sum is in its weight already."""
        out = F.linear(F.linear(x.detach(), self.a), self.b) * self.scale
        return out - out.detach()

    def merged(self) -> Float[Tensor, "O I"]:
        """The layer's weight."""
        return torch.addmm(self.base.to(self.b.dtype), self.b.detach(), self.a.detach(), alpha=self.scale)


def adapt(model: Transformer, config: LoRAConfig, seed: int) -> Transformer:
    """Freeze the model and give its layers adapters; with rank 0 nothing happens.

    All linear layers of attention and feed-forward blocks have one, but for the latents' expansion, which decoding
    absorbs into the query; routers, routed experts, embedding, head and MTP modules stay as they are. Raises ValueError
    where an adapter would be no smaller than the weights of every layer.
    """
    if not config.rank:
        return model
    layers = [layer for layer in adaptable(model) if config.rank < min(layer.in_features, layer.out_features)]
    if not layers:
        widest = max(min(layer.in_features, layer.out_features) for layer in adaptable(model))
        raise ValueError(f"lora.rank={config.rank} is not below the widest layer's {widest}; choose a smaller one")
    model.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for layer in layers:
        layer.adapter = Adapter.on(layer, config, generator)
    return model


def adaptable(model: Transformer) -> list[Linear]:
    """The layers that may have adapters, in the order of the model."""
    absorbed = {id(module.kv_b_proj) for module in model.modules() if isinstance(module, MLA)}
    found = [module for module in model.layers.modules() if isinstance(module, Linear)]
    return [layer for layer in found if id(layer) not in absorbed]


def adapters(model: nn.Module) -> list[tuple[Linear, Adapter]]:
    """The layers with adapters, in the order of the model; none where the weights themselves are trained."""
    layers = [module for module in model.modules() if isinstance(module, Linear)]
    return [(layer, layer.adapter) for layer in layers if isinstance(layer.adapter, Adapter)]


def trained_parameters(model: nn.Module) -> list[nn.Parameter]:
    """What an optimizer moves: the adapters where there are any, else all parameters."""
    thin = [parameter for _, adapter in adapters(model) for parameter in (adapter.a, adapter.b)]
    return thin or list(model.parameters())


@torch.no_grad()
def merge(model: nn.Module) -> None:
    """Write every adapter's sum into the weight of its layer."""
    for layer, adapter in adapters(model):
        layer.weight.copy_(adapter.merged())


@torch.no_grad()
def take_back(model: nn.Module, kept: Sequence[Tensor]) -> None:
    """Put back what `trained_parameters` held, and with it the weights."""
    for parameter, values in zip(trained_parameters(model), kept, strict=True):
        parameter.copy_(values)
    merge(model)


def adapted_share(model: Transformer) -> float:
    """Trained numbers as a share of all weights."""
    total = sum(math.prod(parameter.shape) for parameter in model.parameters())
    return sum(math.prod(parameter.shape) for parameter in trained_parameters(model)) / total
