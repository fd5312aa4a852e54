"""Documents packed back to back into rows, and the Batch, which is all that training sees of text.

Row g of a run depends on the shards, the shares, the row length, the seed and g alone. Resuming, ramping the batch up
and sharing it among ranks are therefore only a choice of g; a loader has no state to save.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int64

from fathom.text.shards import Shard


@dataclass(frozen=True)
class Batch:
    """Rows of token ids and what each position should predict."""

    tokens: Int64[np.ndarray, "B T"]
    targets: Int64[np.ndarray, "B T"]  # the next token
    weights: Float32[np.ndarray, "B T"]  # of the loss; 0 where there is none
    positions: Int64[np.ndarray, "B T"]  # place in the row, from 0
    segments: Int64[np.ndarray, "B T"]  # number of the document within the row, from 0; -1 on padding

    def rows(self, start: int, stop: int) -> "Batch":
        """The rows from `start` up to `stop`: a micro-batch."""
        return Batch(**{name: array[start:stop] for name, array in vars(self).items()})


class PackedLoader:
    """Batches of packed documents from several sources.

    Each source is an endless stream, every epoch in a new order of its documents; row k of it is tokens k*T to k*T+T.
    Sources take turns row by row in proportion to their shares. A position whose target opens another document has
    weight 0.
    """

    def __init__(
        self,
        shards: Sequence[Shard],
        shares: Sequence[float],
        *,
        seq_len: int,
        batch_rows: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        """Mix `shards` by `shares` of the tokens (any positive numbers, one a shard).

        Raises ValueError for other shares, or if `batch_rows` does not divide among `world` ranks.
        """
        if len(shards) != len(shares) or not shards or min(shares) <= 0:
            raise ValueError(
                f"{len(shards)} shards cannot be mixed by shares {tuple(shares)}; give each one above zero"
            )
        self._streams = [_Stream(shard, seed, number) for number, shard in enumerate(shards)]
        self._shares = [share / sum(shares) for share in shares]
        self._seq_len = seq_len
        self._batch_rows = batch_rows
        self._rank, self._world = rank, world
        rank_rows(batch_rows, None, rank, world)  # refuse now rather than at the first step

    def batch(self, step: int, rows: int | None = None) -> Batch:
        """This rank's rows of the batch of `step`; the ranks' rows in order are the whole batch.

        While a batch grows, `rows` is its size at `step`; the rest of that step's rows is passed over.
        """
        part = rank_rows(self._batch_rows, rows, self._rank, self._world)
        return self.rows(step * self._batch_rows + part.start, part.stop - part.start)

    def rows(self, first: int, count: int) -> Batch:
        """Rows `first` to `first + count` of the run."""
        shape = (count, self._seq_len + 1)
        tokens, segments = np.empty(shape, np.int64), np.empty(shape, np.int64)
        turns = take_turns(self._shares, first, count)
        for number, stream in enumerate(self._streams):
            own = np.flatnonzero(turns.sources == number)
            if len(own):
                tokens[own], segments[own] = stream.rows(turns.rows[own], self._seq_len)
        return Batch(
            tokens=tokens[:, :-1],
            targets=tokens[:, 1:],
            weights=(segments[:, :-1] == segments[:, 1:]).astype(np.float32),
            positions=row_positions(count, self._seq_len),
            segments=segments[:, :-1],
        )


class Turns(NamedTuple):
    """Which source each row of the run comes from, and which of that source's rows it is."""

    sources: Int64[np.ndarray, " R"]
    rows: Int64[np.ndarray, " R"]


def take_turns(shares: Sequence[float], first: int, count: int) -> Turns:
    """Rows `first` to `first + count` of sources that take turns in proportion to `shares`, which sum to 1.

    Source s has its row k due at time (k + 1/2) / share; rows come in the order they are due. At every moment each
    source is within a row or so of its exact share.
    """
    # by time t about t rows are due, at most half a row a source off: a window that much wider holds all that is asked
    opening, closing = max(0, first - len(shares)), first + count + len(shares)
    starts = [max(0, int(opening * share - 0.5)) for share in shares]
    rows = [np.arange(start, int(closing * share + 1.5)) for start, share in zip(starts, shares, strict=True)]
    due = np.concatenate([(row + 0.5) / share for row, share in zip(rows, shares, strict=True)])
    sources = np.repeat(np.arange(len(shares)), [len(row) for row in rows])
    order = np.lexsort((sources, due))[first - sum(starts) :][:count]
    return Turns(sources[order], np.concatenate(rows)[order])


