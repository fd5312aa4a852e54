"""A model spread over processes from outside: experts by process, everything else by FSDP2, and whole again.

No layer knows of it but the experts, whose tokens travel. What is spread is a DTensor, so that checkpoints find every
shard's place in the whole.
"""

from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.fsdp._fully_shard._fsdp_collectives import DefaultAllGather, DefaultReduceScatter
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from fathom.config import ModelConfig
from fathom.model.block import Block
from fathom.model.draw import materialise
from fathom.model.moe import moe_layers
from fathom.model.transformer import Transformer
from fathom.parallel.hush import hush
from fathom.parallel.mesh import ALONE, Axis, Mesh
from fathom.parallel.world import World


def parallelize(
    model: Transformer, world: World, dtype: torch.dtype = torch.float32, generator: torch.Generator | None = None
) -> Transformer:
    """Spread a whole model, the same on every process, as `world.layout` says; in place.

    `dtype` is the precision of products: weights are gathered in it, while masters and gradient sums stay float32.
    A model on the meta device gets memory for this process's parts alone, and weights drawn from `generator`; without
    one a checkpoint has to follow. Raises ValueError where the experts do not divide among the processes.
    """
    layout, mesh = world.layout, world.mesh
    for block in (module for module in model.modules() if isinstance(module, Block)):
        block.recompute = layout.recompute
    model.spread_rows(mesh.context)
    if layout.expert > 1:
        _spread_experts(model, model.config, mesh, layout.fp8_dispatch)
    if layout.shard > 1:
        hush()
        _shard(model, mesh, reshard=layout.zero == 3, dtype=dtype)
    if any(parameter.is_meta for parameter in model.parameters()):
        materialise(model, world.device, generator)
    if layout.shard > 1:
        _meet_all(model)
    return model


def is_spread(model: nn.Module) -> bool:
    """Whether some weight lies in parts on several processes."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def _spread_experts(model: nn.Module, config: ModelConfig, mesh: Mesh, fp8_dispatch: bool) -> None:
    """Give each process its run of the experts of every layer."""
    experts, ways = config.moe.n_routed_experts, mesh.expert.size
    if not experts or experts % ways:
        raise ValueError(
            f"parallel.expert={ways} does not divide the model's {experts} routed experts; choose one of their divisors"
        )
    assert mesh.sparse is not None
    for layer in moe_layers(model):
        layer.axis, layer.fp8_dispatch = mesh.expert, fp8_dispatch
        for name in ("gate_up", "down"):
            own = getattr(layer, name).detach().chunk(ways)[mesh.expert.rank].clone()
            spread = DTensor.from_local(own, mesh.sparse["expert"], [Shard(0)])
            setattr(layer, name, nn.Parameter(spread, requires_grad=getattr(layer, name).requires_grad))


def _shard(model: Transformer, mesh: Mesh, reshard: bool, dtype: torch.dtype) -> None:
    """FSDP2, one unit per block and MTP module; embedding, norm and head are the root's, gathered in float32.

    Routers have units of their own where blocks are gathered in fewer bits, for they compute in float32 (V3 3.3.1),
    and so have experts that lie on other processes than the rest of their layer.
    """
    assert mesh.held is not None and mesh.sparse is not None
    held = mesh.held["data", "holder"] if mesh.data.size > 1 else mesh.held["holder"]
    exact = MixedPrecisionPolicy(reduce_dtype=torch.float32, cast_forward_inputs=False)
    low = MixedPrecisionPolicy(
        param_dtype=None if dtype == torch.float32 else dtype, reduce_dtype=torch.float32, cast_forward_inputs=False
    )

    def unit(module: nn.Module, where: DeviceMesh, policy: MixedPrecisionPolicy, reshard: bool) -> None:
        fsdp = fully_shard(module, mesh=where, reshard_after_forward=reshard, mp_policy=policy)
        if (holders := where.size(-1)) > 1:
            axis = mesh.expert_data if where.ndim == 1 and where.mesh_dim_names == ("expert_data",) else mesh.shard
            fsdp.set_custom_all_gather(_CountedGather(axis, holders))
            fsdp.set_custom_reduce_scatter(_CountedScatter(axis, holders))
        fsdp.set_gradient_divide_factor(1.0)  # losses are divided by the whole step's denominators: gradients add up
        fsdp.set_force_sum_reduction_for_comms(True)

    for moe in moe_layers(model):
        if moe.axis.size > 1:
            unit(moe.router, held, exact, reshard)
            if moe.shared is not None:
                unit(moe.shared, held, low, reshard)
            unit(moe, mesh.sparse["expert_data"], low, reshard)
        elif dtype != torch.float32:
            unit(moe.router, held, exact, reshard)
    for layer in [*model.layers, *model.mtp]:
        if not isinstance(layer, nn.Identity):  # stands for a layer of another stage
            unit(layer, held, low, reshard)
    unit(model, held, exact, False)


def _meet_all(model: nn.Module) -> None:
    """Gather once: torch looks for gathered weights even in units that no pass has met: MTP's, say."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.unshard()
            module.reshard()


