"""What drawing on a GPU reads and writes."""

from typing import NamedTuple

from torch import Tensor


class DrawState(NamedTuple):
    """What a draw reads and changes of every row; views with one entry a row, whole numbers as int64."""

    token: Tensor
    position: Tensor  # place of `token`
    start: Tensor  # place of the first drawn token
    last: Tensor  # place of the last token that may be drawn
    key: Tensor  # of the row's random numbers
    temperature: Tensor  # float32, as are the next but one and its successor
    top_k: Tensor
    top_p: Tensor
    min_p: Tensor
    stop_ids: Tensor  # (S, N)
    place: Tensor  # int32: where the next pass writes the newest token; -1 once the row is finished
    tokens: Tensor  # (N, most tokens): what was drawn
    logprobs: Tensor

    def first(self, rows: int) -> "DrawState":
        """The state of the first so many rows."""
        return DrawState(*(each[:, :rows] if each is self.stop_ids else each[:rows] for each in self))
