"""The processes as a mesh: along which axis each kind of parallelism talks."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from fathom.config import ParallelConfig


@dataclass(frozen=True)
class Axis:
    """This process's place among those that talk along one axis; without a group it is alone."""

    rank: int = 0
    size: int = 1
    group: dist.ProcessGroup | None = None
    sent: Counter[str] = field(default_factory=Counter[str], compare=False)  # bytes so far, by what they carried

    def sum(self, tensors: Sequence[Tensor], kind: str = "sums") -> None:
        """Replace every tensor, on every process, by the sum over the processes: one message for all of them."""
        if self.size == 1 or not tensors:
            return
        flat = torch.cat([tensor.detach().float().flatten() for tensor in tensors])
        dist.all_reduce(flat, group=self.group)
        self.count_all_reduce(kind, flat)
        for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))

    def sum_numbers(self, *numbers: float) -> tuple[float, ...]:
        """The sums of a few numbers over the processes."""
        if self.size == 1:
            return numbers
        tensor = torch.tensor(numbers, dtype=torch.float64)
        dist.all_reduce(tensor, group=self.group)
        return tuple(tensor.tolist())

    def gather(self, value: object) -> list[object]:
        """Every process's value, in the order of ranks, on every process."""
        if self.size == 1:
            return [value]
        values: list[object] = [None] * self.size
        dist.all_gather_object(values, value, group=self.group)
        return values

    def barrier(self) -> None:
        """Wait until every process is here."""
        if self.size > 1:
            dist.barrier(group=self.group)

    def count_all_reduce(self, kind: str, tensor: Tensor) -> None:
        """Book what one process sends of a sum around a ring: all but one part twice."""
        self.sent[kind] += 2 * tensor.nbytes * (self.size - 1) // self.size


ALONE = Axis()


@dataclass(frozen=True)
class Mesh:
    """The axes of a world. A process's rank counts pipeline outermost, then data, shard and context.

    Experts are spread among neighbours of data x shard x context, as in V3 (3.2), so the same processes are seen
    twice: `dense` for all other weights and `sparse` for the experts. Meshes are None where all are replicas.
    """

    pipeline: Axis = ALONE
    data: Axis = ALONE
    shard: Axis = ALONE
    context: Axis = ALONE
    expert: Axis = ALONE
    expert_data: Axis = ALONE  # processes with the same experts
    rows: Axis = ALONE  # data x shard: processes with rows of their own
    tokens: Axis = ALONE  # data x shard x context: processes with tokens of their own
    dense: DeviceMesh | None = None  # (pipeline, data, shard, context)
    held: DeviceMesh | None = None  # (pipeline, data, shard x context): the latter share the training state (FSDP)
    sparse: DeviceMesh | None = None  # (pipeline, expert_data, expert)

    @property
    def axes(self) -> dict[str, Axis]:
        """All of them by name."""
        return {name: value for name, value in vars(self).items() if isinstance(value, Axis)}


def build_mesh(config: ParallelConfig, size: int, device: torch.device) -> Mesh:
    """The mesh of `size` processes, of which this is one; the process group must have begun.

    Raises ValueError where the processes do not divide into the layout's ways.
    """
    data = replicas(config, size)
    if size == 1:
        return Mesh()
    if data == size and config.expert == 1:  # replicas alone talk in the group that is there
        every = Axis(dist.get_rank(), size)
        return Mesh(data=every, expert_data=every, rows=every, tokens=every)
    tokens = data * config.shard * config.context
    if tokens % config.expert:
        raise ValueError(
            f"parallel.expert={config.expert} does not divide the {tokens} processes of data x shard x context; choose "
            "one of its divisors"
        )
    shape = (config.pipeline, data, config.shard, config.context)
    dense = init_device_mesh(device.type, shape, mesh_dim_names=("pipeline", "data", "shard", "context"))
    held = init_device_mesh(
        device.type,
        (config.pipeline, data, config.shard * config.context),
        mesh_dim_names=("pipeline", "data", "holder"),
    )
    sparse = init_device_mesh(
        device.type,
        (config.pipeline, tokens // config.expert, config.expert),
        mesh_dim_names=("pipeline", "expert_data", "expert"),
    )
    return Mesh(
        pipeline=_axis(dense["pipeline"]),
        data=_axis(dense["data"]),
        shard=_axis(dense["shard"]),
        context=_axis(dense["context"]),
        expert=_axis(sparse["expert"]),
        expert_data=_axis(sparse["expert_data"]),
        rows=_axis(dense["data", "shard"]._flatten("rows")),  # pyright: ignore[reportPrivateUsage]
        tokens=_axis(dense["data", "shard", "context"]._flatten("tokens")),  # pyright: ignore[reportPrivateUsage]
        dense=dense,
        held=held,
        sparse=sparse,
    )


def replicas(config: ParallelConfig, size: int) -> int:
    """The replicas in a world of `size`. Raises ValueError where the layout takes another number of processes."""
    data = config.data or max(1, size // config.model_ways)
    if data * config.model_ways != size:
        raise ValueError(
            f"the layout takes {data * config.model_ways} processes (data x shard x context x pipeline = {data} x "
            f"{config.shard} x {config.context} x {config.pipeline}), but there are {size}; start as many, or change "
            "one of these ways, such as --parallel.shard"
        )
    return data


def _axis(mesh: DeviceMesh) -> Axis:
    return Axis(mesh.get_local_rank(), mesh.size(), mesh.get_group()) if mesh.size() > 1 else ALONE
