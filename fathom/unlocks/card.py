"""What an experiment hands back: the claim, its printed figure, and the rows measured here."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Card:
    """One claim and what became of it on this machine."""

    name: str
    claim: str
    source: str  # paper and section
    published: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    reading: str  # what the rows say, in one or two sentences
    figures: dict[str, Any] = field(default_factory=dict[str, Any])  # the same for machines

    def text(self) -> str:
        """The card as a page of a terminal."""
        table = [self.headings, *self.rows]
        widths = [max(len(row[column]) for row in table) for column in range(len(self.headings))]
        lines = ["  " + _line(row, widths) for row in table]
        lines.insert(1, "  " + "-" * (sum(widths) + 2 * len(widths) - 2))
        return "\n".join(
            [
                self.name,
                "",
                f"claim      {self.claim}",
                f"source     {self.source}",
                f"published  {self.published}",
                "",
                *lines,
                "",
                self.reading,
            ]
        )


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    """The first column to the left, numbers to the right."""
    first, *others = zip(row, widths, strict=True)
    return "  ".join([first[0].ljust(first[1]), *(text.rjust(width) for text, width in others)])
