"""Messages into token ids, and how much is thought behind them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fathom.infer.request import Allow, Forced
from fathom.infer.speaker import Speaker
from fathom.serve.errors import ApiError
from fathom.serve.schema import ChatRequest, Message, Tool
from fathom.text.chat import render_begun, render_dialogue
from fathom.text.shield import Shield, hide_message
from fathom.text.special import THINK, THINK_END

# Of max_tokens, what may be thought before the thinking is closed; the rest is for the answer.
SHARES = {"minimal": 1 / 16, "low": 1 / 8, "medium": 1 / 4, "high": 1 / 2, "xhigh": 3 / 4}
SWITCHES = ("thinking", "enable_thinking")  # names of one switch: DeepSeek's templates, Qwen's


@dataclass(frozen=True)
class Prompt:
    """A prompt, and whether the completion begins inside the thinking."""

    ids: list[int]
    opened: bool


def render(
    speaker: Speaker,
    messages: Sequence[Message],
    variables: dict[str, Any] | None = None,
    thinks: bool | None = None,
    tools: Sequence[Tool] = (),
    begun: Message | None = None,
) -> Prompt:
    """The prompt that asks for the assistant's next turn, or for the rest of one that is `begun`.

    `thinks` False closes the thinking: before it begins, or where it was left. Raises ApiError where the model's
    template cannot put the messages.
    """
    try:
        ids = _ids(speaker, messages, dict(variables or {}), thinks, tools)
        opened = speaker.opens_thinking(ids)
        if begun:
            said, opened = _begun(speaker, begun, opened)
            ids += said
    except ValueError as error:
        raise ApiError(400, str(error), param="messages") from error
    if opened and thinks is False:
        return Prompt([*ids, *close_ids(speaker)], False)
    return Prompt(ids, opened)


def _ids(
    speaker: Speaker, messages: Sequence[Message], variables: dict[str, Any], thinks: bool | None, tools: Sequence[Tool]
) -> list[int]:
    if speaker.uses_template:
        if tools or any(message.tool_calls or message.role == "tool" for message in messages):
            raise ValueError("tools mean nothing to this model, whose template knows user and assistant alone")
        if unknown := [name for name in variables if name not in SWITCHES]:
            raise ValueError(f"chat_template_kwargs.{unknown[0]} means nothing to this model's template; leave it out")
        return render_dialogue(speaker.tokenizer, [_turn(message) for message in messages])
    if speaker.chat is None:
        raise ValueError(f"{speaker.name} has no chat template, so messages mean nothing to it; use /v1/completions")
    if thinks is not None:
        variables |= dict.fromkeys(SWITCHES, thinks)
    if tools:
        variables["tools"] = [tool.model_dump(exclude_none=True) for tool in tools]
    shield = Shield(speaker.tokenizer)
    turns = [hide_message(shield, _fields(message)) for message in messages]
    return shield.encode(speaker.chat.render(turns, **shield.hide(variables)))


def _begun(speaker: Speaker, message: Message, opened: bool) -> tuple[list[int], bool]:
    """Ids of what the assistant said of its turn so far, and whether they end inside the thinking."""
    if message.tool_calls:
        raise ValueError("tool_calls cannot be continued; leave them out of the last message")
    thinking, answer = message.thinking, message.text
    if not thinking and answer.lstrip().startswith(THINK):  # inline
        thinking, closed, answer = answer.lstrip().removeprefix(THINK).partition(THINK_END)
        answer = closed + answer
    ids: list[int] = []
    if thinking and not opened:
        ids += speaker.tokenizer.encode_template(THINK, whole=True)
    opened = opened or bool(thinking)
    ids += speaker.tokenizer.encode(thinking, whole=True)
    if not answer:
        return ids, opened
    if opened:
        ids += close_ids(speaker)
    answer = answer.removeprefix(THINK_END)
    if speaker.uses_template:
        return [*ids, *render_begun(speaker.tokenizer, answer)], False
    return [*ids, *speaker.tokenizer.encode(answer, whole=True)], False


def _turn(message: Message) -> dict[str, str]:
    """A turn in Fathom's own template, which writes thinking in front of the answer."""
    thought = message.thinking if message.role == "assistant" else ""
    return {"role": message.role, "content": f"{thought}{THINK_END}{message.text}" if thought else message.text}


