"""Points of whole answers: models, usage, thinking, forms of answers. Each function returns what was seen."""

import json
from typing import Any

import openai

from fathom.conform.asked import NAMES, Asked, NotHeld, NotOffered, joined, require, said

TRIES = 3  # of what a server's rounding may upset: texts that are greedy twice


def models(server: Asked) -> str:
    """The list has the model with the published fields; asking for one that is not there is 404."""
    listed = server.openai.models.list().model_dump()
    require(listed["object"] == "list", f"object is {listed['object']!r}")
    entries = {entry["id"]: entry for entry in listed["data"]}
    require(server.model in entries, f"{server.model!r} is not in {list(entries)}")
    entry = entries[server.model]
    kinds = {"object": str, "created": int, "owned_by": str}
    wrong = [name for name, kind in kinds.items() if not isinstance(entry.get(name), kind)]
    require(not wrong, f"{', '.join(wrong)} of the entry is missing or of another kind")
    return f"{len(entries)} listed"


def one_model(server: Asked) -> str:
    """A model can be asked for by its id; one that is not there is 404 in the client's words."""
    try:
        found = server.openai.models.retrieve(server.model).id
    except openai.NotFoundError as error:
        raise NotOffered(f"/models/{server.model} is not there") from error
    require(found == server.model, f"asked for {server.model}, got {found}")
    try:
        server.openai.models.retrieve("no-such-model")
    except openai.NotFoundError:
        return "found; no-such-model is 404"
    raise NotHeld("no-such-model was found")


def usage(server: Asked) -> str:
    """A plain answer has one choice with a role and an end, and counts that add up."""
    answer = server.whole
    require(answer["object"] == "chat.completion", f"object is {answer['object']!r}")
    role = answer["choices"][0]["message"]["role"]
    require(role == "assistant", f"role is {role!r}")
    require(said(answer).finish, "finish_reason is missing")
    counts = answer["usage"] or {}
    prompt, drawn, total = (counts.get(f"{name}_tokens") for name in ("prompt", "completion", "total"))
    if not (isinstance(prompt, int) and isinstance(drawn, int)):
        raise NotHeld(f"usage is {counts}")
    require(prompt + drawn == total, f"{prompt} + {drawn} is given as {total}")
    return f"{prompt} + {drawn} = {total}"


def same_text(server: Asked) -> str:
    """A greedy answer is the same streamed and not."""
    whole = parts = said(server.whole)
    for attempt in range(TRIES):
        whole = said(server.whole if attempt == 0 else server.chat(seed=1))
        parts = joined(server.streamed[1] if attempt == 0 else server.stream(seed=1)[1])
        if whole == parts:
            return f"{len(whole.text)} characters, equal" + (f" at try {attempt + 1}" if attempt else "")
    raise NotHeld(f"whole ...{whole.text[-40:]!r}, streamed ...{parts.text[-40:]!r}")


def cut_off(server: Asked) -> str:
    """max_tokens=1 gives one token and the finish reason length."""
    answer = server.chat(max_tokens=1)
    drawn, finish = answer["usage"]["completion_tokens"], said(answer).finish
    require((drawn, finish) == (1, "length"), f"{drawn} tokens, finish_reason {finish!r}")
    return "1 token, length"


def texts(server: Asked) -> str:
    """/completions continues a text, with counts that add up."""
    try:
        body: Any = {"model": server.model, "prompt": server.prompt, "max_tokens": 4, "temperature": 0}
        answer = server.openai.completions.create(**body).model_dump()
    except openai.APIStatusError as error:
        raise NotOffered(f"refused with {error.status_code}") from error
    require(answer["object"] == "text_completion", f"object is {answer['object']!r}")
    counts, text = answer["usage"], answer["choices"][0]["text"]
    total = counts["prompt_tokens"] + counts["completion_tokens"]
    require(total == counts["total_tokens"] and isinstance(text, str), f"usage {counts}, text {text!r}")
    return f"{counts['completion_tokens']} tokens"


# ---- thinking -------------------------------------------------------------------------------------------------------


def require_thinking(server: Asked) -> None:
    """Raise NotOffered where the plain answer has none in a field of its own."""
    if not server.thinks:
        raise NotOffered("the answer came without thinking in a field of its own")


