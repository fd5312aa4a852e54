"""Decoding steps on a GPU as CUDA graphs: one replay a token, and the host is asked for nothing in between."""

import bisect
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Int32
from torch import Tensor

from fathom.infer.rows import Rows
from fathom.infer.scheduler import SHORT_PASS
from fathom.infer.tables import Tables
from fathom.kernels.decode import crowd_linear, linear
from fathom.kernels.sampling import DrawState
from fathom.kernels.triton.sampling import draw_and_record
from fathom.model import Transformer
from fathom.model.decode import fused_hidden, is_crowd, rotations

T = TypeVar("T")


class Inputs(NamedTuple):
    """What a pass over prompts reads: a token each, its place in its row, and the row's pages."""

    tokens: Int[Tensor, " N"]
    place: Int32[Tensor, " N"]
    table: Int32[Tensor, "N C"]

    def first(self, count: int) -> "Inputs":
        """Those of the first so many tokens."""
        return Inputs(self.tokens[:count], self.place[:count], self.table[:count])


class Graphs:
    """One graph for every bucket of rows, captured when it is first needed.

    All that a step reads and writes stays where it is: the rows' state, their page table and the cache. Rows of a
    bucket beyond the active ones stand at place -1, see nothing and write nothing, and so do rows that have finished.
    With `replay` off the same kernels are launched one by one. With `invariant` every token is computed as it would be
    alone: by the same tiles in the same order, whatever is decoded beside it and however its prompt was cut.
    """

    def __init__(
        self, model: Transformer, rows: Rows, tables: Tables, replay: bool = True, invariant: bool = False
    ) -> None:
        self._model, self._rows, self._tables, self._replay = model, rows, tables, replay
        self.invariant = invariant
        self._place = torch.full((rows.capacity,), -1, dtype=torch.int32, device=tables.device)
        self._turns = rotations(model, tables.columns * tables.page_size)
        self._buckets = buckets(rows.capacity, least=2 if invariant else 1)
        self._state = rows.draw_state(self._place)
        self._inputs = Inputs(
            torch.zeros(SHORT_PASS, dtype=torch.int64, device=tables.device),
            torch.full((SHORT_PASS,), -1, dtype=torch.int32, device=tables.device),
            torch.zeros(SHORT_PASS, tables.columns, dtype=torch.int32, device=tables.device),
        )
        self._drawers: dict[int, torch.cuda.CUDAGraph] = {}
        self._readers: dict[int, tuple[torch.cuda.CUDAGraph, Tensor]] = {}
        self._pool = torch.cuda.graph_pool_handle()  # graphs never run at once: they share what they work in

    def decode(self, steps: int) -> None:
        """Let the active rows draw `steps` tokens each; those that finish on the way stop there."""
        rows, state = self._rows, self._rows.draw_state(self._place)
        if _addresses(state) != _addresses(self._state):  # tables grew for a request with more tokens or stop ids
            self._drawers.clear()
            self._pool = torch.cuda.graph_pool_handle()  # one whose graphs are all gone takes no more
        self._state = state
        self._place.fill_(-1)
        self._place[: rows.count].copy_(rows.fields().position)
        bucket = self._buckets[bisect.bisect_left(self._buckets, rows.count)]
        if self._replay and bucket not in self._drawers:
            self._drawers[bucket], _ = self._record(self._place, lambda: self._step(bucket))
        draw = self._drawers[bucket].replay if self._replay else lambda: self._step(bucket)
        for _ in range(steps):
            draw()

    def read(
        self, tokens: Int[Tensor, "B T"], places: Int[Tensor, "B T"], table: Int32[Tensor, "B C"]
    ) -> Float[Tensor, "B T D"]:
        """States of tokens anywhere in their rows, each a row of its own to the kernels."""
        count, table = tokens.numel(), table.repeat_interleave(tokens.shape[1], dim=0)
        bucket = max(8, 1 << (count - 1).bit_length())
        if not self._replay or bucket > SHORT_PASS:
            pad = 1 if count == 1 and self.invariant else 0  # one row is computed by other tiles than two
            flat, place = F.pad(tokens.flatten(), (0, pad)), F.pad(places.flatten().int(), (0, pad), value=-1)
            hidden = self._hidden(flat, place, F.pad(table, (0, 0, 0, pad)))
            return hidden[:count].view(*tokens.shape, -1)
        inputs = self._inputs
        inputs.tokens[:count] = tokens.flatten()
        inputs.place.fill_(-1)[:count] = places.flatten()
        inputs.table[:count, : table.shape[1]] = table
        if bucket not in self._readers:
            self._readers[bucket] = self._record(inputs.place, lambda: self._hidden(*inputs.first(bucket)))
        graph, hidden = self._readers[bucket]
        graph.replay()
        return hidden[:count].clone().view(*tokens.shape, -1)

    def logits(self, hidden: Float[Tensor, "N D"]) -> Float[Tensor, "N V"]:
        """Scores of every next token in float32."""
        weight = self._model.head_weight
        if len(hidden) == 1 and self.invariant:
            return linear(hidden.repeat(2, 1), weight)[:1]
        multiply = crowd_linear if is_crowd(len(hidden), self.invariant) else linear
        return multiply(hidden, weight)

    def _hidden(
        self, tokens: Int[Tensor, " N"], place: Int32[Tensor, " N"], table: Int32[Tensor, "N C"]
    ) -> Float[Tensor, "N D"]:
        return fused_hidden(self._model, tokens, place, table, self._tables.cache, self._turns, self.invariant)

    def _step(self, bucket: int) -> None:
        """One token for each of the first `bucket` rows."""
        state = self._state.first(bucket)
        hidden = self._hidden(state.token, state.place, self._tables.rows(bucket))
        draw_and_record(self.logits(hidden), state)

    def _record(self, place: Int32[Tensor, " N"], work: Callable[[], T]) -> tuple[torch.cuda.CUDAGraph, T]:
        """Do some work with idle rows, which compiles its kernels, and record it; `place` is as it was behind it."""
        kept = place.clone()
        place.fill_(-1)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            work()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            result = work()
        place.copy_(kept)
        return graph, result


def buckets(rows: int, least: int = 1) -> list[int]:
    """Numbers of rows that have a graph: powers of two up to 8, then multiples of 8, a quarter apart from 64 on."""
    sizes = [1, 2, 4, *range(8, 65, 8)]
    while sizes[-1] < rows:
        sizes.append(-(-sizes[-1] * 5 // 32) * 8)
    return [*[size for size in sizes if least <= size < rows], rows]


def _addresses(state: DrawState) -> list[int]:
    tensors: list[Tensor] = list(state)
    return [tensor.data_ptr() for tensor in tensors]
