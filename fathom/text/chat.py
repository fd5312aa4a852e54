"""The chat template, in one place: how a question is put and how a reply is read.

<|bos|><|user|>QUESTION<|assistant|><think>        the prompt; it opens the thinking (R1 Table 1)
THINKING</think><answer>ANSWER</answer><|eos|>     the reply
"""

import re
from collections.abc import Mapping, Sequence
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
    "read_reply",
    "render_begun",
    "render_dialogue",
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
    well_formed: bool  # thinking, answer and nothing but space else, in the order of the template


def render_prompt(tokenizer: Tokenizer, question: str) -> list[int]:
    """Ids that put `question` and open the thinking; special tokens spelled out in the question stay text."""
    if tokenizer.adopted:
        before, behind = tokenizer.adopted.around
        asked = tokenizer.encode(question)
        return [*tokenizer.encode_template(before), *asked, *tokenizer.encode_template(behind, whole=True)]
    opening = [tokenizer.bos_id, tokenizer.id_of(USER)]
    return [*opening, *tokenizer.encode(question), tokenizer.id_of(ASSISTANT), tokenizer.id_of(THINK)]


def render_reply(tokenizer: Tokenizer, reply: str) -> list[int]:
    """Ids of `THINKING</think><answer>ANSWER</answer>` and the end of the reply."""
    return [*tokenizer.encode_template(reply, whole=True), tokenizer.eos_id]


def read_reply(tokenizer: Tokenizer, tokens: Sequence[int]) -> str:
    """The text of a reply as far as the first id that ends it."""
    ends = [place for place, token in enumerate(tokens) if token in tokenizer.stop_ids]
    return tokenizer.decode(tokens[: ends[0]] if ends else tokens)


def render_dialogue(tokenizer: Tokenizer, messages: Sequence[Mapping[str, str]]) -> list[int]:
    """Ids of a dialogue that ends with the user's turn, and of the opened thinking, in Fathom's template.

    A message has `role`, user or assistant in turns, and `content`. What an assistant said is taken apart as a reply;
    where it is none, and in all the user says, special tokens spelled out stay text. Raises ValueError for other roles
    and orders.
    """
    roles = [message["role"] for message in messages]
    if tokenizer.adopted and roles == ["user"]:
        return render_prompt(tokenizer, messages[0]["content"])
    if tokenizer.adopted:
        raise ValueError(
            f"the roles of messages are {', '.join(roles) or 'none'}, but this model was trained on single questions; "
            "give one message of the user"
        )
    if roles != ["user", "assistant"] * (len(roles) // 2) + ["user"]:
        raise ValueError(
            f"the roles of messages are {', '.join(roles) or 'none'}, but this model knows user and assistant "
            "in turns, the user first and last"
        )
    ids = [tokenizer.bos_id]
    for message in messages:
        content = message["content"]
        if message["role"] == "user":
            ids += [tokenizer.id_of(USER), *tokenizer.encode(content)]
        else:
            ids += [tokenizer.id_of(ASSISTANT), tokenizer.id_of(THINK)]
            ids += [*_said(tokenizer, content.removeprefix(THINK)), tokenizer.eos_id]
    return [*ids, tokenizer.id_of(ASSISTANT), tokenizer.id_of(THINK)]


def _said(tokenizer: Tokenizer, content: str) -> list[int]:
    """An earlier reply; only the three tags of a well-formed one count as such."""
    reply = parse_reply(content)
    if not reply.well_formed or reply.answer is None:
        return tokenizer.encode(content)
    close, opening, end = (tokenizer.id_of(tag) for tag in (THINK_END, ANSWER, ANSWER_END))
    return [*tokenizer.encode(reply.thinking), close, opening, *tokenizer.encode(reply.answer), end]


def render_begun(tokenizer: Tokenizer, answer: str) -> list[int]:
    """Ids of the beginning of an answer that is to go on; its two tags count, other special tokens stay text."""
    ids: list[int] = []
    for part in re.split(f"({ANSWER}|{ANSWER_END})", answer):
        ids += [tokenizer.id_of(part)] if part in (ANSWER, ANSWER_END) else tokenizer.encode(part)
    return ids


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
        well_formed=bool(closed) and regular and answer is not None and rest.strip() == f"{ANSWER}{answer}{ANSWER_END}",
    )


def _is_single(rest: str) -> bool:
    return rest.count(ANSWER) == 1 and rest.count(ANSWER_END) == 1
