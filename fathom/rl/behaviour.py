"""The behaviours that R1 is known for, counted: tries and new beginnings exactly, second thoughts by their words."""

import re
from collections.abc import Sequence

from fathom.tasks.countdown import count_tries

# words with which a thinking takes itself up (R1 2.2.4's "wait"); whole words, in any case
REFLECTIONS = re.compile(
    r"\b(?:wait|hmm+|hold on|let me (?:re)?check|let's (?:re)?check|let me verify|double[- ]check|alternatively|"
    r"let me try|try again|another (?:way|approach)|on second thought|actually|i made a mistake|"
    r"that's (?:not right|wrong))\b",
    re.IGNORECASE,
)


def behaviour(thoughts: Sequence[str], steps: bool) -> dict[str, float]:
    """Counts over all thoughts: `reflections`, and where thinking is written in `steps`, `tries` and `backtracks`.

    A backtrack is a `;` behind which another try begins.
    """
    if not steps:
        return {"reflections": sum(len(REFLECTIONS.findall(thought)) for thought in thoughts)}
    tries = [count_tries(thought) for thought in thoughts]
    return {"tries": sum(tries), "backtracks": sum(max(0, count - 1) for count in tries)}
