"""Points of refusals and of load: what a server says to requests that it should not or cannot serve."""

import json
import random
import re
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai

from fathom.conform.asked import Asked, Fields, NotHeld, NotOffered, error_object, require

# A value that no server should take, for each field.
BAD: dict[str, Any] = {
    "temperature": -1,
    "top_p": 2,
    "n": 0,
    "presence_penalty": 3,
    "frequency_penalty": -3,
    "max_tokens": -1,
    "top_logprobs": 99,
    "stop": 5,
    "messages": [{"role": "nobody", "content": "a"}],
    "logit_bias": "a",
    "response_format": {"type": "no-such-form"},
    "tools": "a",
}
JUNK: tuple[Any, ...] = (None, -1, 1e300, 2**70, "", "x", "\ud800", [], {}, [[]], True, {"a": 1}, ["x", 1], 0.5)
CASES = 60
MOST_WORDS = 300_000  # of a prompt that is too long
PATIENCE_S = 10.0  # that a server has to drop what nobody reads
RUNNING = re.compile(r"^\S*?(?:num_requests_running|num_running_reqs)(?:\{[^}]*\})?\s+([\d.e+]+)", re.MULTILINE)


def bad_fields(server: Asked) -> str:
    """Every value that makes no sense is refused with 400 or 422 and an error object."""
    for name, value in BAD.items():
        response = server.post("/chat/completions", server.body(max_tokens=1) | {name: value})
        require(response.status_code in (400, 422), f"{name}={json.dumps(value)} gets status {response.status_code}")
        error_object(response)
    return f"{len(BAD)} fields"


def named_fields(server: Asked) -> str:
    """The refusal of a field names it in `param`."""
    silent: list[str] = []
    for name, value in BAD.items():
        error = error_object(server.post("/chat/completions", server.body(max_tokens=1) | {name: value}))
        if not str(error.get("param") or "").startswith(name):
            silent.append(name)
    require(not silent, f"param does not name {', '.join(silent)}")
    return f"{len(BAD)} fields"


def broken_body(server: Asked) -> str:
    """A body that is no JSON is refused as JSON; another model is 404 in the client's words."""
    response = server.post("/chat/completions", '{"model": ')
    require(400 <= response.status_code < 500, f"half a body gets status {response.status_code}")
    error_object(response)
    try:
        server.chat(model="no-such-model")
    except openai.NotFoundError:
        return f"half a body is {response.status_code}, another model 404"
    except openai.APIStatusError as error:
        raise NotHeld(f"another model gets status {error.status_code}") from error
    raise NotHeld("no-such-model answers")


def too_long(server: Asked) -> str:
    """A prompt longer than the context is refused, and soon."""
    limit = server.entry.get("max_model_len")
    if not isinstance(limit, int) or limit > MOST_WORDS:
        raise NotOffered("the list of models gives no max_model_len that could be filled from here")
    messages = [{"role": "user", "content": "a " * (limit + 16)}]
    began = time.monotonic()
    response = server.post("/chat/completions", server.body(max_tokens=1) | {"messages": messages})
    seconds = time.monotonic() - began
    require(response.status_code in (400, 413, 422), f"{limit + 16} words get status {response.status_code}")
    message = error_object(response)["message"]
    counts = "with" if str(limit) in message.replace(",", "") else "without"
    return f"{response.status_code} after {seconds:.1f} s, {counts} the limit of {limit}"


def keys(server: Asked) -> str:
    """A wrong key and none are 401 with an error object, on every route that costs or tells something."""
    if not server.key:
        raise NotOffered("no --key was given")
    with httpx.Client(timeout=server.timeout_s) as nobody:
        for headers in ({}, {"authorization": "Bearer wrong-wrong-wrong"}):
            for method, path, body in (("GET", "/models", None), ("POST", "/chat/completions", server.body())):
                response = nobody.request(method, server.base + path, json=body, headers=headers)
                require(response.status_code == 401, f"{method} {path} gets status {response.status_code}")
                error_object(response)
    try:
        server.openai.with_options(api_key="wrong-wrong-wrong").models.list()
    except openai.AuthenticationError:
        return "401 in the client's words"
    raise NotHeld("the client lists models with a wrong key")


