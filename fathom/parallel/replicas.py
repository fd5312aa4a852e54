"""Experts served from slots: the busy ones have several, on several processes (EPLB; V3 3.4)."""

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from fathom.parallel.experts import through_experts
from fathom.parallel.mesh import Axis

Compute = Callable[[Tensor, Tensor, Tensor], Tensor]


class Replicas:
    """The slots of one MoE layer, in equal numbers on the processes of an axis, and what was asked of them."""

    def __init__(self, of_slot: Sequence[int], n_experts: int, axis: Axis, device: torch.device) -> None:
        """`of_slot` says which expert each slot holds; every expert has one."""
        self.axis, self.n_experts, self.device = axis, n_experts, device
        self.loads = torch.zeros(n_experts, dtype=torch.int64, device=device)  # pairs that this process asked for
        self.computed = torch.zeros((), dtype=torch.int64, device=device)  # pairs that this process computed
        self.place(of_slot)

    @property
    def held(self) -> Int[Tensor, " S"]:
        """The expert in each slot of this process."""
        return self.of_slot.chunk(self.axis.size)[self.axis.rank]

    def place(self, of_slot: Sequence[int]) -> None:
        """Take other experts into the slots; their weights are `moved`."""
        self.of_slot = torch.tensor(of_slot, device=self.device)
        self.order = self.of_slot.argsort(stable=True)  # the slots of expert 0, then those of expert 1, ...
        self.count = torch.bincount(self.of_slot, minlength=self.n_experts)
        self.first = self.count.cumsum(0) - self.count

    def choose(self, experts: Int[Tensor, "N K"]) -> Int[Tensor, "N K"]:
        """A slot for every choice: an expert's slots take turns, in the order in which its tokens come."""
        flat = experts.flatten()
        order = flat.argsort(stable=True)
        load = torch.bincount(flat, minlength=self.n_experts)
        begin = load.cumsum(0) - load
        turn = torch.empty_like(flat)
        turn[order] = torch.arange(len(flat), device=flat.device) - begin[flat[order]]
        return self.order[self.first[flat] + turn % self.count[flat]].view_as(experts)

    def through(
        self, x: Float[Tensor, "N D"], experts: Int[Tensor, "N K"], weights: Float[Tensor, "N K"], compute: Compute
    ) -> Float[Tensor, "N D"]:
        """Every token's weighted sum over its experts, by `compute` on the processes whose slots they were given."""
        self.loads += torch.bincount(experts.flatten(), minlength=self.n_experts)

        def counted(rows: Tensor, numbers: Tensor, shares: Tensor) -> Tensor:
            self.computed += (numbers < len(self.held)).sum()
            return compute(rows, numbers, shares)

        return through_experts(x, self.choose(experts), weights, len(self.of_slot), self.axis, counted)

    def moved(self, weights: Shaped[Tensor, "S *W"], of_slot: Sequence[int]) -> Shaped[Tensor, "S *W"]:
        """This process's slots as `of_slot` fills them; what it lacks comes from the process with the expert's first.

        Every process must ask.
        """
        ways, size = self.axis.size, len(self.held)
        holders = [self.of_slot[p * size : (p + 1) * size].tolist() for p in range(ways)]
        home = (self.order[self.first] // size).tolist()  # of every expert

        def comes_from(process: int, expert: int) -> int:
            return process if expert in holders[process] else home[expert]

        wanted = [list(of_slot[p * size : (p + 1) * size]) for p in range(ways)]
        mine = holders[self.axis.rank]
        leaving = [[e for e in wanted[to] if comes_from(to, e) == self.axis.rank] for to in range(ways)]
        arriving = [[e for e in wanted[self.axis.rank] if comes_from(self.axis.rank, e) == p] for p in range(ways)]
        rows = weights[[mine.index(e) for experts in leaving for e in experts]].contiguous()
        received = torch.empty_like(weights)
        sizes = [len(experts) for experts in arriving], [len(experts) for experts in leaving]
        dist.all_to_all_single(received, rows, *sizes, group=self.axis.group)
        self.axis.sent["experts"] += weights[0].nbytes * (sum(sizes[1]) - sizes[1][self.axis.rank])
        # arrived by process; a place in that order for every slot
        places: dict[int, list[int]] = {}
        for place, expert in enumerate(e for experts in arriving for e in experts):
            places.setdefault(expert, []).append(place)
        return received[[places[expert].pop() for expert in wanted[self.axis.rank]]]
