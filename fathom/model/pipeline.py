"""A model cut into the stages of a pipeline: whole layers each, embedding first, norm, head and MTP last (V3 3.2)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from fathom.config import ModelConfig
from fathom.kernels.owed import Owed
from fathom.model.linear import Linear
from fathom.model.moe import MoE
from fathom.model.routing import RoutingTrace
from fathom.model.transformer import Transformer
from fathom.parallel.baton import pause_on_the_way_back
from fathom.plan.cut import cut_layers


@dataclass(frozen=True)
class Stage:
    """Consecutive layers of the model."""

    index: int
    layers: range
    is_first: bool
    is_last: bool


def cut_stages(config: ModelConfig, stages: int) -> list[Stage]:
    """The stages in order. Raises ValueError where there are fewer layers than stages."""
    cut = cut_layers(config, stages)
    return [Stage(index, layers, index == 0, index == stages - 1) for index, layers in enumerate(cut)]


def keep_stages(model: Transformer, stages: Sequence[Stage]) -> Transformer:
    """Take out of `model` all that none of `stages` needs; what is left keeps its name, and its place among the layers.

    The last stage looks up the tokens further on for MTP, and reads a tied embedding as its head: it keeps a copy of
    the embedding, or shares it where the first stage is kept too.
    """
    config = model.config
    first, last = any(stage.is_first for stage in stages), any(stage.is_last for stage in stages)
    kept = {layer for stage in stages for layer in stage.layers}
    for layer in set(range(config.num_hidden_layers)) - kept:
        model.layers[layer] = nn.Identity()
    if not first and not (last and shares_embedding(config)):
        model.embedding = nn.Identity()  # pyright: ignore[reportAttributeAccessIssue]
    if not last:
        model.norm = nn.Identity()  # pyright: ignore[reportAttributeAccessIssue]
        model.mtp = nn.ModuleList()
        if not config.tie_word_embeddings:
            model.head = nn.Identity()  # pyright: ignore[reportAttributeAccessIssue]
    return model


def shares_embedding(config: ModelConfig) -> bool:
    """Whether the last stage reads the embedding too: V3's MTP modules share it with the main model (V3 2.2)."""
    return config.tie_word_embeddings or config.num_nextn_predict_layers > 0


def pass_stage(
    model: Transformer,
    stage: Stage,
    x: Float[Tensor, "B T D"] | Int[Tensor, "B T"],
    positions: Int[Tensor, "P T"] | None,
    mask: Bool[Tensor, "B T S"] | None,
    trace: RoutingTrace,
    pause: Callable[[], None] | None = None,
) -> Float[Tensor, "B T D"]:
    """States behind the stage's layers, of the last one behind the final norm; `x` are tokens at the first stage.

    `pause` is called behind every layer, on the way forward and on the way back: another pass may run meanwhile.
    """
    turn = model.turn(x, positions, None)
    if stage.is_first:
        x = model.embedding(x)
    for layer in stage.layers:
        x = model.layers[layer](x, turn, mask, None, trace)
        if pause is not None:
            pause()
            x = pause_on_the_way_back(x, pause)
    return model.norm(x) if stage.is_last else x


def with_auxiliary(x: Float[Tensor, "B T D"], loss: Float[Tensor, ""]) -> Float[Tensor, "B T D"]:
    """`x` as it is; on the way back `loss`, of which no later stage knows, has its gradient of one."""
    return _WithAuxiliary.apply(x, loss)  # pyright: ignore[reportReturnType]


def loads_of(config: ModelConfig, stages: Sequence[Stage]) -> list[int]:
    """Which rows of the whole model's loads, one for every MoE layer, belong to `stages`; MTP modules count on."""
    behind = range(config.num_hidden_layers, config.num_hidden_layers + config.num_nextn_predict_layers)
    order = [layer for layer in (*range(config.num_hidden_layers), *behind) if config.is_moe_layer(layer)]
    held = [layer for stage in stages for layer in (*stage.layers, *(behind if stage.is_last else ()))]
    return [row for row, layer in enumerate(order) if layer in held]


def pause_in_experts(layers: Sequence[nn.Module], pause: Callable[[], None]) -> None:
    """Let the MoE layers call `pause` while their tokens travel."""
    for layer in layers:
        for module in layer.modules():
            if isinstance(module, MoE):
                module.pause = pause


def defer_weight_gradients(layers: Sequence[nn.Module], owed: Owed) -> None:
    """Let the linear maps of `layers` put the gradient of their weight into `owed` instead of computing it."""
    for layer in layers:
        for module in layer.modules():
            if isinstance(module, Linear):
                module.owed = owed


class _WithAuxiliary(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, loss: Tensor) -> Tensor:
        ctx.save_for_backward(loss)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return grads[0], torch.ones_like(ctx.saved_tensors[0])