class _CountedGather(DefaultAllGather):
    """FSDP's own gathering of weights, with what this process sends counted."""

    def __init__(self, axis: Axis, holders: int) -> None:
        super().__init__()
        self.axis, self.holders = axis, holders

    def __call__(self, output_tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        self.axis.sent["weights"] += output_tensor.nbytes * (self.holders - 1) // self.holders
        return super().__call__(output_tensor, *args, **kwargs)


class _CountedScatter(DefaultReduceScatter):
    """FSDP's own sum of gradients into shards, with what this process sends counted."""

    def __init__(self, axis: Axis, holders: int) -> None:
        super().__init__()
        self.axis, self.holders = axis, holders

    def __call__(self, output_tensor: Tensor, input_tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        self.axis.sent["gradients"] += input_tensor.nbytes * (self.holders - 1) // self.holders
        return super().__call__(output_tensor, input_tensor, *args, **kwargs)


def before_micro_batch(model: nn.Module, zero: int, is_last: bool) -> None:
    """Say whether gradients are to be summed behind the next backward pass, and gathered weights kept.

    ZeRO-1 gathers weights and scatters gradients once a step; ZeRO-3 scatters every micro-batch's gradients and sums
    over replicas once.
    """
    if isinstance(model, FSDPModule):
        # every backward pass is its own last one to FSDP: it would gather ahead by the order of the pass before
        model.set_requires_gradient_sync(is_last or zero == 3)
        model.set_requires_all_reduce(is_last)
        model.set_reshard_after_backward(is_last or zero == 3)


def begin_pipeline(model: nn.Module) -> None:
    """Gather what stages of a pipeline compute with, for all micro-batches of a step; gradients add up where they are.

    Stages call the layers themselves, not the model that FSDP takes for the root, and passes forward and back are under
    way at once: so nothing is summed or let go before `end_pipeline`.
    """
    if isinstance(model, FSDPModule):
        fully_shard.state(model)._lazy_init()  # pyright: ignore
        model.set_is_last_backward(False)
        model.set_requires_gradient_sync(False)
        model.set_reshard_after_backward(False)
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.unshard()


def end_pipeline(model: nn.Module) -> None:
    """Sum the gradients over the processes that share the stages' weights, each to its own part."""
    if isinstance(model, FSDPModule):
        model.set_is_last_backward(True)
        model.set_requires_gradient_sync(True)
        model.set_reshard_after_backward(True)
        root: Any = fully_shard.state(model)  # pyright: ignore
        for state in root._state_ctx.all_states:
            for group in state._fsdp_param_groups:
                group.post_backward()
        root._root_post_backward_final_callback()


def count_replica_sums(model: nn.Module, world: World) -> None:
    """Book what FSDP has sent to sum this process's parts over the replicas, once a step."""
    for parameter in model.parameters():
        if isinstance(parameter.grad, DTensor) and any(p.is_replicate() for p in parameter.grad.placements):
            world.mesh.data.count_all_reduce("gradients", local(parameter.grad))


def let_go(model: nn.Module) -> None:
    """Free gathered weights, so that the next pass gathers what has changed since."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def local(tensor: Tensor) -> Tensor:
    """This process's part of a tensor; the tensor itself where it is whole."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """The tensor whole again; every process must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def part(tensor: Tensor, like: Tensor) -> Tensor:
    """This process's part of a whole tensor, where `like`, of the same shape, lies in parts."""
    if not isinstance(like, DTensor):
        return tensor
    shape, offset = compute_local_shape_and_global_offset(like.shape, like.device_mesh, like.placements)
    for dim, (length, at) in enumerate(zip(shape, offset, strict=True)):
        tensor = tensor.narrow(dim, min(at, tensor.shape[dim]), length)
    return tensor


def as_part(own: Tensor, like: Tensor) -> Tensor:
    """A tensor of which every process holds a part, this one `own`, as it does of `like`; no one need ask."""
    if not isinstance(like, DTensor):
        return own
    return DTensor.from_local(
        own, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )


def joined(own: Tensor, like: Tensor) -> Tensor:
    """A tensor whole again of which every process holds a part as it does of `like`; every process must ask."""
    return whole(as_part(own, like))


def copies_of(parameter: Tensor, world: World) -> int:
    """How many of the processes that share this model's layers hold the same part of a parameter."""
    if not isinstance(parameter, DTensor):
        return world.tokens.size
    mesh = parameter.device_mesh
    parts = 1
    for dim, placement in enumerate(parameter.placements):
        parts *= 1 if placement.is_replicate() else mesh.size(dim)
    return world.tokens.size // parts


@torch.no_grad()
def take(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Put whole weights into a model that may be spread: each process its part."""
    let_go(model)
    for name, own in model.state_dict().items():
        local(own).copy_(part(weights[name], own))


def spread_like(wholes: Sequence[Tensor], like: Sequence[Tensor]) -> list[Tensor]:
    """Whole tensors as they lie in `like`, one by one."""
    return [
        DTensor.from_local(
            part(tensor, other).clone(), other.device_mesh, other.placements, shape=other.shape, stride=other.stride()
        )
        if isinstance(other, DTensor)
        else tensor
        for tensor, other in zip(wholes, like, strict=True)
    ]


@torch.no_grad()
def take_whole(model: nn.Module, spread: nn.Module) -> None:
    """Put the weights of a model that is spread into a whole one; every process must ask."""
    own = model.state_dict()
    for name, tensor in spread.state_dict().items():
        own[name].copy_(whole(tensor))


@torch.no_grad()
def whole_weights(model: nn.Module, stages: Axis = ALONE) -> Iterator[tuple[str, Tensor]]:
    """Every weight whole, one at a time, in the order of their names; every process must ask for all of them.

    `stages` are the processes over which the layers are spread.
    """
    own = model.state_dict()
    for name in sorted({name for names in cast(list[list[str]], stages.gather(list(own))) for name in names}):
        mine = whole(own[name]) if name in own else None
        yield name, next(tensor for tensor in cast(list[Tensor | None], stages.gather(mine)) if tensor is not None)


@torch.no_grad()
def gathered(model: Transformer, stages: Axis = ALONE) -> Transformer:
    """The model whole on every process, and itself where it is not spread; every process must ask.

    `stages` are the processes over which its layers are spread.
    """
    if not is_spread(model) and stages.size == 1:
        return model
    with torch.device("meta"):
        copy = Transformer(model.config)
    mine = {name: whole(tensor).clone() for name, tensor in model.state_dict().items()}
    parts = cast(list[dict[str, Tensor]], stages.gather(mine))
    copy.load_state_dict({name: tensor for part in parts for name, tensor in part.items()}, assign=True)
    copy.frequencies = model.frequencies
    return copy
