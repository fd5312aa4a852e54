"""Dialogues as rows padded on the right, for fine-tuning: the loss is on the reply, its end included."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

from fathom.text.packing import Batch, rank_rows, row_positions

POOL = 32  # batches whose rows are sorted by length together

Dialogues = Sequence[tuple[np.ndarray, np.ndarray]]  # ids of prompt and reply


class DialogueLoader:
    """Batches of dialogues of like length, so that little is padding.

    The dialogues of an endless stream, every epoch in a new order, fill pools of 32 batches. A pool is sorted by
    length, cut into batches, and its batches and their rows are shuffled. The batch of a step depends on the dialogues,
    the seed and the step alone.
    """

    def __init__(
        self,
        dialogues: Dialogues,
        *,
        pad_id: int,
        seq_len: int,
        batch_rows: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        """Take prompts and replies as ids.

        Raises ValueError if there are none, one does not fit in `seq_len`, or `batch_rows` does not divide among
        `world` ranks.
        """
        self._rows = _flatten(dialogues)
        longest = int(self._rows.lengths.argmax())
        if self._rows.lengths[longest] - 1 > seq_len:
            raise ValueError(
                f"dialogue {longest} has {self._rows.lengths[longest]} tokens, which seq_len={seq_len} cannot hold; "
                f"raise seq_len to {self._rows.lengths[longest] - 1} or shorten it"
            )
        self._pad_id = pad_id
        self._batch_rows = batch_rows
        self._seed = seed
        self._rank, self._world = rank, world
        rank_rows(batch_rows, None, rank, world)  # refuse now rather than at the first step
        self._pool_number = -1
        self._pool = np.zeros((0, 0), np.int64)

    def batch(self, step: int, rows: int | None = None) -> Batch:
        """This rank's rows of the batch of `step`, as wide as the longest row of all ranks.

        While a batch grows, `rows` is its size at `step`; the rest of that step's rows is passed over.
        """
        part = rank_rows(self._batch_rows, rows, self._rank, self._world)
        number, place = divmod(step, POOL)
        if number != self._pool_number:
            self._pool_number, self._pool = number, self._fill_pool(number)
        chosen = self._pool[place, :rows]
        width = int(self._rows.lengths[chosen].max()) - 1
        return _pad(self._rows, chosen[part], width, self._pad_id)

    def _fill_pool(self, number: int) -> Int64[np.ndarray, "P B"]:
        """The dialogues of a pool, one batch a row."""
        size = POOL * self._batch_rows
        epochs, within = np.divmod(np.arange(number * size, (number + 1) * size), len(self._rows.lengths))
        chosen = np.empty_like(epochs)
        for epoch in np.unique(epochs):
            order = np.random.default_rng((self._seed, 0, int(epoch))).permutation(len(self._rows.lengths))
            chosen[epochs == epoch] = order[within[epochs == epoch]]
        by_length = chosen[np.argsort(self._rows.lengths[chosen], kind="stable")]
        shuffle = np.random.default_rng((self._seed, 1, number))
        batches = shuffle.permutation(by_length.reshape(POOL, self._batch_rows))
        return shuffle.permuted(batches, axis=1)  # no rank gets the short rows of every batch


def pad_dialogues(dialogues: Dialogues, pad_id: int) -> Batch:
    """These dialogues in this order as one batch, as wide as the longest of them."""
    rows = _flatten(dialogues)
    return _pad(rows, np.arange(len(dialogues)), int(rows.lengths.max()) - 1, pad_id)


class _Rows(NamedTuple):
    """Dialogues end to end."""

    tokens: Int64[np.ndarray, " N"]
    starts: Int64[np.ndarray, " D"]
    prompts: Int64[np.ndarray, " D"]  # length of the prompt
    lengths: Int64[np.ndarray, " D"]  # of prompt and reply together


def _flatten(dialogues: Dialogues) -> _Rows:
    if not dialogues:
        raise ValueError("there are no dialogues to train on; give at least one")
    prompts = np.array([len(prompt) for prompt, _ in dialogues], np.int64)
    lengths = prompts + np.array([len(reply) for _, reply in dialogues], np.int64)
    tokens = np.concatenate([part for dialogue in dialogues for part in dialogue]).astype(np.int64)
    return _Rows(tokens, np.cumsum(lengths) - lengths, prompts, lengths)


def _pad(rows: _Rows, chosen: Int64[np.ndarray, " B"], width: int, pad_id: int) -> Batch:
    places = np.arange(width + 1)
    starts, prompts, lengths = rows.starts[chosen, None], rows.prompts[chosen, None], rows.lengths[chosen, None]
    is_text = places < lengths
    tokens = np.where(is_text, rows.tokens[np.where(is_text, starts + places, 0)], pad_id)
    return Batch(
        tokens=tokens[:, :-1],
        targets=tokens[:, 1:],
        weights=(is_text & (places >= prompts))[:, 1:].astype(np.float32),
        positions=row_positions(len(chosen), width),
        segments=np.where(is_text[:, :-1], 0, -1),
    )