class _Epoch(NamedTuple):
    order: Int64[np.ndarray, " D"]  # document numbers
    starts: Int64[np.ndarray, " D"]  # where each begins, in tokens from the epoch's own start


class _Stream:
    """The documents of one shard, end to end and over and over."""

    def __init__(self, shard: Shard, seed: int, number: int) -> None:
        self._shard = shard
        self._seed = (seed, number)
        self._lengths = np.diff(shard.borders)
        self._size = int(shard.borders[-1])
        self._kept: dict[int, _Epoch] = {}

    def rows(
        self, numbers: Int64[np.ndarray, " R"], seq_len: int
    ) -> tuple[Int64[np.ndarray, "R L"], Int64[np.ndarray, "R L"]]:
        """Tokens and segments of these rows, L = `seq_len` + 1 long."""
        starts = numbers * seq_len
        ends = starts + seq_len + 1
        first = self._places(starts)
        counts = self._places(ends - 1) - first + 1
        places = ragged_arange(first, counts)  # every document of every row
        documents, begins = self._look_up(places)
        low = np.maximum(begins, np.repeat(starts, counts))
        high = np.minimum(begins + self._lengths[documents], np.repeat(ends, counts))
        tokens = self._shard.tokens[ragged_arange(self._shard.borders[documents] + low - begins, high - low)]
        segments = np.repeat(places - np.repeat(first, counts), high - low)
        shape = (len(numbers), seq_len + 1)
        return tokens.astype(np.int64).reshape(shape), segments.reshape(shape)

    def _places(self, positions: Int64[np.ndarray, " R"]) -> Int64[np.ndarray, " R"]:
        """The place in the endless sequence of documents of the one that covers each position."""
        epochs, within = np.divmod(positions, self._size)
        places = np.empty_like(positions)
        for number in np.unique(epochs):
            here = epochs == number
            place = np.searchsorted(self._epoch(int(number)).starts, within[here], side="right") - 1
            places[here] = number * len(self._lengths) + place
        return places

    def _look_up(self, places: Int64[np.ndarray, " P"]) -> tuple[Int64[np.ndarray, " P"], Int64[np.ndarray, " P"]]:
        """Which document stands at each place, and the position where it begins."""
        epochs, within = np.divmod(places, len(self._lengths))
        documents, begins = np.empty_like(places), np.empty_like(places)
        for number in np.unique(epochs):
            here = epochs == number
            epoch = self._epoch(int(number))
            documents[here] = epoch.order[within[here]]
            begins[here] = number * self._size + epoch.starts[within[here]]
        return documents, begins

    def _epoch(self, number: int) -> _Epoch:
        if number not in self._kept:
            order = np.random.default_rng((*self._seed, number)).permutation(len(self._lengths))
            lengths = self._lengths[order]
            while len(self._kept) > 1:
                self._kept.pop(min(self._kept))
            self._kept[number] = _Epoch(order, np.cumsum(lengths) - lengths)
        return self._kept[number]


def row_positions(rows: int, length: int) -> Int64[np.ndarray, "B T"]:
    """0, 1, 2, ... in every row."""
    return np.tile(np.arange(length, dtype=np.int64), (rows, 1))


def rank_rows(batch_rows: int, rows: int | None, rank: int, world: int) -> slice:
    """The rows of a global batch of `rows` (None: of `batch_rows`, the most) for one rank: equal shares, in order."""
    rows = batch_rows if rows is None else rows
    if rows > batch_rows:
        raise ValueError(f"a batch of {rows} rows exceeds batch_rows={batch_rows}; ask for at most that many")
    if rows % world or not rows:
        raise ValueError(f"a batch of {rows} rows does not divide among {world} workers; choose a multiple of {world}")
    share = rows // world
    return slice(rank * share, (rank + 1) * share)


def ragged_arange(starts: Int64[np.ndarray, " R"], lengths: Int64[np.ndarray, " R"]) -> Int64[np.ndarray, " N"]:
    """`starts[r]`, `starts[r] + 1`, ..., `lengths[r]` of them, one run after the other."""
    before = np.cumsum(lengths) - lengths
    return np.arange(int(lengths.sum()), dtype=np.int64) + np.repeat(starts - before, lengths)
