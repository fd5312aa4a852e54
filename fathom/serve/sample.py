"""One completion as it comes: the pieces of the engine sorted into what clients read."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from fathom.infer.request import Piece
from fathom.infer.scores import Scores
from fathom.serve.thinking import Splitter, count_thinking
from fathom.serve.tools import CallDelta, CallReader
from fathom.serve.trace import TokenTrace, Tracer
from fathom.text.special import THINK
from fathom.text.tokenizer import Tokenizer, TokenStream

UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # what decoders make of the first bytes of a character
LEAST_LOGPROB = -9999.0  # stands for minus infinity, which JSON does not have
UNFINISHED_THINKING = "thinking_unfinished"  # stop_reason where max_tokens ended the thinking: no answer began


@dataclass
class Delta:
    """What came since the last time."""

    thinking: str = ""
    answer: str = ""
    calls: list[CallDelta] = field(default_factory=list[CallDelta])
    tokens: list[int] = field(
        default_factory=list[int]
    )  # without the stop token unless that is listed; so the next two
    logprobs: list[float] = field(default_factory=list[float])
    top: list[list[tuple[int, float]]] = field(default_factory=list[list[tuple[int, float]]])
    traces: list[TokenTrace] = field(default_factory=list[TokenTrace])  # of all tokens, where they are asked for

    def __iadd__(self, more: "Delta") -> "Delta":
        """Append what came later."""
        self.thinking += more.thinking
        self.answer += more.answer
        for mine, theirs in ((self.calls, more.calls), (self.tokens, more.tokens), (self.logprobs, more.logprobs)):
            mine += theirs  # pyright: ignore[reportOperatorIssue]  (lists of one type each)
        self.top += more.top
        self.traces += more.traces
        return self


class Sample:
    """State of one completion.

    `opened` says that the prompt opened the thinking; with `splits` it is told apart from the answer, else the text
    stays as it is. A reader of tool calls takes them out of the answer. With `lists_stop` the token that ends the
    completion is listed with its log-probability, though it is none of the text.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        opened: bool,
        splits: bool,
        inline: bool = False,
        calls: CallReader | None = None,
        offset: int = 0,
        lists_stop: bool = False,
        tracer: Tracer | None = None,
    ) -> None:
        self.splitter = Splitter(opened)
        self.calls, self.tracer = calls, tracer
        self.tokens: list[int] = []  # with the token that ended it
        self.piece: Piece | None = None  # the newest
        self.reader: TokenStream | None = None  # counts the characters of tokens, for their offsets
        self.offset = offset  # characters in front of the next token's, an echoed prompt's included
        self._opened, self._splits, self._lists_stop = opened, splits, lists_stop
        self._tokenizer = tokenizer
        self._read_last, self._unread = list[int](), list[int]()
        self._prefix = THINK if inline and opened else ""
        self._text_tokens = 0  # without the stop token
        self._thought: int | None = None  # tokens of the thinking, once it is over

    @property
    def finish(self) -> str | None:
        """Why it ended, in OpenAI's words; None while it goes on."""
        if self.piece is None or self.piece.finish is None:
            return None
        if self.calls and self.calls.count and self.piece.finish == "stop":
            return "tool_calls"
        return self.piece.finish

    @property
    def stop_reason(self) -> int | str | None:
        """The stop token or string; a word of its own where the answer never began."""
        if self._splits and self.finish == "length" and self.splitter.thinks:
            return UNFINISHED_THINKING
        return self.piece.stopped_by if self.piece else None

    def add(self, pieces: Sequence[Piece]) -> Delta:
        """Take further pieces."""
        delta = Delta()
        for piece in pieces:
            self.piece = piece
            self.tokens += piece.tokens
            shown = len(piece.tokens) - isinstance(piece.stopped_by, int)
            self._text_tokens += shown
            if self.tracer:
                delta.traces += self.tracer.read(piece)
            listed = len(piece.tokens) if self._lists_stop else shown
            delta.tokens += piece.tokens[:listed]
            delta.logprobs += piece.logprobs[:listed]
            delta.top += (piece.top_logprobs or [])[:listed]
            text = self._read(piece.tokens[:shown]) if piece.text is None else piece.text
            self._sort(text, piece.finish is not None, delta)
        return delta

    def thought(self) -> int:
        """Tokens of the thinking, without the tag that ends it."""
        if self.splitter.thinks:
            return self._text_tokens
        if self._thought is None or not self.splitter.decided:
            self._thought = count_thinking(self.tokens[: self._text_tokens], self._tokenizer.decode, self._opened)
        return self._thought

    def _read(self, tokens: Sequence[int]) -> str:
        """The text of further tokens, where the engine did not read them in search of stop strings.

        All at once, as a token at a time takes longer than a small model needs to write it. Bytes of an unfinished
        character are held back, with what came along with them.
        """
        self._unread += tokens
        text = self._tokenizer.decode(self._read_last + self._unread)[len(self._tokenizer.decode(self._read_last)) :]
        if not self.finish and (not text or text.endswith(UNFINISHED)):
            return ""
        self._read_last, self._unread = self._unread, []  # read once more, they tell how what follows joins on
        return text

    def _sort(self, text: str, ends: bool, delta: Delta) -> None:
        thinking, answer = self.splitter.feed(text, ends)
        if not self._splits:
            thinking, answer, self._prefix = "", self._prefix + text, ""
        if self.calls:
            answer, calls = self.calls.feed(answer, ends)
            delta.calls += calls
        delta.thinking += thinking
        delta.answer += answer


