"""What the official client reads of chats."""

import asyncio
import json
import socket
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import openai
import pytest

from fathom.infer import offline
from fathom.infer.speaker import Speaker

MODEL = "tiny/model"
QUESTION = [{"role": "user", "content": "8,2,4:10"}]
UNICODE = [{"role": "user", "content": "say"}]
THINKING, ANSWER = "8+4=12,12-2=10", "<answer>8+4-2</answer>"
ARTIST = {"temperature": 1.5, "max_tokens": 40}  # draws that differ from seed to seed


def ask(served: Any, messages: list[dict[str, str]] = QUESTION, **fields: Any) -> Any:
    return served.openai.chat.completions.create(model=MODEL, messages=messages, **{"temperature": 0} | fields)


def streamed(served: Any, **fields: Any) -> list[Any]:
    return list(ask(served, stream=True, **fields))


def joined(chunks: list[Any], field: str, index: int = 0) -> str:
    deltas = [choice.delta for chunk in chunks for choice in chunk.choices if choice.index == index]
    return "".join(getattr(delta, field, None) or "" for delta in deltas)


def thinking_of(message: Any) -> str:
    return message.model_extra.get("reasoning_content", "")


def events(served: Any, path: str = "/v1/chat/completions", **fields: Any) -> list[str]:
    body = {"model": MODEL, "messages": QUESTION, "temperature": 0, "stream": True} | fields
    return served.http.post(path, json=body).text.split("\n\n")


def test_models_are_listed_and_retrieved(shared: Any) -> None:
    listed = shared.openai.models.list()
    assert listed.object == "list"
    assert [(model.id, model.object, model.owned_by) for model in listed] == [(MODEL, "model", "fathom")]
    assert isinstance(listed.data[0].created, int)
    assert shared.openai.models.retrieve(MODEL).id == MODEL  # an id with a slash
    with pytest.raises(openai.NotFoundError) as refused:
        shared.openai.models.retrieve("other")
    assert refused.value.code == "model_not_found"


def test_a_plain_chat_and_its_usage(shared: Any) -> None:
    reply = ask(shared)
    message = reply.choices[0].message
    assert (message.role, message.content, reply.choices[0].finish_reason) == ("assistant", ANSWER, "stop")
    assert message.model_extra == {"reasoning_content": THINKING, "reasoning": THINKING}
    tokenizer = shared.desk.speaker.tokenizer
    prompt, drawn = shared.desk.speaker.encode(QUESTION[0]["content"]), tokenizer.encode_template
    usage = reply.usage
    assert usage.prompt_tokens == len(prompt)
    assert usage.completion_tokens == len(drawn(f"{THINKING}</think>{ANSWER}")) + 1  # and what ended it
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert usage.completion_tokens_details.reasoning_tokens == len(drawn(THINKING))  # the ids before the close
    assert usage.prompt_tokens_details.cached_tokens == 0


@pytest.mark.parametrize("law", [{"temperature": 0}, {**ARTIST, "seed": 3}])
@pytest.mark.parametrize("messages", [QUESTION, UNICODE])
def test_streamed_text_equals_whole_text(shared: Any, law: dict[str, Any], messages: Any) -> None:
    whole = ask(shared, messages, **law).choices[0]
    chunks = streamed(shared, messages=messages, **law)
    assert joined(chunks, "content") == whole.message.content
    assert joined(chunks, "reasoning_content") == joined(chunks, "reasoning") == thinking_of(whole.message)
    assert [c.choices[0].finish_reason for c in chunks if c.choices[0].finish_reason] == [whole.finish_reason]


def test_a_stream_says_its_role_once_and_keeps_its_id(shared: Any) -> None:
    chunks = streamed(shared)
    assert [chunk.choices[0].delta.role for chunk in chunks].count("assistant") == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    assert len({(chunk.id, chunk.created, chunk.model) for chunk in chunks}) == 1
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert [bool(chunk.choices[0].finish_reason) for chunk in chunks].count(True) == 1
    for chunk in chunks:  # thinking and answer never share a chunk
        assert not (chunk.choices[0].delta.content and getattr(chunk.choices[0].delta, "reasoning", None))