def both_names(server: Asked) -> str:
    """Thinking comes as reasoning_content and as reasoning, whole and streamed."""
    require_thinking(server)
    message = server.whole["choices"][0]["message"]
    deltas = [choice["delta"] for event in server.streamed[1] for choice in event["choices"]]
    for name in NAMES:
        streamed = "".join(delta.get(name) or "" for delta in deltas)
        require(message.get(name), f"the message has no {name}")
        require(streamed, f"no delta has {name}")
    return " and ".join(NAMES)


def reasoning_tokens(server: Asked) -> str:
    """The usage counts the tokens of the thinking: those in front of `</think>` where log-probabilities show it."""
    require_thinking(server)
    counts = server.whole["usage"]
    counted = (counts.get("completion_tokens_details") or {}).get("reasoning_tokens")
    if not isinstance(counted, int):
        raise NotHeld("usage.completion_tokens_details.reasoning_tokens is missing")
    require(0 < counted <= counts["completion_tokens"], f"{counted} of {counts['completion_tokens']} tokens")
    try:
        shown = server.chat(logprobs=True)["choices"][0]["logprobs"] or {}
    except openai.APIStatusError:
        shown = {}
    tokens = [entry["token"] for entry in shown.get("content") or []]
    if "</think>" not in tokens:
        return f"{counted} of {counts['completion_tokens']}"
    place = tokens.index("</think>")
    require(place == counted, f"{counted} counted, </think> is token {place}")
    return f"{counted}, and </think> is the next token"


def switched_off(server: Asked) -> str:
    """chat_template_kwargs turn thinking off."""
    require_thinking(server)
    answer = said(server.offered(chat_template_kwargs={"thinking": False, "enable_thinking": False}))
    require(not answer.thinking, f"{len(answer.thinking)} characters of thinking")
    return "no thinking"


def budget(server: Asked) -> str:
    """thinking_token_budget closes the thinking, and an answer follows."""
    require_thinking(server)
    answer = server.offered(thinking_token_budget=2)
    counted = (answer["usage"].get("completion_tokens_details") or {}).get("reasoning_tokens")
    require(counted is None or counted <= 2, f"{counted} tokens of thinking for a budget of 2")
    require(said(answer).content, "no answer behind the thinking")
    return f"{counted} tokens of thinking, then an answer"


def inline(server: Asked) -> str:
    """separate_reasoning=false leaves thinking in the content, between its tags."""
    require_thinking(server)
    answer = said(server.offered(separate_reasoning=False))
    if answer.thinking:
        raise NotOffered("separate_reasoning is ignored")
    wanted = said(server.whole)
    shown = f"<think>{wanted.thinking}" + (f"</think>{wanted.content}" if wanted.content else "")
    require(answer.content.startswith("<think>"), f"content begins with {answer.content[:20]!r}")
    same = answer.content == shown
    return "tags and texts as in the fields" if same else "tags; the text differs from that in the fields"


def history(server: Asked) -> str:
    """A past turn's thinking counts the same under either name."""

    def prompt_tokens(**thought: str) -> int:
        turn = {"role": "assistant", "content": "4", **thought}
        question = {"role": "user", "content": server.prompt}
        return server.offered(messages=[question, turn, question], max_tokens=1)["usage"]["prompt_tokens"]

    thought = "two and two are four"
    plain, *named = prompt_tokens(), *(prompt_tokens(**{name: thought}) for name in NAMES)
    if set(named) == {plain}:
        raise NotOffered("the thinking of past turns is left out of the prompt")
    require(named[0] == named[1], f"{named[0]} prompt tokens with {NAMES[0]}, {named[1]} with {NAMES[1]}")
    return f"{named[0]} prompt tokens with either, {plain} without"


# ---- forms ----------------------------------------------------------------------------------------------------------


def json_schema(server: Asked) -> str:
    """An answer that was asked for by a JSON schema is valid under it, and thinking is left alone."""
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    schema |= {"additionalProperties": False}
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}
    answer = said(server.offered(response_format=form))
    if answer.finish == "length":
        raise NotOffered("max_tokens ended before the answer did; give more --max_tokens")
    try:
        found = json.loads(answer.content)
    except ValueError:
        raise NotHeld(f"content is no JSON: {answer.content[:60]!r}") from None
    require(isinstance(found, dict) and set(found) == {"ok"} and isinstance(found["ok"], bool), f"{found}")
    require(not server.thinks or answer.thinking, "the thinking is gone")
    return answer.content.strip()
