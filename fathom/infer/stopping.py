"""The text of a completion while its tokens come, and the stop strings that end it."""

from collections.abc import Callable, Sequence

UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # what decoders make of the first bytes of a character


class Transcript:
    """Text that grows token by token and is cut where a stop string begins.

    A stop string counts once a token completes it that is not among the first `min_tokens`; of several that one token
    completes, the one that begins first. Text that may yet prove to begin a stop string is held back, and so are the
    bytes of an unfinished character.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], stops: Sequence[str] = (), min_tokens: int = 0) -> None:
        self._decode, self._stops, self._min_tokens = decode, stops, min_tokens
        self.stopped_by: str | None = None
        self._text = ""  # of all tokens but those of an unfinished character; cut once stopped
        self._sent = 0  # characters of it that were handed out
        self._tokens: list[int] = []
        # tokens[base:read] were decoded before: decoded once more, they tell how the text behind them joins on
        self._base = self._read = 0

    def add(self, token: int) -> bool:
        """Take one more token; whether it completes a stop string."""
        self._tokens.append(token)
        new = self._unread()
        if not new or new.endswith(UNFINISHED):
            return False
        self._base, self._read = self._read, len(self._tokens)
        old, self._text = len(self._text), self._text + new
        if len(self._tokens) <= self._min_tokens:
            return False
        found = [(place, stop) for stop in self._stops if (place := self._find(stop, old)) >= 0]
        if not found:
            return False
        place, self.stopped_by = min(found)
        self._text = self._text[:place]
        return True

    def take(self, ends: bool) -> str:
        """The text since the last time; all that is left where the completion ends here."""
        end = len(self._text)
        if ends and self.stopped_by is None:
            self._text += self._unread()
            end = len(self._text)
        elif not ends:
            end -= max((_overlap(self._text, stop) for stop in self._stops), default=0)
        start, self._sent = self._sent, max(self._sent, end)
        return self._text[start:end]

    def _unread(self) -> str:
        known = self._decode(self._tokens[self._base : self._read])
        return self._decode(self._tokens[self._base :])[len(known) :]

    def _find(self, stop: str, old: int) -> int:
        """Where the first `stop` begins that ends behind the first `old` characters; -1 where there is none."""
        return self._text.find(stop, max(0, old - len(stop) + 1))


def _overlap(text: str, stop: str) -> int:
    """The length of the longest proper beginning of `stop` that `text` ends with."""
    return next((size for size in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:size])), 0)