def test_usage_and_done_end_the_raw_stream(shared: Any) -> None:
    *parts, usage, done, rest = events(shared, stream_options={"include_usage": True})
    assert (done, rest) == ("data: [DONE]", "")
    last = json.loads(usage.removeprefix("data: "))
    assert last["choices"] == []
    assert last["usage"] == json.loads(json.dumps(ask(shared).usage.model_dump(exclude_unset=True)))
    assert all("usage" not in json.loads(part.removeprefix("data: ")) for part in parts)
    assert json.loads(parts[-1].removeprefix("data: "))["choices"][0]["finish_reason"] == "stop"


def test_a_client_of_http_1_0_gets_no_chunks(shared: Any) -> None:
    body = json.dumps({"model": MODEL, "messages": QUESTION, "temperature": 0, "stream": True}).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.0\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    with socket.create_connection((urlsplit(shared.url).hostname, urlsplit(shared.url).port), timeout=60) as connection:
        connection.sendall(head.encode() + body)
        with connection.makefile("rb") as file:
            _, _, raw = file.read().partition(b"\r\n\r\n")
    assert raw.startswith(b"data: {") and raw.endswith(b"}\n\ndata: [DONE]\n\n")


def test_streams_flush_and_are_not_kept(shared: Any) -> None:
    body = {"model": MODEL, "messages": QUESTION, "stream": True}
    headers = shared.http.post("/v1/chat/completions", json=body).headers
    assert headers["cache-control"] == "no-cache"
    assert headers["x-accel-buffering"] == "no"
    assert headers["content-type"].startswith("text/event-stream")
    assert headers["x-request-id"].startswith("req-")


def test_thinking_that_never_closes(shared: Any) -> None:
    choice = ask(shared, max_tokens=3).choices[0]
    assert (choice.finish_reason, choice.message.content) == ("length", "")
    assert thinking_of(choice.message) == THINKING[: len(thinking_of(choice.message))] != ""
    assert choice.model_extra["stop_reason"] == "thinking_unfinished"
    answered = ask(shared, max_tokens=13).choices[0]
    assert answered.finish_reason == "length"
    assert answered.message.content
    assert answered.model_extra["stop_reason"] is None


@pytest.mark.parametrize(
    "off",
    [
        {"reasoning_effort": "none"},
        {"extra_body": {"thinking": {"type": "disabled"}}},
        {"extra_body": {"chat_template_kwargs": {"enable_thinking": False}}},
        {"extra_body": {"chat_template_kwargs": {"thinking": False}}},
    ],
)
def test_thinking_disabled(shared: Any, off: dict[str, Any]) -> None:
    reply = ask(shared, max_tokens=8, **off)
    assert thinking_of(reply.choices[0].message) == ""
    assert reply.choices[0].message.content
    assert reply.usage.completion_tokens_details.reasoning_tokens == 0
    assert reply.usage.prompt_tokens == ask(shared, max_tokens=8).usage.prompt_tokens + 1  # the tag that closes


def test_a_budget_closes_the_thinking(shared: Any) -> None:
    reply = ask(shared, extra_body={"thinking_token_budget": 4})
    tokens = shared.desk.speaker.tokenizer.encode(thinking_of(reply.choices[0].message))
    assert len(tokens) == reply.usage.completion_tokens_details.reasoning_tokens == 4
    assert reply.choices[0].message.content
    ample = ask(shared, extra_body={"thinking_token_budget": 50})
    assert (thinking_of(ample.choices[0].message), ample.choices[0].message.content) == (THINKING, ANSWER)


@pytest.mark.parametrize(("effort", "share"), [("minimal", 16), ("low", 8), ("medium", 4)])
def test_effort_is_a_share_of_max_tokens(shared: Any, effort: str, share: int) -> None:
    reply = ask(shared, reasoning_effort=effort, max_tokens=32)
    assert reply.usage.completion_tokens_details.reasoning_tokens == 32 // share
    assert reply.choices[0].message.content


def test_inline_thinking_round_trips(shared: Any) -> None:
    said = ask(shared, extra_body={"separate_reasoning": False}).choices[0].message
    assert said.content == f"<think>{THINKING}</think>{ANSWER}"
    assert thinking_of(said) == ""
    chunks = streamed(shared, extra_body={"separate_reasoning": False})
    assert joined(chunks, "content") == said.content
    assert prompt_of(shared, {"content": said.content}) == prompt_of(
        shared, {"content": ANSWER, "reasoning_content": THINKING}
    )