def guarded(server: Asked) -> str:
    """Every route that can be read, of those that the server's own schema lists, wants the key, but for probes."""
    if not server.key:
        raise NotOffered("no --key was given")
    response = server.http.get(f"{server.root}/openapi.json")
    if response.status_code != 200:
        raise NotOffered("the server publishes no /openapi.json")
    paths = [path for path, methods in response.json().get("paths", {}).items() if "get" in methods]
    probes = ("health", "ready", "ping", "live")
    with httpx.Client(timeout=server.timeout_s) as nobody:  # POST is left alone: who knows what it does
        asked = [re.sub(r"\{[^}]*\}", "x", path) for path in paths if not any(word in path for word in probes)]
        open_ones = [path for path in asked if nobody.get(server.root + path).status_code not in (401, 403)]
    require(not open_ones, f"no key needed for {', '.join(open_ones[:6])}")
    return f"{len(asked)} routes"


def no_failures(server: Asked) -> str:
    """Bodies that make no sense never get a status of 500."""
    dice = random.Random(0)
    names = [*BAD, "stream", "seed", "model", "logprobs", "tool_choice", "stream_options", "user"]
    for _ in range(CASES):
        body: Fields = server.body(max_tokens=2)
        for name in dice.sample(names, dice.randint(1, 3)):
            value = dice.choice(JUNK)
            body[name] = 1 if name == "max_tokens" and value is None else value
        response = server.post("/chat/completions", body if dice.random() < 0.9 else json.dumps(dice.choice(JUNK)))
        failed = response.status_code >= 500 and response.status_code != 503
        require(not failed, f"{response.status_code} for {json.dumps(body)[-120:]}")
    return f"{CASES} bodies"


# ---- load -----------------------------------------------------------------------------------------------------------


def left_alone(server: Asked) -> str:
    """What a client walked away from stops: the gauge of running requests returns."""
    before = _running(server)
    with server.http.stream("POST", f"{server.base}/chat/completions", json=_long(server, stream=True)) as response:
        parts = response.iter_raw()  # held: the stream is closed with it
        next(parts)
        during = _running(server)
    if during <= before:
        raise NotOffered("the request was over before it could be left")
    deadline = time.monotonic() + PATIENCE_S
    while _running(server) > before:
        require(time.monotonic() < deadline, f"still running {PATIENCE_S:g} s later")
        time.sleep(0.02)
    return f"gone within {PATIENCE_S - deadline + time.monotonic():.2f} s"


def _long(server: Asked, stream: bool) -> Fields:
    limit = server.entry.get("max_model_len")
    room = limit // 2 if isinstance(limit, int) else 1024
    return server.body(stream=stream, max_tokens=min(room, 1024), ignore_eos=True, temperature=1.0)


def _running(server: Asked) -> float:
    response = server.http.get(f"{server.root}/metrics")
    found = RUNNING.findall(response.text) if response.status_code == 200 else []
    if not found:
        raise NotOffered("/metrics shows no gauge of running requests")
    return sum(map(float, found))


def burst(server: Asked) -> str:
    """Of many requests at once each is answered, or refused with 429 or 503 and a Retry-After."""
    _require_burst(server)
    with ThreadPoolExecutor(server.burst) as pool:
        body = server.body(max_tokens=8)
        jobs = [pool.submit(server.post, "/chat/completions", body) for _ in range(server.burst)]
        answers = [job.result() for job in jobs]
    refused = [response for response in answers if response.status_code != 200]
    for response in refused:
        require(response.status_code in (429, 503), f"status {response.status_code}")
        require(response.headers.get("retry-after"), f"{response.status_code} without Retry-After")
        error_object(response)
    return f"{server.burst - len(refused)} answered, {len(refused)} told to come again"


def given_up(server: Asked) -> str:
    """After many requests whose clients gave up, the next is answered."""
    _require_burst(server)

    def give_up(_: int) -> None:
        try:
            httpx.post(
                f"{server.base}/chat/completions",
                json=_long(server, stream=False),
                headers=dict(server.http.headers),
                timeout=0.3,
            )
        except httpx.TimeoutException:
            return

    with ThreadPoolExecutor(min(32, server.burst)) as pool:
        list(pool.map(give_up, range(server.burst)))
    began = time.monotonic()
    body: Any = server.body(max_tokens=1)
    server.openai.with_options(max_retries=2).chat.completions.create(**body)
    return f"answered in {time.monotonic() - began:.2f} s"


def _require_burst(server: Asked) -> None:
    if not server.burst:
        raise NotOffered("not asked; --burst 200 does")
