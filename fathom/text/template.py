"""The chat template that comes with a published model: a Jinja text that turns messages into a prompt."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment


@dataclass(frozen=True)
class ChatTemplate:
    """A template's source and the special tokens that it may name."""

    source: str
    tokens: Mapping[str, str]  # bos_token, eos_token and their like

    @classmethod
    def beside(cls, tokenizer: Path) -> "ChatTemplate | None":
        """The template that lies beside a tokenizer.json; None where there is none.

        It is chat_template.jinja, else the `chat_template` of tokenizer_config.json; of several, the one named default.
        """
        config, file = tokenizer.with_name("tokenizer_config.json"), tokenizer.with_name("chat_template.jinja")
        fields: dict[str, Any] = json.loads(config.read_text(encoding="utf-8")) if config.exists() else {}
        source = file.read_text(encoding="utf-8") if file.exists() else fields.get("chat_template")
        if isinstance(source, list):
            source = {named["name"]: named["template"] for named in source}.get("default")
        named = {name: value for name, value in fields.items() if name.endswith("_token")}
        tokens = {
            name: value["content"] if isinstance(value, dict) else value
            for name, value in named.items()
            if isinstance(value, str | dict)
        }
        return cls(source, tokens) if isinstance(source, str) else None

    def render(
        self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True, **variables: object
    ) -> str:
        """The prompt for the model's next turn, or the dialogue alone; `variables` are what the template may also read.

        Raises ValueError where the template refuses the messages.
        Templates are other people's programs: they run in a sandbox that reads nothing but what it is given.
        """
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        environment.filters["tojson"] = _to_json
        try:
            template = environment.from_string(self.source, {"raise_exception": _refuse, "strftime_now": _now})
            given = {**variables, **self.tokens, "add_generation_prompt": add_generation_prompt}
            return template.render(given, messages=messages)
        except (TemplateError, TypeError, RecursionError) as error:
            raise ValueError(f"the model's chat template cannot put these messages ({error})") from error


def _refuse(reason: str) -> NoReturn:
    raise TemplateError(reason)


def _now(form: str) -> str:
    return datetime.now().strftime(form)


def _to_json(value: object, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)