def _fields(message: Message) -> dict[str, Any]:
    """A turn as published templates read it: one name for the thinking, content a text."""
    fields: dict[str, Any] = {"role": message.role, "content": message.text}
    if message.role == "developer":
        fields["role"] = "system"  # the same instructions, under OpenAI's newer name
    if message.thinking:
        fields["reasoning_content"] = message.thinking
    if message.tool_calls:
        fields["tool_calls"] = [call.model_dump(exclude_none=True) for call in message.tool_calls]
        fields["content"] = message.text or None
    for name in ("name", "tool_call_id"):
        if value := getattr(message, name):
            fields[name] = value
    return fields


def wants_thinking(body: ChatRequest) -> bool | None:
    """Whether the request turns thinking on or off; None where it says neither."""
    said = [(body.chat_template_kwargs or {}).get(name) for name in SWITCHES]
    if body.thinking:
        said.append(body.thinking.type == "enabled")
    if body.reasoning_effort:
        said.append(body.reasoning_effort != "none")
    known = [bool(each) for each in said if each is not None]
    return all(known) if known else None


def close_thinking(body: ChatRequest, prompt: Prompt, speaker: Speaker, max_tokens: int) -> Forced | None:
    """What closes the thinking where its budget is used up; None where nothing limits it.

    Raises ApiError where a budget is asked of a model that does not think.
    """
    limit, field = body.thinking_token_budget, "thinking_token_budget"
    if limit is None and body.reasoning_effort in SHARES:
        limit, field = int(SHARES[body.reasoning_effort] * max_tokens), "reasoning_effort"
    if wants_thinking(body) is False:
        limit = 0
        if not prompt.opened and not knows_thinking(speaker):
            return None
    if limit is None:
        return None
    if not knows_thinking(speaker):
        raise ApiError(400, f"{field} limits thinking, but {speaker.name} has no {THINK_END} token", param=field)
    close = close_ids(speaker)
    since = None if prompt.opened else speaker.tokenizer.id_of(THINK)
    return Forced(tokens=tuple(close), after=limit, since=since, unless=close[0])


def hold_thinking(body: ChatRequest, prompt: Prompt, speaker: Speaker) -> Allow | None:
    """Keeps the thinking from ending before `min_thinking_tokens`; None where nothing asks for that.

    Raises ApiError where there is no thinking to keep open.
    """
    least, budget = body.min_thinking_tokens, body.thinking_token_budget
    if not least:
        return None
    field = "min_thinking_tokens"
    if not knows_thinking(speaker):
        raise ApiError(400, f"{field}={least}, but {speaker.name} has no {THINK_END} token", param=field)
    if wants_thinking(body) is False or (body.continue_final_message and not prompt.opened):
        raise ApiError(400, f"{field}={least} asks for thinking, which this request has closed", param=field)
    if budget is not None and least > budget:
        raise ApiError(400, f"{field}={least} exceeds thinking_token_budget={budget}; lower it", param=field)
    mask = torch.ones(speaker.model.config.vocab_size, dtype=torch.bool)
    mask[[speaker.tokenizer.id_of(THINK_END), *speaker.stop_ids]] = False
    opening = speaker.tokenizer.id_of(THINK)

    def allow(drawn: Sequence[int]) -> torch.Tensor | None:
        start = 0 if prompt.opened else drawn.index(opening) + 1 if opening in drawn[:least] else None
        return None if start is None or len(drawn) - start >= least else mask

    return allow


def knows_thinking(speaker: Speaker) -> bool:
    """Whether the tokenizer has the tags of thinking as tokens."""
    try:
        return bool(speaker.tokenizer.id_of(THINK) and speaker.tokenizer.id_of(THINK_END))
    except ValueError:
        return False


def close_ids(speaker: Speaker) -> list[int]:
    """The ids of `</think>`: one in the models that think."""
    return speaker.tokenizer.encode_template(THINK_END, whole=True)
