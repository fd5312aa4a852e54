"""The final answer of a reply: between the answer tags, else in a box, behind the thinking."""

import re

from fathom.tasks.answer import last_boxed
from fathom.text.special import ANSWER, ANSWER_END, EOS, THINK, THINK_END

_OPENED = re.compile(re.escape(ANSWER))


def final_answer(reply: str, thinking: bool = False) -> str | None:
    r"""The answer that a reply ends with: the last `<answer>`, else the last `\boxed{}`, behind the thinking.

    `thinking` says that the prompt has opened the thinking already. A reply whose thinking never closes has no answer.
    """
    reply = reply.partition(EOS)[0]
    _, closed, rest = reply.rpartition(THINK_END)
    if not closed and (thinking or THINK in reply):
        return None
    text = rest if closed else reply
    for start in reversed([found.end() for found in _OPENED.finditer(text)]):
        inside, ended, _ = text[start:].partition(ANSWER_END)
        if ended and inside.strip():
            return last_boxed(inside) or inside.strip()
    return last_boxed(text)
