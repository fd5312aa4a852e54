"""The tokens that a callable allows, asked once for every prefix of one completion."""

from collections.abc import Collection, Sequence

import torch
from jaxtyping import Bool
from torch import Tensor

from fathom.infer.request import Allow, Allowed


class Mask:
    """Asks a request's `allow` as one sample grows, and remembers the newest answer."""

    def __init__(self, allow: Allow) -> None:
        self._allow = allow
        self._tokens: list[int] = []
        self._answer: Allowed | Exception = None
        self._asked = False

    @property
    def known(self) -> int:
        """Tokens of the completion that were seen."""
        return len(self._tokens)

    def ask(self, new: Sequence[int], vocab_size: int, device: torch.device) -> Bool[Tensor, " V"] | None:
        """The tokens allowed behind those seen and `new` ones; None allows all. Raises what the callable raised."""
        if new or not self._asked:
            self._tokens += new
            self._asked = True
            try:
                self._answer = self._allow(tuple(self._tokens))
            except Exception as error:  # kept, so that the callable is not asked again
                self._answer = error
        if isinstance(self._answer, Exception):
            raise self._answer
        return None if self._answer is None else _mask(self._answer, vocab_size, device)


def fixed(allow: frozenset[int], vocab_size: int, device: torch.device) -> Bool[Tensor, " V"]:
    """The mask of tokens that are always the same."""
    return _mask(allow, vocab_size, device)


def _mask(allowed: Collection[int] | Tensor, vocab_size: int, device: torch.device) -> Bool[Tensor, " V"]:
    if isinstance(allowed, Tensor):
        if allowed.dtype != torch.bool or allowed.shape != (vocab_size,):
            raise ValueError(f"allow gave a tensor of {allowed.dtype} and shape {tuple(allowed.shape)}; give booleans")
        return allowed.to(device)
    ids = torch.tensor(list(allowed), dtype=torch.int64, device=device)
    if len(strangers := ids[(ids < 0) | (ids >= vocab_size)]):
        raise ValueError(f"allow gave token id {int(strangers[0])}, outside the model's vocabulary of {vocab_size}")
    return torch.zeros(vocab_size, dtype=torch.bool, device=device).index_fill_(0, ids, True)
