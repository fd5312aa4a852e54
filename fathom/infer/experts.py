"""Which experts a sample's tokens went to: taken from the cache before anything else stands there."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Int16
from torch import Tensor

from fathom.infer.request import Piece

UNKNOWN = -1  # of a token that was drawn, but never read: whoever replays it lets the router choose


class Routing:
    """The experts of the places of one row, from its prompt's first on, and how many of them were handed out."""

    def __init__(self, prompt: int) -> None:
        self._prompt = prompt  # tokens
        self._chunks: list[Tensor] = []
        self.places = 0  # that are taken from the cache
        self._drawn = 0  # tokens whose experts are handed out

    def add(self, experts: Int16[Tensor, "T L K"]) -> None:
        """Those of the next places."""
        self._chunks.append(experts)
        self.places += len(experts)

    def take(self, drawn: int) -> tuple[Int16[Tensor, "S L K"] | None, Int16[Tensor, "T L K"]]:
        """Those of the prompt, the first time, and of the places that drew the tokens since, up to `drawn` of them.

        The prompt's last place drew the first token, so its experts are in both.
        """
        places = torch.cat(self._chunks)
        self._chunks = [places]
        first = self._prompt - 1  # the place that drew token 0
        prompt = None if self._drawn else places[: self._prompt]
        fresh = places[first + self._drawn : first + drawn]
        self._drawn = drawn
        return prompt, fresh


def replay_of(pieces: Sequence[Piece]) -> Int16[Tensor, "L T K"]:
    """What `RoutingTrace.replay` takes for one sample's prompt and completion, given all its pieces in order.

    T counts the tokens of both. The completion's last token was never read: its experts are -1, so a training pass
    lets the router choose, which no other token sees. Rows of a batch are padded with -1 and stacked as dimension 1.
    """
    prompt = pieces[0].prompt_experts
    if prompt is None or any(piece.experts is None for piece in pieces):
        raise ValueError("the pieces carry no experts, or not from the first on; ask with Request(experts=True)")
    drawn = torch.cat([piece.experts for piece in pieces if piece.experts is not None])
    read = torch.cat((prompt[:-1], drawn)) if len(drawn) else prompt
    more = int(len(drawn) > 0)
    return F.pad(read, (0, 0, 0, 0, 0, more), value=UNKNOWN).transpose(0, 1)
