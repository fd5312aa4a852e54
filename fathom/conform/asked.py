"""The server that is asked: the official client and plain HTTP, and what a point may find."""

import inspect
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import httpx
import openai

Fields = dict[str, Any]
NAMES = ("reasoning_content", "reasoning")  # that thinking goes by
REFUSALS = (400, 404, 405, 422, 501)  # of a feature that is not there


class NotHeld(Exception):
    """The server does otherwise; the message says what was seen."""


class NotOffered(Exception):
    """The server says that it has none of this, or nothing could be asked."""


@dataclass(frozen=True)
class Said:
    """One choice, whole or put together from a stream."""

    thinking: str
    content: str
    finish: str | None

    @property
    def text(self) -> str:
        """Thinking and answer, as they were written."""
        return self.thinking + self.content


class Asked:
    """A server at a base URL, and the question that the points put to it."""

    def __init__(
        self, url: str, key: str, model: str, prompt: str, max_tokens: int, burst: int, timeout_s: float
    ) -> None:
        root = url.rstrip("/")
        self.root = root.removesuffix("/v1")
        self.base = root if root != self.root or httpx.URL(root).path.strip("/") else f"{root}/v1"
        self.key, self.model, self.prompt, self.max_tokens, self.burst = key, model, prompt, max_tokens, burst
        self.timeout_s = timeout_s
        self.openai = openai.OpenAI(base_url=self.base, api_key=key or "none", max_retries=0, timeout=timeout_s)
        headers = {"authorization": f"Bearer {key}"} if key else {}
        self.http = httpx.Client(headers=headers, timeout=timeout_s)

    def close(self) -> None:
        """Let its connections go."""
        self.openai.close()
        self.http.close()

    def body(self, **fields: Any) -> Fields:
        """The question as a request: greedy unless `fields` say otherwise."""
        messages = [{"role": "user", "content": self.prompt}]
        return {
            "model": self.model,
            "messages": messages,
            "temperature": 0,
            "max_tokens": self.max_tokens,
        } | fields

    def post(self, path: str, content: object) -> httpx.Response:
        """What plain HTTP gets; a `str` is sent as it is."""
        text = content if isinstance(content, str) else json.dumps(content)
        return self.http.post(self.base + path, content=text, headers={"content-type": "application/json"})

    def chat(self, **fields: Any) -> Fields:
        """The official client's answer. Raises openai.APIError."""
        return self.openai.chat.completions.create(**_arguments(self.body(**fields))).model_dump()

    def offered(self, **fields: Any) -> Fields:
        """An answer to a request with a feature; NotOffered where the server refuses it."""
        try:
            return self.chat(**fields)
        except openai.APIStatusError as error:
            raise _refused(error.status_code, error.message) or error from error

    def stream(self, **fields: Any) -> tuple[str, list[Fields]]:
        """The raw text of a stream, strictly decoded, and its JSON events; NotOffered where the server refuses it."""
        response = self.post("/chat/completions", self.body(stream=True, **fields))
        if response.status_code != 200:
            refused = _refused(response.status_code, response.text)
            raise refused or NotHeld(f"status {response.status_code}: {response.text[:120]}")
        raw = response.content.decode("utf-8", errors="strict")
        data = [line.removeprefix("data:").strip() for line in raw.splitlines() if line.startswith("data:")]
        return raw, [json.loads(each) for each in data if each != "[DONE]"]

    @cached_property
    def whole(self) -> Fields:
        """The plain answer to the question, asked once for all points."""
        return self.chat()

    @cached_property
    def streamed(self) -> tuple[str, list[Fields]]:
        """The same, streamed with usage."""
        return self.stream(stream_options={"include_usage": True})

    @cached_property
    def entry(self) -> Fields:
        """What the list of models says of this one."""
        listed = self.http.get(f"{self.base}/models").json()["data"]
        return next((entry for entry in listed if entry.get("id") == self.model), {})

    @property
    def thinks(self) -> bool:
        """Whether the plain answer comes with its thinking in a field of its own."""
        return bool(said(self.whole).thinking)


def _arguments(body: Fields) -> Fields:
    """Fields that the official client has no name for go where it puts the rest."""
    known = inspect.signature(openai.OpenAI(api_key="none").chat.completions.create).parameters
    extra = {name: value for name, value in body.items() if name not in known}
    return {name: value for name, value in body.items() if name in known} | {"extra_body": extra}


def _refused(status: int, message: str) -> NotOffered | None:
    return NotOffered(f"refused with {status}: {' '.join(message.split())[:100]}") if status in REFUSALS else None


def thinking_of(fields: Mapping[str, Any]) -> str:
    """The thinking of a message or delta, under either name."""
    return next((fields[name] for name in NAMES if fields.get(name)), "")


def said(answer: Fields, index: int = 0) -> Said:
    """A choice of a whole answer."""
    choice = next(choice for choice in answer["choices"] if choice["index"] == index)
    message = choice["message"]
    return Said(thinking_of(message), message.get("content") or "", choice["finish_reason"])


def choices_of(events: Iterable[Fields], index: int = 0) -> list[Fields]:
    """The parts of one choice of a stream, in order."""
    return [choice for event in events for choice in event.get("choices") or [] if choice.get("index") == index]


def joined(events: Iterable[Fields], index: int = 0) -> Said:
    """A choice of a stream, put together."""
    parts = choices_of(events, index)
    deltas = [part.get("delta") or {} for part in parts]
    finish = next((part["finish_reason"] for part in parts if part.get("finish_reason")), None)
    return Said("".join(map(thinking_of, deltas)), "".join(delta.get("content") or "" for delta in deltas), finish)


def require(true: object, seen: str) -> None:
    """Raise NotHeld, saying what was seen, unless it is so."""
    if not true:
        raise NotHeld(seen)


def error_object(response: httpx.Response) -> Fields:
    """The `error` of a refusal; NotHeld where it has another shape than clients read."""
    try:
        body = response.json()
    except ValueError:
        raise NotHeld(f"status {response.status_code} with a body that is no JSON: {response.text[:80]!r}") from None
    error = body.get("error") if isinstance(body, dict) else None  # pyright: ignore[reportUnknownMemberType]
    if not isinstance(error, dict) or not isinstance(error.get("message"), str):  # pyright: ignore
        raise NotHeld(f"status {response.status_code}, and error is no object with a message: {response.text[:80]}")
    return error  # pyright: ignore[reportUnknownVariableType]
