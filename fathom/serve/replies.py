"""Bodies and chunks of answers, in the published shapes."""

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from fathom.serve.sample import Delta, Sample
from fathom.serve.tools import CallDelta

Names = Literal["both", "reasoning_content", "reasoning", "inline"]


@dataclass(frozen=True)
class Frame:
    """What all parts of one answer share."""

    model: str
    kind: Literal["chat", "text"]
    names: tuple[str, ...] = ()  # fields that carry the thinking; none drops it
    id: str = ""
    created: int = field(default_factory=lambda: int(time.time()))

    @classmethod
    def new(cls, model: str, kind: Literal["chat", "text"], names: tuple[str, ...] = ()) -> "Frame":
        """A frame with an id of its own."""
        return cls(model, kind, names, f"{'chatcmpl' if kind == 'chat' else 'cmpl'}-{secrets.token_hex(12)}")

    def body(self, choices: list[dict[str, Any]], usage: dict[str, Any], version: int) -> dict[str, Any]:
        """A whole answer."""
        return self._head("chat.completion", version) | {"choices": choices, "usage": usage}

    def chunk(self, choices: list[dict[str, Any]], version: int) -> dict[str, Any]:
        """A part of a streamed one."""
        return self._head("chat.completion.chunk", version) | {"choices": choices}

    def _head(self, name: str, version: int) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": name if self.kind == "chat" else "text_completion",
            "created": self.created,
            "model": self.model,
            "system_fingerprint": fingerprint(version),
        }


def fingerprint(version: int) -> str:
    """Names the weights that wrote a text: it changes with every reload."""
    return f"weights-{version}"


def names_of(reasoning: Names, include: bool | None) -> tuple[str, ...]:
    """The fields that carry thinking."""
    if include is False:
        return ()
    return ("reasoning_content", "reasoning") if reasoning == "both" else (reasoning,)


def chat_choice(
    index: int, sample: Sample, whole: Delta, names: Sequence[str], logprobs: dict[str, Any] | None
) -> dict[str, Any]:
    """A choice of a whole chat answer."""
    message: dict[str, Any] = {"role": "assistant", "content": whole.answer, "refusal": None}
    if whole.thinking:
        message |= dict.fromkeys(names, whole.thinking)
    if whole.calls:
        message["tool_calls"] = [_without_index(call_fields(call)) for call in whole.calls]
        message["content"] = whole.answer or None
    return {
        "index": index,
        "message": message,
        "logprobs": logprobs,
        "finish_reason": sample.finish,
        "stop_reason": sample.stop_reason,
    }


def chat_deltas(delta: Delta, names: Sequence[str]) -> list[dict[str, Any]]:
    """The `delta` objects that say what came: thinking and answer never in one."""
    found: list[dict[str, Any]] = []
    if delta.thinking and names:
        found.append(dict.fromkeys(names, delta.thinking))
    if delta.answer:
        found.append({"content": delta.answer})
    if delta.calls:
        found.append({"tool_calls": [call_fields(call) for call in delta.calls]})
    return found


def call_fields(call: CallDelta) -> dict[str, Any]:
    """A tool call of a stream."""
    function = {"name": call.name, "arguments": call.arguments}
    return {"index": call.index, "id": call.id, "type": "function", "function": function}


def _without_index(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name != "index"}


def text_choice(
    index: int, text: str, logprobs: dict[str, Any] | None, finish: str | None, reason: int | str | None
) -> dict[str, Any]:
    """A choice of /v1/completions, whole or a chunk."""
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish, "stop_reason": reason}


def usage_of(prompt_tokens: int, cached: int, samples: Sequence[Sample], thinks: bool) -> dict[str, Any]:
    """Tokens of the request; `cached` ones of its prompts were found, not read (the last two fields are DeepSeek's)."""
    drawn = sum(len(sample.tokens) for sample in samples)
    usage: dict[str, Any] = {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": drawn,
        "total_tokens": prompt_tokens + drawn,
        "prompt_tokens_details": {"cached_tokens": cached},
        "prompt_cache_hit_tokens": cached,
        "prompt_cache_miss_tokens": prompt_tokens - cached,
    }
    if thinks:
        thought = sum(sample.thought() for sample in samples)
        usage["completion_tokens_details"] = {"reasoning_tokens": thought}
    return usage