def prompt_of(served: Any, turn: dict[str, Any]) -> list[int]:
    messages = [*QUESTION, {"role": "assistant", **turn}, {"role": "user", "content": "again"}]
    return served.http.post("/tokenize", json={"messages": messages}).json()["tokens"]


def test_history_takes_either_name_of_the_thinking(shared: Any) -> None:
    one = prompt_of(shared, {"content": ANSWER, "reasoning_content": THINKING})
    other = prompt_of(shared, {"content": [{"type": "text", "text": ANSWER}], "reasoning": THINKING})
    tokenizer = shared.desk.speaker.tokenizer
    assert one == other
    assert f"<think>{THINKING}</think>{ANSWER}" in tokenizer.decode(one)
    assert one.count(tokenizer.id_of("</think>")) == 1  # meant, not spelled


def test_reasoning_can_be_left_out_or_renamed(serve: Any, shared: Any) -> None:
    silent = ask(shared, extra_body={"include_reasoning": False}).choices[0].message
    assert (silent.content, silent.model_extra) == (ANSWER, {})
    named = serve(reasoning="reasoning")
    assert ask(named).choices[0].message.model_extra == {"reasoning": THINKING}
    assert joined(streamed(named), "reasoning_content") == ""


@pytest.mark.parametrize(
    ("stop", "thinking", "answer"),
    [
        ("4=12,12", "8+", ""),  # over several tokens, inside the thinking
        ("+4-2<", THINKING, "<answer>8"),  # over tokens of the answer, in the middle
        (["-2</answer>", "4-2"], THINKING, "<answer>8+"),  # overlapping: the first to be completed
        ("</answer>", THINKING, "<answer>8+4-2"),  # at the end
        ("absent", THINKING, ANSWER),
    ],
)
def test_stop_strings(shared: Any, stop: Any, thinking: str, answer: str) -> None:
    whole = ask(shared, stop=stop).choices[0]
    assert (thinking_of(whole.message), whole.message.content, whole.finish_reason) == (thinking, answer, "stop")
    chunks = streamed(shared, stop=stop)
    assert (joined(chunks, "reasoning"), joined(chunks, "content")) == (thinking, answer)


def test_a_seed_repeats_its_text_alone_and_in_a_crowd(shared: Any) -> None:
    alone = ask(shared, seed=11, **ARTIST).choices[0].message
    assert thinking_of(alone)
    with ThreadPoolExecutor(12) as pool:
        others = [pool.submit(ask, shared, UNICODE, seed=seed, **ARTIST, stream=bool(seed % 2)) for seed in range(8)]
        again = list(pool.map(lambda _: ask(shared, seed=11, **ARTIST).choices[0].message, range(4)))
        texts = {str(list(other.result()) if i % 2 else other.result().choices) for i, other in enumerate(others)}
    assert all(each == alone for each in again)
    assert len(texts) == len(others)


def test_a_seed_is_that_of_the_offline_engine(shared: Any, speaker: Speaker) -> None:
    reply = ask(shared, seed=5, **ARTIST, extra_body={"separate_reasoning": False})
    assert reply.choices[0].message.content == offline.Engine(speaker).ask(QUESTION, seed=5, **ARTIST).text


@pytest.mark.parametrize(
    "field",
    [
        {"top_p": 0.8},
        {"presence_penalty": 2.0},
        {"frequency_penalty": 2.0},
        {"top_k": 2},
        {"min_p": 0.3},
        {"repetition_penalty": 3.0},
        {"temperature": 0.2},
        {"min_tokens": 39},
    ],
)
def test_every_sampling_field_reaches_the_engine(shared: Any, speaker: Speaker, field: dict[str, Any]) -> None:
    reference = offline.Engine(speaker)
    law = {"temperature": 2.0, "max_tokens": 40}
    changed = [reference.ask(QUESTION, seed=seed, **law | field).text for seed in range(2)]
    plain = [reference.ask(QUESTION, seed=seed, **law).text for seed in range(2)]
    assert changed != plain
    more = {"extra_body": {**field, "separate_reasoning": False}}
    assert [ask(shared, seed=seed, **law, **more).choices[0].message.content for seed in range(2)] == changed


