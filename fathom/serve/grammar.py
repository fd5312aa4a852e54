"""Answers held to JSON: before every token, those that keep the answer inside its grammar (XGrammar, arXiv 2411.15100).

Thinking stays free: the grammar begins behind `</think>`.
"""

import json
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from fathom.infer.speaker import Speaker
from fathom.serve.errors import ApiError
from fathom.serve.prompts import close_ids, knows_thinking
from fathom.serve.schema import ResponseFormat
from fathom.text.special import THINK

CACHE_BYTES = 64 << 20  # of compiled grammars
NO_TEXT = ("<0xFF>", "\u00ff")  # the byte 255, which UTF-8 does not have, as vocabularies of both kinds spell it


class Grammars:
    """Compiles the forms that clients ask for, each once; without the package `xgrammar` they are refused."""

    def __init__(self, speaker: Speaker) -> None:
        self._speaker = speaker

    def compile(self, form: ResponseFormat) -> Any:
        """The compiled grammar of a form; takes up to seconds. Raises ApiError for a schema that is none."""
        if form.type == "json_schema" and (form.json_schema is None or form.json_schema.schema_ is None):
            raise ApiError(400, "response_format.json_schema.schema is missing; give the schema", "response_format")
        with _refusals(f"response_format.type={form.type!r}", "response_format.json_schema"):
            if form.json_schema is None or form.type == "json_object":
                return self._compiler.compile_builtin_json_grammar()
            schema = json.dumps(form.json_schema.schema_)
            return self._compiler.compile_json_schema(schema, any_whitespace=False, strict_mode=True)

    def compile_tag(self, tag: Mapping[str, Any], field: str) -> Any:
        """The compiled grammar of a structural tag, which `field` of a request asks for."""
        with _refusals(field, "tools.function.parameters"):
            return self._compiler.compile_structural_tag(json.dumps(tag))

    def hold(self, compiled: Any, opened: bool, thinks: bool | None) -> "Held":
        """What keeps one request's completions inside a grammar; `opened` and `thinks` are of its prompt."""
        from xgrammar import GrammarMatcher

        known = knows_thinking(self._speaker) and thinks is not False
        return Held(
            GrammarMatcher(compiled),
            self._speaker.model.config.vocab_size,
            close=tuple(close_ids(self._speaker)) if known else (),
            opening=self._speaker.tokenizer.id_of(THINK) if known and not opened else None,
            free=opened,
        )

    @cached_property
    def _compiler(self) -> Any:
        from xgrammar import GrammarCompiler, TokenizerInfo, VocabType

        size = self._speaker.model.config.vocab_size
        pieces, is_bytes = vocabulary(json.loads(self._speaker.tokenizer.json), size)
        kind = VocabType.BYTE_LEVEL if is_bytes else VocabType.BYTE_FALLBACK
        stops = sorted(self._speaker.stop_ids)
        info = TokenizerInfo(pieces, kind, vocab_size=size, stop_token_ids=stops)
        return GrammarCompiler(info, cache_limit_bytes=CACHE_BYTES)


class Held:
    """The tokens that may come next in completions of one request, as the engine asks for them.

    Several samples share one matcher: it goes back to what two of them have in common.
    """

    def __init__(self, matcher: Any, size: int, close: tuple[int, ...], opening: int | None, free: bool) -> None:
        self._matcher, self._size, self._close, self._opening, self._free = matcher, size, close, opening, free
        self._taken: list[int] = []  # tokens that the matcher has accepted
        self._bits = torch.zeros(1, (size + 31) // 32, dtype=torch.int32)

    def __call__(self, tokens: Sequence[int]) -> Bool[Tensor, " V"] | None:
        """The tokens allowed behind these; None while the thinking goes on."""
        answer = self._answer(tokens)
        if answer is None:
            return None
        self._follow(answer)
        self._matcher.fill_next_token_bitmask(self._bits)
        allowed = _unpack(self._bits[0], self._size)
        if not tokens and self._opening is not None:
            allowed[self._opening] = True  # the model may begin to think
        return allowed

    def _answer(self, tokens: Sequence[int]) -> Sequence[int] | None:
        """What stands behind the thinking; None where it goes on."""
        if not self._free and not (tokens and tokens[0] == self._opening):
            return tokens
        width = len(self._close)
        ends = (at + width for at in range(len(tokens) - width + 1) if tuple(tokens[at : at + width]) == self._close)
        end = next(ends, None)
        return None if end is None else tokens[end:]

    def _follow(self, answer: Sequence[int]) -> None:
        common = next((i for i, (a, b) in enumerate(zip(self._taken, answer, strict=False)) if a != b), None)
        common = min(len(self._taken), len(answer)) if common is None else common
        if back := len(self._taken) - common:
            self._matcher.rollback(back)
        del self._taken[common:]
        for token in answer[common:]:
            if not self._matcher.accept_token(token):
                raise ValueError(f"token {token} leaves the grammar of the answer")
            self._taken.append(token)


@contextmanager
def _refusals(wanted: str, given: str) -> Generator[None]:
    """ApiErrors in place of what the compiler raises: for what is `wanted`, or for the schema that was `given`."""
    try:
        yield
    except ImportError as error:
        raise ApiError(
            400,
            f"{wanted} needs the package {error.name} on the server: pip install 'fathomlm[grammar]'",
            param=wanted.partition(".")[0],
        ) from error
    except (RuntimeError, ValueError, RecursionError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1][:300]
        raise ApiError(400, f"{given} is not understood: {reason}", given.partition(".")[0]) from error


def vocabulary(tokenizer: dict[str, Any], size: int) -> tuple[list[str], bool]:
    """Text of every id as a tokenizer.json has it, and whether that stands for bytes.

    Special tokens stand for a byte that no text has: where a grammar wants text they are ruled out, and yet it can name
    them by their ids.
    """
    is_bytes = "ByteLevel" in json.dumps(tokenizer.get("decoder"))
    pieces = [""] * size
    for piece, number in tokenizer["model"]["vocab"].items():
        if number < size:
            pieces[number] = piece
    for added in tokenizer.get("added_tokens", []):
        if added["id"] < size:
            pieces[added["id"]] = NO_TEXT[is_bytes] if added["special"] else added["content"]
    return pieces, is_bytes


def _unpack(bits: Tensor, size: int) -> Bool[Tensor, " V"]:
    """Bit i of word w speaks of token 32 * w + i."""
    places = torch.arange(32, dtype=torch.int32)
    return (bits.unsqueeze(1) >> places & 1).bool().flatten()[:size]
