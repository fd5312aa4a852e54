"""Bodies of requests and answers between our clients and an engine that has its own words for some of it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fathom.serve.errors import ApiError
from fathom.serve.options import ServeOptions
from fathom.serve.prompts import SWITCHES
from fathom.serve.replies import names_of
from fathom.text.special import THINK, THINK_END

NAMES = ("reasoning_content", "reasoning")
Fields = dict[str, Any]


def to_engine(options: ServeOptions, model: str, body: Fields) -> tuple[Fields, "Answer"]:
    """A client's request as the engine reads it, and what its answer is to look like.

    Raises ApiError naming a field that the engine has no counterpart of.
    """
    body = {"model": model} | body
    separate, include = (_pop_flag(body, name) for name in ("separate_reasoning", "include_reasoning"))
    if options.engine == "sglang" and body.get("thinking_token_budget") is not None:
        name = "thinking_token_budget"
        raise ApiError(400, f"{name} has no counterpart in sglang; leave it out", param=name)
    _switch_thinking(body)
    if isinstance(body.get("messages"), list):
        body["messages"] = [_message(each) for each in body["messages"]]
    inline = options.reasoning == "inline" or separate is False
    return body, Answer(() if inline else names_of(options.reasoning, include), inline and include is not False)


def _pop_flag(body: Fields, name: str) -> bool | None:
    value = body.pop(name, None)
    if value is not None and not isinstance(value, bool):
        raise ApiError(400, f"{name}: give true or false", param=name)
    return value


def _switch_thinking(body: Fields) -> None:
    """DeepSeek's `thinking` and the effort `none` as variables of the chat template."""
    thinking, effort = body.pop("thinking", None), body.get("reasoning_effort")
    if thinking is not None and thinking not in ({"type": "enabled"}, {"type": "disabled"}):
        raise ApiError(400, 'thinking: give {"type": "enabled"} or {"type": "disabled"}', param="thinking")
    if effort == "none":
        del body["reasoning_effort"]
    if thinking is None and effort != "none":
        return
    given = body.get("chat_template_kwargs") or {}
    if not isinstance(given, dict):
        raise ApiError(400, "chat_template_kwargs: give an object", param="chat_template_kwargs")
    thinks = effort != "none" and thinking != {"type": "disabled"}
    body["chat_template_kwargs"] = given | dict.fromkeys(SWITCHES, thinks)


def _message(message: Any) -> Any:
    """A turn whose thinking is under both names, as engines differ in which they read."""
    if not isinstance(message, dict):
        return message  # which the engine refuses
    turn: Fields = dict(message)  # pyright: ignore[reportUnknownArgumentType]
    thought = next((turn[name] for name in NAMES if turn.get(name)), None)
    if thought is not None:
        turn |= dict.fromkeys(NAMES, thought)
    if turn.get("role") == "developer":
        turn["role"] = "system"  # the same instructions, under OpenAI's newer name
    return turn


@dataclass
class Answer:
    """The thinking of an engine's answer under the names that our clients read; roles and tags once a choice."""

    names: tuple[str, ...]  # fields that carry thinking; none drops it
    inline: bool = False  # or it stands in the content, between its tags
    _begun: set[int] = field(default_factory=set[int])  # choices that had their role
    _open: set[int] = field(default_factory=set[int])  # choices inside inline thinking

    def whole(self, body: Fields) -> Fields:
        """An answer in one piece."""
        for choice in body.get("choices") or []:
            message = choice.get("message")
            if isinstance(message, dict):
                thought = _take_thinking(message)
                if thought and self.inline:
                    message["content"] = f"{THINK}{thought}{THINK_END}{message.get('content') or ''}"
                elif thought:
                    message |= dict.fromkeys(self.names, thought)
        return body

    def chunks(self, body: Fields) -> list[Fields]:
        """A chunk of a stream, as two where it holds thinking and answer."""
        before: list[Fields] = []
        for choice in body.get("choices") or []:
            delta = choice.get("delta")
            if not isinstance(delta, dict):
                continue
            index = choice.get("index", 0)
            if index in self._begun:
                delta.pop("role", None)
            elif "role" in delta:
                self._begun.add(index)
            thought = _take_thinking(delta)
            if self.inline:
                self._put_inline(index, delta, thought)
            elif thought and self.names:
                shown = dict.fromkeys(self.names, thought)
                if delta.get("content") or delta.get("tool_calls"):
                    role = {"role": delta.pop("role")} if "role" in delta else {}
                    before.append({"index": index, "delta": role | shown, "logprobs": None, "finish_reason": None})
                else:
                    delta |= shown
        first = {name: value for name, value in body.items() if name != "usage"} | {"choices": before}
        return [first, body] if before else [body]

    def _put_inline(self, index: int, delta: Fields, thought: str) -> None:
        """A tag comes where thinking begins, and one where something else follows; unended thinking has no second."""
        text = ""
        if thought:
            text = thought if index in self._open else THINK + thought
            self._open.add(index)
        if index in self._open and (delta.get("content") or delta.get("tool_calls")):
            text += THINK_END
            self._open.discard(index)
        if text:
            delta["content"] = text + (delta.get("content") or "")


def _take_thinking(fields: Fields) -> str:
    """The thinking under either name, taken out of the fields."""
    found = [fields.pop(name, None) for name in NAMES]
    return next((each for each in found if each), "")


def to_error(status: int, body: bytes, headers: Mapping[str, str]) -> ApiError:
    """An engine's refusal, in whatever shape it came, as ours."""
    try:
        said = json.loads(body)
    except ValueError:
        said = body.decode(errors="replace").strip()[:500]
    if isinstance(said, dict):
        said = said.get("error") or said.get("detail") or said  # pyright: ignore[reportUnknownMemberType]
    fields: Fields = said if isinstance(said, dict) else {}
    text = fields.get("message") or (said if isinstance(said, str) else json.dumps(said))
    code = fields.get("code")
    after = headers.get("retry-after", "")
    return ApiError(
        status,
        str(text) or f"the engine answered with status {status}",
        param=fields.get("param"),
        code=code if isinstance(code, str) else None,  # a number there repeats the status
        retry_after_s=int(after) if after.isdigit() else None,
    )