def test_logit_bias_rules_out_and_forces(shared: Any) -> None:
    tokenizer = shared.desk.speaker.tokenizer
    eight, nine = tokenizer.encode("8")[0], tokenizer.encode("9")[0]
    without = ask(shared, logit_bias={str(eight): -100}).choices[0].message
    assert "8" not in thinking_of(without) + without.content
    forced = ask(shared, logit_bias={str(nine): 100}, max_tokens=6).choices[0].message
    assert thinking_of(forced) == "9" * 6


def test_choices_of_a_stream_carry_their_index(shared: Any) -> None:
    law = {**ARTIST, "seed": 2, "n": 3}
    whole = ask(shared, **law)
    assert [choice.index for choice in whole.choices] == [0, 1, 2]
    assert len({str(choice.message) for choice in whole.choices}) == 3
    chunks = streamed(shared, **law, stream_options={"include_usage": True})
    for choice in whole.choices:
        assert joined(chunks, "content", choice.index) == choice.message.content
        assert joined(chunks, "reasoning", choice.index) == thinking_of(choice.message)
    assert sorted(c.index for chunk in chunks for c in chunk.choices if c.delta.role) == [0, 1, 2]
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_logprobs_align_with_the_tokens(shared: Any) -> None:
    reply = ask(shared, logprobs=True, top_logprobs=5)
    found = reply.choices[0].logprobs.content
    assert "".join(each.token for each in found) == f"{THINKING}</think>{ANSWER}"
    assert len(found) == reply.usage.completion_tokens - 1  # the stop token has no text
    for each in found:
        assert each.top_logprobs[0].token == each.token  # greedy
        assert each.top_logprobs[0].logprob == pytest.approx(each.logprob, abs=1e-6)
        assert bytes(each.bytes).decode() == each.token
        assert sum(2.718281828**other.logprob for other in each.top_logprobs) <= 1 + 1e-5
    chunks = streamed(shared, logprobs=True, top_logprobs=5)
    parts = [choice.logprobs.content for chunk in chunks for choice in chunk.choices if choice.logprobs]
    assert [each for part in parts for each in part] == found


def test_drafts_change_neither_text_nor_logprobs(serve: Any, shared: Any) -> None:
    drafting = serve(drafts=1)
    for law in ({"temperature": 0}, {**ARTIST, "seed": 4}):
        plain, drafted = (
            ask(served, **law, logprobs=True).choices[0].model_dump(exclude={"logprobs"})
            for served in (shared, drafting)
        )
        assert plain == drafted
        one, other = (
            [each.logprob for each in ask(served, **law, logprobs=True).choices[0].logprobs.content]
            for served in (shared, drafting)
        )
        assert one == pytest.approx(other, abs=1e-4)


def test_no_half_characters_are_streamed(shared: Any) -> None:
    body = {"model": MODEL, "messages": UNICODE, "temperature": 0, "stream": True}
    raw = shared.http.post("/v1/chat/completions", json=body).text
    assert "\N{REPLACEMENT CHARACTER}" not in raw
    chunks = streamed(shared, messages=UNICODE)
    assert joined(chunks, "reasoning") == "caf\u00e9 \U0001f600"
    assert joined(chunks, "content") == "na\u00efve \u4f60\u597d \U0001f600!"


def test_unknown_fields_are_named_in_a_header(shared: Any) -> None:
    body = {"model": MODEL, "messages": QUESTION, "max_tokens": 1, "zip": 1, "\u00e9\r\nx: y": 2}
    reply = shared.http.post("/v1/chat/completions", json=body)
    assert reply.status_code == 200
    assert reply.headers["x-fathom-ignored"] == "zip,%C3%A9%0D%0Ax%3A%20y"


async def _ask_async(url: str) -> str:
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as client:
        stream = await client.chat.completions.create(model=MODEL, messages=QUESTION, temperature=0, stream=True)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])


def test_the_asynchronous_client(shared: Any) -> None:
    assert asyncio.run(_ask_async(shared.url)) == ANSWER


def test_the_helper_accumulates_a_stream(shared: Any) -> None:
    fields = {"model": MODEL, "messages": QUESTION, "temperature": 0, "stream_options": {"include_usage": True}}
    with shared.openai.chat.completions.stream(**fields) as stream:
        for _ in stream:
            pass
        final = stream.get_final_completion()
    message = final.choices[0].message
    assert (message.role, message.content, thinking_of(message)) == ("assistant", ANSWER, THINKING)
    assert final.usage.total_tokens == ask(shared).usage.total_tokens
