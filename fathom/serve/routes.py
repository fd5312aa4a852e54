"""The two endpoints that complete: from a client's body to an order that is answered whole or streamed."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace

from fastapi import APIRouter, Request
from starlette.responses import Response

from fathom.infer.request import Piece
from fathom.infer.speaker import Speaker
from fathom.serve.answers import Echo, Order, Stream, answer
from fathom.serve.asking import build_request, choose_max_tokens
from fathom.serve.desk import Desk
from fathom.serve.errors import ApiError, json_response
from fathom.serve.forced_tools import held_tools
from fathom.serve.gate import unknown_header
from fathom.serve.prompts import close_thinking, hold_thinking, render, wants_thinking
from fathom.serve.replies import Frame, names_of
from fathom.serve.sample import Sample, echoed_logprobs
from fathom.serve.schema import ChatRequest, CompletionRequest, Tool, Wish
from fathom.serve.stages import Stages
from fathom.serve.tools import CallReader
from fathom.serve.trace import Tracer, has_experts

MOST_PROMPTS = 256  # of one /v1/completions request


def completion_routes(stages: Stages) -> APIRouter:
    """/v1/chat/completions and /v1/completions."""
    router = APIRouter()

    @router.post("/v1/chat/completions")
    async def chat(body: ChatRequest, http: Request) -> Response:  # pyright: ignore[reportUnusedFunction]
        """Complete a dialogue."""
        desk = await stages.find(body.model)
        return await _reply(desk, http, body, await order_chat(desk, body))

    @router.post("/v1/completions")
    async def complete(body: CompletionRequest, http: Request) -> Response:  # pyright: ignore[reportUnusedFunction]
        """Complete texts."""
        desk = await stages.find(body.model)
        return await _reply(desk, http, body, await order_texts(desk, body))

    return router


async def _reply(desk: Desk, http: Request, body: Wish, order: Order) -> Response:
    headers = unknown_header(body.unknown)
    if body.stream:
        stream = Stream(desk, http, order, body.usage_in_stream, body.usage_in_chunks)
        stream.headers.update(headers)
        return stream
    return json_response(await answer(desk, http, order), headers=headers)


async def order_chat(desk: Desk, body: ChatRequest) -> Order:
    """Admit a chat request. Raises ApiError for what cannot be served."""
    _check_chat(body)
    thinks, tools = wants_thinking(body), offered_tools(desk.speaker, body)
    begun = body.messages[-1] if body.continue_final_message else None
    asked = body.messages[:-1] if begun else body.messages
    prompt = render(desk.speaker, asked, body.chat_template_kwargs, thinks, tools, begun)
    max_tokens = choose_max_tokens(body, len(prompt.ids), desk.limits)
    forced = close_thinking(body, prompt, desk.speaker, max_tokens)
    allow = hold_thinking(body, prompt, desk.speaker)
    tag = held_tools(desk.speaker, body, tools)
    grammar = None
    if body.response_format and body.response_format.type != "text":
        grammar = await asyncio.to_thread(desk.grammars.compile, body.response_format)
    elif tag:
        _check_forced_tool(body)
        field = "tool_choice" if body.tool_choice not in (None, "auto") else "parallel_tool_calls"
        grammar = await asyncio.to_thread(desk.grammars.compile_tag, tag, field)
    if grammar:
        allow = desk.grammars.hold(grammar, prompt.opened, thinks)
    request = build_request(body, prompt.ids, desk.speaker, max_tokens, desk.limits, forced, allow)
    if body.trace:
        request = replace(request, details=True, experts=has_experts(desk.speaker.model))
    inline = desk.options.reasoning == "inline" or body.separate_reasoning is False
    visit = await desk.admit([request], bool(body.stream))
    return Order(
        visit,
        [
            Sample(
                desk.speaker.tokenizer,
                prompt.opened,
                not inline,
                inline,
                CallReader() if tools else None,
                tracer=Tracer(desk.speaker.tokenizer) if body.trace else None,
            )
            for _ in range(request.n)
        ],
        Frame.new(desk.name, "chat", names_of(desk.options.reasoning, body.include_reasoning)),
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
    )


def _check_chat(body: ChatRequest) -> None:
    if body.top_logprobs is not None and not body.logprobs:
        raise ApiError(400, "top_logprobs needs logprobs=true; add it or leave top_logprobs out", param="top_logprobs")
    if body.trace and not body.stream:
        raise ApiError(400, "trace=true needs stream=true, as it comes in events; add it or leave trace out", "trace")
    _check_continued(body)
    if body.response_format and body.response_format.type != "text":
        others = {
            "tools": body.tools,
            "min_tokens": body.min_tokens,
            "min_thinking_tokens": body.min_thinking_tokens,
            "ignore_eos": body.ignore_eos,
            "continue_final_message": body.continue_final_message,
        }
        for name, value in others.items():
            if value:  # a grammar knows one place where the answer ends, and ends it there
                raise ApiError(400, f"{name} does not go with response_format; leave one of them out", param=name)


def _check_forced_tool(body: ChatRequest) -> None:
    for name in ("min_thinking_tokens", "continue_final_message"):
        if getattr(body, name):  # what holds a call to its form begins with the turn, and allows the thinking to end
            raise ApiError(400, f"{name} does not go with a forced tool; leave one of them out", param=name)


def _check_continued(body: ChatRequest) -> None:
    continued, name = bool(body.continue_final_message), "continue_final_message"
    if body.add_generation_prompt is not None and body.add_generation_prompt is continued:
        raise ApiError(
            400,
            f"add_generation_prompt={body.add_generation_prompt} and {name}={continued} contradict one another; "
            "leave add_generation_prompt out",
            param="add_generation_prompt",
        )
    if continued and body.messages[-1].role != "assistant":
        raise ApiError(
            400, f"{name} goes on with the assistant's turn, but the last is the {body.messages[-1].role}'s", param=name
        )


def offered_tools(speaker: Speaker, body: ChatRequest) -> list[Tool]:
    """The tools that the model may call. Raises ApiError where its template shows it none."""
    if not body.tools or body.tool_choice == "none":
        return []
    if speaker.chat is None or "tools" not in speaker.chat.source:
        raise ApiError(400, f"the chat template of {speaker.name} shows the model no tools; leave them out", "tools")
    return body.tools


async def order_texts(desk: Desk, body: CompletionRequest) -> Order:
    """Admit a text completion. Raises ApiError for what cannot be served."""
    prompts = read_prompts(desk, body.prompt)
    requests = [
        build_request(body, ids, desk.speaker, max_tokens, desk.limits, place=place)
        for place, ids in enumerate(prompts)
        if (max_tokens := choose_max_tokens(body, len(ids), desk.limits))
    ]
    echoes = await _echoes(desk, body, prompts)
    visit = await desk.admit(requests, bool(body.stream), scored=0 if requests else sum(map(len, prompts)))
    samples = [_text_sample(desk, len(echo.text)) for echo in echoes]
    if not requests:
        for sample in samples:
            sample.add([Piece(request=0, sample=0, tokens=[], logprobs=[], finish="length")])
    return Order(visit, samples, Frame.new(desk.name, "text"), tuple(echoes) if body.echo else (), body.logprobs)


async def _echoes(desk: Desk, body: CompletionRequest, prompts: Sequence[Sequence[int]]) -> list[Echo]:
    """What stands in front of every choice."""
    n, tokenizer = body.n or 1, desk.speaker.tokenizer
    if n > desk.limits.choices:
        raise ApiError(400, f"n={n} is more than the {desk.limits.choices} choices that this server gives", param="n")
    if not body.echo:
        return [Echo("")] * (len(prompts) * n)
    if body.logprobs is None:
        return [Echo(tokenizer.decode(ids)) for ids in prompts for _ in range(n)]
    scores = await desk.score(prompts, body.logprobs)
    logprobs = [echoed_logprobs(*each, tokenizer, body.logprobs) for each in zip(prompts, scores, strict=True)]
    return [Echo(tokenizer.decode(ids), each) for ids, each in zip(prompts, logprobs, strict=True) for _ in range(n)]


def _text_sample(desk: Desk, offset: int) -> Sample:
    return Sample(desk.speaker.tokenizer, opened=False, splits=False, offset=offset, lists_stop=True)


def read_prompts(desk: Desk, given: str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]]) -> list[list[int]]:
    """Ids of each prompt; texts begin with the token that the model's texts begin with."""
    vocabulary = desk.speaker.model.config.vocab_size
    texts = [given] if isinstance(given, str) else list(given)
    if not texts or (len(texts) > MOST_PROMPTS and not isinstance(texts[0], int)):
        raise ApiError(400, f"prompt holds {len(texts)} prompts; give 1 to {MOST_PROMPTS}", param="prompt")
    lists = [texts] if isinstance(texts[0], int) else texts
    try:
        found = [encode_text(desk, each) if isinstance(each, str) else list(each) for each in lists]  # pyright: ignore
    except ValueError as error:
        raise ApiError(400, str(error), param="prompt") from error
    for ids in found:
        if not ids:
            raise ApiError(400, "prompt is empty; give at least one token", param="prompt")
        if strangers := [token for token in ids if not 0 <= token < vocabulary]:
            raise ApiError(
                400, f"prompt holds token id {strangers[0]}, outside the vocabulary of {vocabulary}", param="prompt"
            )
    return found


def encode_text(desk: Desk, text: str) -> list[int]:
    """Ids of a plain text behind the beginning-of-sequence token, where the model has one."""
    tokenizer = desk.speaker.tokenizer
    begin = [tokenizer.bos_id] if desk.speaker.uses_template else tokenizer.encode_template("")
    return [*begin, *tokenizer.encode(text, whole=True)]
