"""Decoding steps on a GPU as CUDA graphs: one replay a token, and the host is asked for nothing in between."""

import bisect

import torch
from torch import Tensor

from fathom.infer.rows import Rows
from fathom.infer.tables import Tables
from fathom.kernels.sampling import DrawState
from fathom.kernels.triton.sampling import draw_and_record
from fathom.model import Transformer
from fathom.model.decode import fused_hidden, fused_logits, rotations


class Graphs:
    """One graph for every bucket of rows, captured when it is first needed.

    All that a step reads and writes stays where it is: the rows' state, their page table and the cache. Rows of a
    bucket beyond the active ones stand at place -1, see nothing and write nothing, and so do rows that have finished.
    With `replay` off the same kernels are launched one by one.
    """

    def __init__(self, model: Transformer, rows: Rows, tables: Tables, replay: bool = True) -> None:
        self._model, self._rows, self._tables, self._replay = model, rows, tables, replay
        self._place = torch.full((rows.capacity,), -1, dtype=torch.int32, device=tables.device)
        self._turns = rotations(model, tables.columns * tables.page_size)
        self._buckets = buckets(rows.capacity)
        self._state = rows.draw_state(self._place)
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}

    def decode(self, steps: int) -> None:
        """Let the active rows draw `steps` tokens each; those that finish on the way stop there."""
        rows, state = self._rows, self._rows.draw_state(self._place)
        if _addresses(state) != _addresses(self._state):  # tables grew for a request with more tokens or stop ids
            self._graphs.clear()
        self._state = state
        self._place.fill_(-1)
        self._place[: rows.count].copy_(rows.fields().position)
        bucket = self._buckets[bisect.bisect_left(self._buckets, rows.count)]
        graph = (self._graphs.get(bucket) or self._capture(bucket)) if self._replay else None
        for _ in range(steps):
            if graph is None:
                self._step(bucket)
            else:
                graph.replay()

    def _step(self, bucket: int) -> None:
        """One token for each of the first `bucket` rows."""
        state = self._state.first(bucket)
        table, cache = self._tables.rows(bucket), self._tables.cache
        x = fused_hidden(self._model, state.token, state.place, table, cache, self._turns)
        draw_and_record(fused_logits(self._model, x, self._model.norm), state)

    def _capture(self, bucket: int) -> torch.cuda.CUDAGraph:
        """Run a step with idle rows, which compiles its kernels, and record one."""
        place = self._place.clone()
        self._place.fill_(-1)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self._step(bucket)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        others = next(iter(self._graphs.values()), None)  # graphs never run at once: they share what they work in
        with torch.cuda.graph(graph, pool=others.pool() if others else None):
            self._step(bucket)
        self._place.copy_(place)
        self._graphs[bucket] = graph
        return graph


def buckets(rows: int) -> list[int]:
    """Numbers of rows that have a graph: powers of two up to 8, then multiples of 8, a quarter apart from 64 on."""
    sizes = [1, 2, 4, *range(8, 65, 8)]
    while sizes[-1] < rows:
        sizes.append(-(-sizes[-1] * 5 // 32) * 8)
    return [*[size for size in sizes if size < rows], rows]


def _addresses(state: DrawState) -> list[int]:
    tensors: list[Tensor] = list(state)
    return [tensor.data_ptr() for tensor in tensors]
