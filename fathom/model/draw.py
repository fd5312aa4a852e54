"""New weights, of which each process draws its own parts: to the last bit what one process would draw whole."""

from itertools import pairwise

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from fathom.config import ModelConfig
from fathom.model.moe import moe_layers
from fathom.model.rope import rope_frequencies
from fathom.model.transformer import Transformer, constant_of

PIECE = 1 << 22  # numbers drawn at once
BLOCK = 16  # torch draws normal numbers by so many; a rest at the end it draws with those before it, anew


def without_memory(config: ModelConfig) -> Transformer:
    """The model before it has weights; `parallelize` gives it memory."""
    with torch.device("meta"):
        return Transformer(config)


@torch.no_grad()
def materialise(model: Transformer, device: torch.device, generator: torch.Generator | None) -> None:
    """Memory on `device` for what this process holds of a model, and new weights in it.

    Without `generator` the weights are left as the memory is found: a checkpoint will fill them.
    """
    model.to_empty(device=device)
    model.frequencies.copy_(rope_frequencies(model.config.rope, model.config.attention.rope_dim))
    for layer in moe_layers(model):
        layer.router.selection_bias.zero_()
    if generator is not None:
        draw(model, generator)


@torch.no_grad()
def draw(model: Transformer, generator: torch.Generator) -> None:
    """What `Transformer.initialise` draws, for a model of which this process may hold only some layers and parts.

    Every process goes through the numbers of the whole model, `PIECE` of them at a time, and keeps its own.
    """
    held = dict(model.named_parameters())
    scratch = torch.empty(PIECE + BLOCK)
    for path, module in without_memory(model.config).named_modules():
        for name, whole in module.named_parameters(recurse=False):
            own = held.get(f"{path}.{name}")
            constant = constant_of(module, name)
            if constant is None:
                _draw_one(whole.numel(), own, model.config.initializer_range, generator, scratch)
            elif own is not None:
                _local(own).fill_(constant)


def _draw_one(count: int, own: Tensor | None, deviation: float, generator: torch.Generator, scratch: Tensor) -> None:
    """Draw `count` numbers and put those at this process's places into `own`."""
    first, numbers = (0, scratch[:0]) if own is None else (_first(own), _local(own).view(-1))
    last = first + numbers.numel()
    for start, end in pairwise([*range(0, count - BLOCK + 1, PIECE), count] if count > BLOCK else [0, count]):
        drawn = scratch[: end - start].normal_(0.0, deviation, generator=generator)
        low, high = max(start, first), min(end, last)
        if low < high:
            numbers[low - first : high - first] = drawn[low - start : high - start]


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor.data


def _first(tensor: Tensor) -> int:
    """The place, in the whole tensor's numbers, of the first that this process holds."""
    if not isinstance(tensor, DTensor):
        return 0
    shape, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    assert tuple(shape[1:]) == tuple(tensor.shape[1:]), "a part is a run of rows"
    return offset[0] * tensor[0].numel() if tensor.ndim > 1 else offset[0]
