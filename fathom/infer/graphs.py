"""Decoding steps on a GPU as CUDA graphs: one replay a token, and the host is asked for nothing in between."""

import bisect

import torch
from jaxtyping import Int
from torch import Tensor

from fathom.kernels.triton.sampling import DrawState, draw_and_record
from fathom.model.cache import PagedCache
from fathom.model.decode import fused_hidden, fused_logits, rotations
from fathom.model.transformer import Transformer


class Graphs:
    """One graph for every bucket of rows, captured when it is first needed.

    Everything a step reads and writes stays where it is: the rows' state, their page table and the cache. Rows of a
    bucket beyond those in use stand at place -1, see nothing and write nothing.
    """

    def __init__(self, model: Transformer, cache: PagedCache, state: DrawState, table: Int[Tensor, "N C"]) -> None:
        self._model, self._cache, self._state, self._table = model, cache, state, table
        self._turns = rotations(model, table.shape[1] * cache.layers[0].shape[1])
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self._buckets = buckets(len(table))
        self._pool = torch.cuda.graph_pool_handle()

    def decode(self, rows: int, steps: int) -> None:
        """Let the first `rows` rows draw `steps` tokens each; those that finish on the way stop there."""
        bucket = self._buckets[bisect.bisect_left(self._buckets, rows)]
        graph = self._graphs.get(bucket) or self._capture(bucket)
        for _ in range(steps):
            graph.replay()

    def step(self, bucket: int) -> None:
        """What a graph holds: one token for each of the first `bucket` rows."""
        state = DrawState(*(each[..., :bucket] if each.dim() < 2 or each is self._state.stop_ids else each[:bucket] for each in self._state))
        x = fused_hidden(self._model, state.token, state.place, self._table[:bucket], self._cache, self._turns)
        draw_and_record(fused_logits(self._model, x, self._model.norm), state)

    def _capture(self, bucket: int) -> torch.cuda.CUDAGraph:
        """Run the step once with idle rows, which compiles its kernels, and record it."""
        place = self._state.place.clone()
        self._state.place.fill_(-1)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self.step(bucket)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            self.step(bucket)
        self._state.place.copy_(place)
        self._graphs[bucket] = graph
        return graph


def buckets(rows: int) -> list[int]:
    """1, 2, 4, 8, then by 8 up to 64, then by a quarter more each; the last is `rows`."""
    sizes = [1, 2, 4, *range(8, 65, 8)]
    while sizes[-1] < rows:
        sizes.append(-(-sizes[-1] * 5 // 32) * 8)
    return [*[size for size in sizes if size < rows], rows]
