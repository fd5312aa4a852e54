"""What an answer may be where tools must be called, or no more than one may: a structural tag as XGrammar reads it."""

from collections.abc import Sequence
from typing import Any, Literal

from fathom.infer.speaker import Speaker
from fathom.serve.errors import ApiError
from fathom.serve.schema import ChatRequest, Tool, ToolChoice
from fathom.serve.tools import CALL_BEGIN, CALL_END, CALLS_BEGIN, CALLS_END, SEPARATOR

FENCE = "```json"  # of V3 and R1: templates of V3.1 know none

Format = dict[str, Any]
Must = Literal["may", "must"]


def structural_tag(speaker: Speaker, tools: Sequence[Tool], must: Must, several: bool) -> Format:
    """Calls of `tools` in the model's own form: at least one where it `must`, at most one unless `several`.

    Where it may, text stands in front of the calls or in place of them.
    """
    fenced = speaker.chat is not None and FENCE in speaker.chat.source
    call = _sequence(
        _literal(speaker, CALL_BEGIN),
        {"type": "or", "elements": [_named(speaker, tool, fenced) for tool in tools]},
        _literal(speaker, CALL_END),
    )
    further = {"type": "star", "content": _sequence(*([_text("\n")] if fenced else []), call)}
    calls = _sequence(call, further) if several else call
    begin, end = _literal(speaker, CALLS_BEGIN), _literal(speaker, CALLS_END)
    if must == "must":
        return {"type": "structural_tag", "format": _sequence(begin, calls, end)}
    known = begin["type"] == "token"
    tag = {"type": "tag", "begin": _bare(begin), "content": calls, "end": _bare(end)}
    form: Format = {"tags": [tag], "stop_after_first": True}
    form |= (
        {"type": "token_triggered_tags", "trigger_tokens": [begin["token"]]}
        if known
        else {"type": "triggered_tags", "triggers": [CALLS_BEGIN]}
    )
    return {"type": "structural_tag", "format": form}


def held_tools(speaker: Speaker, body: ChatRequest, offered: Sequence[Tool]) -> Format | None:
    """The structural tag of a request; None where the model may call whatever it likes.

    Raises ApiError for a choice that cannot be kept.
    """
    choice, several = body.tool_choice, body.parallel_tool_calls is not False
    if choice in (None, "auto", "none") and (several or not offered):
        return None
    field = "parallel_tool_calls" if choice in (None, "auto") else "tool_choice"
    if not offered:
        raise ApiError(400, "tool_choice wants a call, but there are no tools; add some", param="tool_choice")
    if speaker.chat is None or CALLS_BEGIN not in speaker.chat.source:
        raise ApiError(400, f"{field} is kept for calls in DeepSeek's form alone; leave it out", param=field)
    if body.min_tokens or body.ignore_eos:  # a grammar knows one place where the answer ends, and ends it there
        raise ApiError(400, f"min_tokens and ignore_eos do not go with {field}; leave them out", param=field)
    if not isinstance(choice, ToolChoice):
        return structural_tag(speaker, offered, "must" if choice == "required" else "may", several)
    named = [tool for tool in offered if tool.function.name == choice.function.name]
    if not named:
        known = ", ".join(tool.function.name for tool in offered)
        raise ApiError(400, f"tool_choice names {choice.function.name!r}; the tools are {known}", param="tool_choice")
    return structural_tag(speaker, named[:1], "must", several=False)


def _named(speaker: Speaker, tool: Tool, fenced: bool) -> Format:
    name, separator = tool.function.name, _literal(speaker, SEPARATOR)
    schema = tool.function.parameters
    arguments = {
        "type": "json_schema",
        "json_schema": schema or {"type": "object"},
        "max_whitespace_cnt": 1,
    }
    if fenced:
        return _sequence(_text(tool.type), separator, _text(f"{name}\n{FENCE}\n"), arguments, _text("\n```"))
    return _sequence(_text(name), separator, arguments)


def _literal(speaker: Speaker, text: str) -> Format:
    """A tag: the token of its own that it has in DeepSeek's vocabularies, else its letters."""
    try:
        return {"type": "token", "token": speaker.tokenizer.id_of(text)}
    except ValueError:
        return _text(text)


def _bare(tag: Format) -> Format | str:
    """As the ends of a tag are given: text without its kind."""
    return tag["value"] if tag["type"] == "const_string" else tag


def _text(value: str) -> Format:
    return {"type": "const_string", "value": value}


def _sequence(*elements: Format) -> Format:
    return {"type": "sequence", "elements": list(elements)}
