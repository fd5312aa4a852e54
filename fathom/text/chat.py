"""The chat template, in one place: how a question is put and how a reply is read.

<|bos|><|user|>QUESTION<|assistant|><think>        the prompt; it opens the thinking (R1 Table 1)
THINKING</think><answer>ANSWER</answer><|eos|>     the reply
"""

import re
from dataclasses import dataclass

from fathom.text.special import (
    ANSWER,
    ANSWER_END,
    ASSISTANT,
    BOS,
    EOS,
    FIM_BEGIN,
    FIM_END,
    FIM_HOLE,
    PAD,
    SPECIAL_TOKENS,
    THINK,
    THINK_END,
    USER,
)
from fathom.text.tokenizer import Tokenizer

__all__ = [
    "ANSWER",
    "ANSWER_END",
    "ASSISTANT",
    "BOS",
    "EOS",
    "FIM_BEGIN",
    "FIM_END",
    "FIM_HOLE",
    "PAD",
    "SPECIAL_TOKENS",
    "THINK",
    "THINK_END",
    "USER",
    "Reply",
    "parse_reply",
    "render_prompt",
    "render_reply",
]

_ANY_SPECIAL = re.compile("|".join(map(re.escape, SPECIAL_TOKENS)))
_ANSWER = re.compile(f"{ANSWER}(.*?){ANSWER_END}", re.DOTALL)


@dataclass(frozen=True)
class Reply:
    """A reply taken apart."""

    thinking: str
    answer: str | None  # None unless exactly one answer, not blank, follows the thinking
    well_formed: bool  # thinking, answer and nothing else, in the order of the template


def render_prompt(tokenizer: Tokenizer, question: str) -> list[int]:
    """Ids that put `question` and open the thinking; special tokens spelled out in the question stay text."""
    opening = [tokenizer.bos_id, tokenizer.id_of(USER)]
    return [*opening, *tokenizer.encode(question), tokenizer.id_of(ASSISTANT), tokenizer.id_of(THINK)]


def render_reply(tokenizer: Tokenizer, reply: str) -> list[int]:
    """Ids of `THINKING</think><answer>ANSWER</answer>` and the end of the reply."""
    return [*tokenizer.encode_template(reply), tokenizer.eos_id]


def parse_reply(text: str) -> Reply:
    """Take apart what follows a prompt. The first `<|eos|>` ends it; text beyond that is ignored."""
    text = text.partition(EOS)[0]
    thinking, closed, rest = text.partition(THINK_END)
    answers = _ANSWER.findall(rest)
    answer = answers[0] if _is_single(rest) and answers and answers[0].strip() else None
    # one close, one opening and one end of the answer are all the special tokens a reply may hold
    regular = _ANY_SPECIAL.findall(text) == [THINK_END, ANSWER, ANSWER_END]
    return Reply(
        thinking=thinking,
        answer=answer,
        well_formed=bool(closed) and regular and answer is not None and rest == f"{ANSWER}{answer}{ANSWER_END}",
    )


def _is_single(rest: str) -> bool:
    return rest.count(ANSWER) == 1 and rest.count(ANSWER_END) == 1
