"""Points of streams: what each chunk holds, in which order, and the raw bytes."""

import json
from typing import Any

import openai

from fathom.conform.asked import (
    Asked,
    Fields,
    NotOffered,
    choices_of,
    joined,
    require,
    said,
    thinking_of,
)

UNICODE = "Repeat exactly: caf\u00e9 na\u00efve \u4f60\u597d \U0001f600\U0001f680"
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


def one_head(server: Asked) -> str:
    """Role once, one id, one end; and the official client puts the same message together."""
    _, events = server.streamed
    kinds = {event.get("object") for event in events}
    require(kinds == {"chat.completion.chunk"}, f"object is {sorted(map(str, kinds))}")
    ids = {event.get("id") for event in events}
    require(len(ids) == 1, f"{len(ids)} ids in one stream")
    parts = choices_of(events)
    roles = [part["delta"]["role"] for part in parts if part["delta"].get("role")]
    require(roles == ["assistant"], f"{len(roles)} deltas have a role")
    ends = [part["finish_reason"] for part in parts if part.get("finish_reason")]
    require(len(ends) == 1, f"{len(ends)} finish reasons")
    numbers = [name for part in parts for name, value in part["delta"].items() if isinstance(value, int | float)]
    require(not numbers, f"delta.{next(iter(numbers), '')} is a number, which clients add up")
    message = _helper(server)
    require(message["role"] == "assistant", f"the client reads the role {message['role']!r}")
    return f"{len(events)} events"


def _helper(server: Asked) -> Fields:
    """What the official client's own helper makes of a stream."""
    body: Any = server.body()
    with server.openai.chat.completions.stream(**body) as stream:
        return stream.get_final_completion().choices[0].message.model_dump()


def order(server: Asked) -> str:
    """The usage chunk, without choices, is the last JSON; `[DONE]` the last line."""
    raw, events = server.streamed
    require(raw.rstrip().endswith("data: [DONE]"), f"the last bytes are {raw[-40:]!r}")
    counted = [place for place, event in enumerate(events) if event.get("usage")]
    require(counted, "no chunk has usage though include_usage was asked")
    last = events[-1]
    require(last.get("usage") and last.get("choices") == [], "the last chunk is not that of the usage, without choices")
    prompt, drawn, total = (last["usage"][f"{name}_tokens"] for name in ("prompt", "completion", "total"))
    require(prompt + drawn == total, f"{prompt} + {drawn} is given as {total}")
    _, plain = server.stream()
    require(not any(event.get("choices") == [] for event in plain), "a usage chunk comes though none was asked")
    return "finish, usage, [DONE]"


def never_mixed(server: Asked) -> str:
    """No delta holds thinking and answer, no thinking follows the answer, and no tag is left in either."""
    deltas = [part["delta"] for part in choices_of(server.streamed[1])]
    if not any(map(thinking_of, deltas)):
        raise NotOffered("the stream came without thinking in a field of its own")
    require(not any(thinking_of(delta) and delta.get("content") for delta in deltas), "one delta holds both")
    first = next((place for place, delta in enumerate(deltas) if delta.get("content")), len(deltas))
    require(not any(map(thinking_of, deltas[first:])), "thinking comes behind the answer's beginning")
    whole = joined(server.streamed[1])
    tags = [tag for tag in ("<think>", "</think>") if tag in whole.text]
    require(not tags, f"{', '.join(tags)} is left in the text")
    return f"{len(whole.thinking)} characters of thinking, {len(whole.content)} of answer"


def characters(server: Asked) -> str:
    """No character is cut: no replacement characters that the whole text has not."""
    for fields in ({}, {"messages": [{"role": "user", "content": UNICODE}], "max_tokens": 64}):
        raw, events = server.streamed if not fields else server.stream(**fields)
        if "\ufffd" in raw or "\\ufffd" in raw:
            whole = said(server.whole if not fields else server.chat(**fields)).text
            require("\ufffd" in whole, f"...{joined(events).text[-40:]!r}, whole {whole[-40:]!r}")
    return "UTF-8 throughout"


def headers(server: Asked) -> str:
    """A stream says that it is one, and goes through proxies unbuffered."""
    with server.http.stream("POST", f"{server.base}/chat/completions", json=server.body(stream=True)) as response:
        given = response.headers
        response.read()
    kind = given.get("content-type", "").partition(";")[0]
    require(kind == "text/event-stream", f"content-type is {kind!r}")
    wanted = {"cache-control": "no-cache", "x-accel-buffering": "no"}
    missing = [name for name, value in wanted.items() if value not in given.get(name, "")]
    return f"text/event-stream{', without ' + ' and '.join(missing) if missing else ', unbuffered'}"


def request_id(server: Asked) -> str:
    """Answers and refusals name the request in x-request-id."""
    answers = [server.post("/chat/completions", server.body(max_tokens=1)), server.post("/chat/completions", {})]
    missing = [response.status_code for response in answers if not response.headers.get("x-request-id")]
    require(not missing, f"missing where the status is {', '.join(map(str, missing))}")
    return "on answers and refusals"


def several(server: Asked) -> str:
    """n=2 streams the choices 0 and 1, each with its role and end."""
    _, events = server.stream(n=2, temperature=1.0, max_tokens=16)
    indices = {choice["index"] for event in events for choice in event.get("choices") or []}
    require(indices == {0, 1}, f"indices {sorted(indices)}")
    for index in (0, 1):
        parts = choices_of(events, index)
        roles = [part for part in parts if part["delta"].get("role")]
        ends = [part for part in parts if part.get("finish_reason")]
        require(len(roles) == len(ends) == 1, f"choice {index} has {len(roles)} roles and {len(ends)} ends")
    return "choices 0 and 1"


def tools(server: Asked) -> str:
    """Deltas of tool calls carry an index; arguments are JSON; the official client puts them together."""
    question = [{"role": "user", "content": "What is the weather in Paris? Use the tool."}]
    fields: Fields = {"messages": question, "tools": [TOOL], "tool_choice": "required"}
    try:
        _, events = server.stream(**fields)
    except NotOffered:
        fields["tool_choice"] = "auto"
        _, events = server.stream(**fields)
    calls = [call for part in choices_of(events) for call in part["delta"].get("tool_calls") or []]
    if not calls:
        raise NotOffered("the model called no tool")
    require(all(isinstance(call.get("index"), int) for call in calls), "a delta of a call has no index")
    for index in {call["index"] for call in calls}:
        mine = [call for call in calls if call["index"] == index]
        named = mine[0].get("id") and mine[0]["function"].get("name") == "weather"
        require(named, f"call {index} begins without id or name")
        text = "".join(call["function"].get("arguments") or "" for call in mine)
        try:
            arguments = json.loads(text)
        except ValueError:
            arguments = None
        require(isinstance(arguments, dict), f"arguments {text[:60]!r} are no JSON object")
    end = joined(events).finish
    require(end == "tool_calls", f"finish_reason is {end!r}")
    try:
        whole = server.chat(**fields)["choices"][0]["message"]["tool_calls"]
    except openai.APIStatusError as error:
        raise NotOffered(f"refused with {error.status_code} where not streamed") from error
    require(whole and json.loads(whole[0]["function"]["arguments"]) is not None, "no call where not streamed")
    return f"{len(calls)} deltas"
