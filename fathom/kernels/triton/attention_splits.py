"""A context cut into parts that programs attend to at the same time, and how the parts become one again."""

import torch
import triton
import triton.language as tl
from torch import Tensor

CPU_PROCESSORS = 4  # under the interpreter, so that it too cuts contexts
JOINED = 64  # parts that are read at once, at most
ELEMENTS = 2048  # of parts that a program reads at once
JOIN, JOIN_QUERY = 1.4, 0.006  # time of the second kernel in tiles, measured on an H200


@triton.jit
def join_parts(
    parts, lse, out, splits,
    RANK: tl.constexpr, COLUMNS: tl.constexpr, SPLITS: tl.constexpr, JOINED: tl.constexpr,
):  # fmt: skip
    """The mean of one query's parts, each weighed by the exponentials it saw; in the order of the splits."""
    query = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    every = tl.arange(0, SPLITS)
    logs = tl.load(lse + query * splits + every, every < splits, float("-inf"))
    top = tl.max(logs, 0)
    top = tl.where(top == float("-inf"), 0.0, top)
    total = tl.sum(tl.exp2(logs - top), 0)
    acc = tl.zeros([COLUMNS], tl.float32)
    for start in range(0, splits, JOINED):
        split = start + tl.arange(0, JOINED)
        weight = tl.exp2(tl.load(lse + query * splits + split, split < splits, float("-inf")) - top)
        read = (weight > 0)[:, None] & (column < RANK)[None, :]  # parts without tokens were never written
        part = tl.load(parts + (query * splits + split)[:, None] * RANK + column[None, :], read, 0.0)
        acc += tl.sum(part * weight[:, None], 0)
    acc = acc / tl.where(total > 0, total, 1.0)
    tl.store(out + query * RANK + column, acc.to(out.dtype.element_ty), column < RANK)


class Parts:
    """Where programs put the attention of each of `splits` parts; for one part, that is the result."""

    def __init__(self, q: Tensor, rank: int, splits: int) -> None:
        self.out = q.new_empty(*q.shape[:3], rank)
        self.splits, self.rank = splits, rank
        queries = self.out.numel() // rank
        if splits > 1:
            self.parts = torch.empty(queries * splits * rank, dtype=torch.float32, device=q.device)
            self.lse = torch.empty(queries * splits, dtype=torch.float32, device=q.device)
        else:
            self.parts = self.lse = self.out

    def join(self) -> Tensor:
        """The result, in the order of the parts whatever the order in which they were done."""
        if self.splits > 1:
            splits = triton.next_power_of_2(self.splits)
            joined = min(JOINED, splits)
            columns = min(ELEMENTS // joined, triton.next_power_of_2(self.rank))
            join_parts[(self.out.numel() // self.rank, triton.cdiv(self.rank, columns))](
                self.parts,
                self.lse,
                self.out,
                self.splits,
                RANK=self.rank,
                COLUMNS=columns,
                SPLITS=splits,
                JOINED=joined,
            )
        return self.out


def processors(device: torch.device) -> int:
    """How many of the GPU's multiprocessors there are."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else CPU_PROCESSORS


def choose_splits(programs: int, blocks: int, slots: int, start: float, queries: int) -> int:
    """Into how many parts to cut a context of `blocks` tiles, where `slots` programs run at once: what ends soonest.

    `start` is what a program takes outside its loop, in tiles; the join grows with the `queries` of the whole batch.
    """
    join = JOIN + JOIN_QUERY * queries
    most = min(blocks, max(1, 4 * slots // programs))
    return min(range(1, most + 1), key=lambda s: -(-programs * s // slots) * (-(-blocks // s) + start) + (s > 1) * join)
