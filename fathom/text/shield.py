"""What users write, kept apart from what a chat template means: their words never become special tokens."""

import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import TypeVar

from fathom.text.special import THINK, THINK_END
from fathom.text.tokenizer import Tokenizer

T = TypeVar("T")
OPEN, CLOSE = "\U000f0000", "\U000f0001"  # private characters, around the number of what they hide
THINKING = frozenset({THINK, THINK_END})
STAND_IN = re.compile(f"{OPEN}([0-9]+){CLOSE}")


class Shield:
    """Hides special tokens that are spelled out in a dialogue while a template is filled with it.

    The template sees a stand-in of private characters; in what it renders, special tokens are then its own, and the
    stand-ins become the ids of plain text again. The end of a text is hidden, too, where the next one could complete it
    to a special token. `kept` ones are left to the template, which takes apart what an assistant thought.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._patterns = _patterns_of(tokenizer.controls)
        self._hidden: list[str] = []  # by the number of the stand-in

    def hide(self, value: T, kept: frozenset[str] = frozenset()) -> T:
        """`value` with stand-ins in all its texts, however deep they lie."""
        if isinstance(value, str):
            return self._hide(value, kept)  # pyright: ignore[reportReturnType]  (a text for a text)
        if isinstance(value, Mapping):
            return {self.hide(k, kept): self.hide(v, kept) for k, v in value.items()}  # pyright: ignore
        if isinstance(value, Sequence):
            return [self.hide(each, kept) for each in value]  # pyright: ignore
        return value

    def encode(self, rendered: str) -> list[int]:
        """Ids of a filled template, whole: special tokens are the template's, and what was hidden is plain text."""
        if OPEN not in rendered:
            return self._tokenizer.encode_template(rendered, whole=True)
        ids: list[int] = []
        for part in self._patterns.specials.split(rendered):
            if part in self._tokenizer.controls:
                ids.append(self._tokenizer.id_of(part))
            elif part:
                plain = STAND_IN.sub(lambda found: self._hidden[int(found[1])], part)
                ids += self._tokenizer.encode(plain, whole=True)
        return ids

    def _hide(self, text: str, kept: frozenset[str]) -> str:
        def replace(found: re.Match[str]) -> str:
            return found.group() if found.group() in kept else self._stand_in(found.group())

        text = self._patterns.spelled.sub(replace, text)
        end = self._patterns.beginning_at_the_end(text)
        return text[: len(text) - len(end)] + self._stand_in(end) if end else text

    def _stand_in(self, text: str) -> str:
        self._hidden.append(text)
        return f"{OPEN}{len(self._hidden) - 1}{CLOSE}"


def hide_message(shield: Shield, message: Mapping[str, T]) -> dict[str, T]:
    """A turn with stand-ins. The tags of thinking are left to the template in what an assistant said."""
    return dict(shield.hide(message, THINKING if message.get("role") == "assistant" else frozenset()))


class _Patterns:
    """What to look for; there may be hundreds of special tokens, so it is made once for each set of them."""

    def __init__(self, controls: frozenset[str]) -> None:
        any_of = "|".join(map(re.escape, sorted(controls, key=len, reverse=True))) or "(?!)"
        self.specials = re.compile(f"({any_of})")
        self.spelled = re.compile(f"{any_of}|[{OPEN}{CLOSE}]")
        self._beginnings = {token[:size] for token in controls for size in range(1, len(token))}
        self._longest = max(map(len, self._beginnings), default=0)

    def beginning_at_the_end(self, text: str) -> str:
        """The longest proper beginning of a special token that `text` ends with."""
        ends = (text[-size:] for size in range(min(self._longest, len(text)), 0, -1))
        return next((end for end in ends if end in self._beginnings), "")


_patterns_of = cache(_Patterns)
