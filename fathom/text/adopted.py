"""How questions are put to a published model that Fathom trains on, with the tokenizer it came with.

Thinking and answer keep the same tags as everywhere; where its vocabulary has no entry for one, the tag is plain text.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from fathom.text.special import ANSWER, ANSWER_END, THINK, THINK_END
from fathom.text.template import ChatTemplate

QUESTION = "{question}"
FORM = (
    f"Write your reasoning between {THINK} and {THINK_END}, then only the final answer between {ANSWER} and "
    f"{ANSWER_END}."
)
BASE_PROMPT = (
    "Below, a user asks a question and an assistant answers it. The assistant reasons before it answers. "
    f"{FORM}\n\nUser: {QUESTION}\nAssistant: I will work this out step by step.\n{THINK}"
)


@dataclass(frozen=True)
class Adopted:
    """What Fathom's template is to its own tokenizers; kept as prompt.json beside the tokenizer.json."""

    prompt: str  # put around {question}; it opens the thinking
    stop: tuple[str, ...]  # entries that end a reply; the first is written behind those we train on
    pad: str

    def __post_init__(self) -> None:
        if self.prompt.count(QUESTION) != 1:
            raise ValueError(
                f"text.prompt={self.prompt!r} does not say where the question goes; write {QUESTION} into it once"
            )

    @property
    def around(self) -> tuple[str, str]:
        """What stands before a question and behind it."""
        before, _, behind = self.prompt.partition(QUESTION)
        return before, behind

    def save(self, tokenizer: Path) -> None:
        """Keep it beside a tokenizer.json."""
        tokenizer.with_name("prompt.json").write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    @staticmethod
    def beside(tokenizer: Path) -> "Adopted | None":
        """What lies beside a tokenizer.json; None for Fathom's own."""
        file = tokenizer.with_name("prompt.json")
        if not file.exists():
            return None
        fields = json.loads(file.read_text(encoding="utf-8"))
        return Adopted(fields["prompt"], tuple(fields["stop"]), fields["pad"])


def question_form(chat: ChatTemplate | None) -> str:
    """The prompt in a model's own chat template, or the one for models that only continue text."""
    if chat is None:
        return BASE_PROMPT
    asked = chat.render([{"role": "user", "content": f"{QUESTION}\n{FORM}"}])
    return asked if asked.rstrip().endswith(THINK) else asked + THINK


def adopted(chat: ChatTemplate | None, stop: Sequence[str], prompt: str = "") -> Adopted:
    """The form of a model whose replies end with one of `stop`; `prompt` in place of its own words.

    Rows are filled up with the end of a reply: what stands there is never looked at. Raises ValueError where nothing
    ends a reply, so that none would be finished.
    """
    if not stop:
        raise ValueError("the checkpoint names no eos_token_id, so no reply would end; write it into its config.json")
    return Adopted(prompt or question_form(chat), tuple(stop), stop[0])