def token_logprobs(delta: Delta, tokenizer: Tokenizer) -> dict[str, Any]:
    """The `logprobs` of a chat choice: every token, the thinking's too, with its likeliest rivals."""
    rivals = delta.top or [[]] * len(delta.tokens)
    found = [
        _entry(token, logprob, tokenizer)
        | {"top_logprobs": [_entry(other, chance, tokenizer) for other, chance in others]}
        for token, logprob, others in zip(delta.tokens, delta.logprobs, rivals, strict=True)
    ]
    return {"content": found}


def _entry(token: int, logprob: float, tokenizer: Tokenizer) -> dict[str, Any]:
    text = _text(token, tokenizer)
    return {
        "token": _name(token, tokenizer),
        "logprob": max(logprob, LEAST_LOGPROB),
        "bytes": None if text is None else list(text.encode()),
        "token_id": token,
    }


def legacy_logprobs(sample: Sample, delta: Delta, tokenizer: Tokenizer, most: int) -> dict[str, Any]:
    """The `logprobs` of /v1/completions; `most` 0 leaves the rivals out."""
    sample.reader = sample.reader or tokenizer.stream()
    lengths = [len(sample.reader.step(token)) for token in delta.tokens]
    *offsets, sample.offset = accumulate(lengths, initial=sample.offset)
    return {
        "tokens": [_name(token, tokenizer) for token in delta.tokens],
        "token_logprobs": [max(each, LEAST_LOGPROB) for each in delta.logprobs],
        "top_logprobs": _rivals(delta.top, tokenizer) if most else None,
        "text_offset": offsets,
    }


def echoed_logprobs(prompt: Sequence[int], scores: Scores, tokenizer: Tokenizer, most: int) -> dict[str, Any]:
    """The same of a prompt: nothing stands in front of its first token, which has no probability."""
    stream = tokenizer.stream()
    *offsets, _ = accumulate((len(stream.step(token)) for token in prompt), initial=0)
    return {
        "tokens": [_name(token, tokenizer) for token in prompt],
        "token_logprobs": [None, *(max(each, LEAST_LOGPROB) for each in scores.logprobs)],
        "top_logprobs": [None, *_rivals(scores.top, tokenizer)] if most else None,
        "text_offset": offsets,
    }


def joined_logprobs(echoed: dict[str, Any], drawn: dict[str, Any]) -> dict[str, Any]:
    """Those of a prompt and of what was drawn behind it."""
    return {name: values and values + drawn[name] for name, values in echoed.items()}


def _rivals(top: Sequence[Sequence[tuple[int, float]]], tokenizer: Tokenizer) -> list[dict[str, float]]:
    return [{_name(other, tokenizer): max(chance, LEAST_LOGPROB) for other, chance in others} for others in top]


def _name(token: int, tokenizer: Tokenizer) -> str:
    """The text of a token, or its id where it is part of a character: names never coincide."""
    text = _text(token, tokenizer)
    return f"token_id:{token}" if text is None else text


def _text(token: int, tokenizer: Tokenizer) -> str | None:
    """The text of a token; None where it is part of a character and has none of its own."""
    text = tokenizer.decode([token])
    return None if "\N{REPLACEMENT CHARACTER}" in text else text
