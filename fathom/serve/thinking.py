"""Thinking told apart from the answer while the text comes, wherever it is cut."""

from collections.abc import Callable, Sequence

from fathom.text.special import THINK, THINK_END


class Splitter:
    """Sorts text into thinking and answer: everything up to the first `</think>`, and everything behind it.

    Thinking begins with the text where the prompt opened it, else with a `<think>` that nothing but white space
    precedes; without either all is answer. Text that may yet prove to be a tag is held back.
    """

    def __init__(self, opened: bool) -> None:
        self.thinks = opened  # whether the text stands inside the thinking
        self.began = not opened  # whether an answer can have begun
        self._undecided = not opened
        self._held = ""

    @property
    def decided(self) -> bool:
        """Whether the text has shown if it begins with thinking."""
        return not self._undecided

    def feed(self, text: str, ends: bool = False) -> tuple[str, str]:
        """What `text` adds to the thinking and to the answer; with `ends` nothing is held back any longer."""
        held, self._held = self._held + text, ""
        if self._undecided:
            start = held.lstrip()
            if not ends and THINK.startswith(start[: len(THINK)]) and len(start) < len(THINK):
                self._held = held
                return "", ""
            self._undecided = False
            if start.startswith(THINK):
                self.thinks, self.began, held = True, False, start[len(THINK) :]
        if not self.thinks:
            return "", held
        thinking, closed, answer = held.partition(THINK_END)
        if closed:
            self.thinks, self.began = False, True
            return thinking, answer
        keep = 0 if ends else _overlap(held)
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep], ""


def count_thinking(tokens: Sequence[int], decode: Callable[[Sequence[int]], str], opened: bool) -> int:
    """The tokens in front of the first `</think>`: all of them where it never comes, none where nothing thought."""
    text = decode(tokens)
    if not opened and not text.lstrip().startswith(THINK):
        return 0
    place = text.find(THINK_END)
    if place < 0:
        return len(tokens)
    low, high = 0, len(tokens)
    while low < high:  # the most tokens whose text ends before the tag
        middle = (low + high + 1) // 2
        low, high = (middle, high) if len(decode(tokens[:middle])) <= place else (low, middle - 1)
    return low


def _overlap(text: str) -> int:
    """The length of the longest proper beginning of `</think>` that `text` ends with."""
    longest = min(len(THINK_END) - 1, len(text))
    return next((size for size in range(longest, 0, -1) if text.endswith(THINK_END[:size])), 0)
