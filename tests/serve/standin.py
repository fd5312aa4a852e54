"""A stand-in for other makers' servers: replies it knows by rule, faults on demand, and the words of two engines.

Characters are its tokens and their code points the ids. It imports nothing of Fathom.
As a program it takes the flags of `vllm serve` or of `python -m sglang.launch_server`, and STAND_IN in the environment
says more: {"record": FILE for its flags, "style": "vllm" or "sglang", "faults": [...], "dies": true, "loading_s": 0.5}.
"""

import argparse
import asyncio
import hashlib
import json
import os
import random
import signal
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

CONTEXT = 4096
THINKING, ANSWER = "let me see", "caf\u00e9 \U0001f600 is na\u00efve"
Fields = dict[str, Any]


class Refused(Exception):
    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.param, self.code = status, param, code


class StandIn:
    def __init__(
        self,
        faults: tuple[str, ...] = (),
        style: str = "openai",
        key: str = "",
        name: str = "stand/in",
        first_s: float = 0.0,
        token_s: float = 0.0,
        repeats: int = 1,
    ) -> None:
        self.faults, self.style, self.key, self.name = frozenset(faults), style, key, name
        self.first_s, self.token_s, self.repeats = first_s, token_s, repeats
        self.running = 0
        self.asked: list[Fields] = []  # bodies, as they came
        self.headers: list[dict[str, str]] = []
        routes = [("/v1/models", self.models), ("/v1/models/{model:path}", self.model), ("/health", self.health)]
        posts = [("/v1/chat/completions", self.chat), ("/v1/completions", self.texts), ("/tokenize", self.tokenize)]
        self.app = Starlette(
            routes=[Route(path, self.guarded(view)) for path, view in [*routes, ("/metrics", self.metrics)]]
            + [Route(path, self.guarded(view), methods=["POST"]) for path, view in posts]
        )

    def guarded(self, view: Any) -> Any:
        async def guarded(request: Request) -> Response:
            guards = self.key and request.url.path != "/health" and "open" not in self.faults
            if guards and request.headers.get("authorization") != f"Bearer {self.key}":
                return self.error(Refused(401, "wrong key", code="invalid_api_key"))
            try:
                response = await view(request)
            except Refused as error:
                response = self.error(error)
            if "nameless" not in self.faults:
                response.headers["x-request-id"] = "r"
            return response

        return guarded

    def error(self, error: Refused) -> Response:
        fields: Fields = {"message": str(error), "type": "invalid_request_error", "param": error.param}
        fields["code"] = error.code if self.style == "openai" else error.status
        if self.style == "sglang":
            return JSONResponse({"object": "error", **fields}, error.status)
        if "bare_error" in self.faults or (self.style == "vllm" and error.status == 401):
            return JSONResponse({"error": str(error)}, error.status)
        return JSONResponse({"error": fields}, error.status)

    async def health(self, _: Request) -> Response:
        return Response()

    async def metrics(self, _: Request) -> Response:
        return PlainTextResponse(f"# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running {self.running}\n")

    async def models(self, _: Request) -> Response:
        entry = {"id": self.name, "object": "model", "created": 1, "owned_by": "tests", "max_model_len": CONTEXT}
        return JSONResponse({"object": "list", "data": [entry]})

    async def model(self, request: Request) -> Response:
        if request.path_params["model"] != self.name and "any_model" not in self.faults:
            raise Refused(404, "no such model", "model", "model_not_found")
        return JSONResponse({"id": self.name, "object": "model", "created": 1, "owned_by": "tests"})

    async def tokenize(self, request: Request) -> Response:
        ids = [ord(each) for each in (await request.json())["prompt"]]
        return JSONResponse({"tokens": ids, "count": len(ids), "max_model_len": CONTEXT})

    async def chat(self, request: Request) -> Response:
        body = self.checked(await self.body(request), "messages")
        shown = json.dumps([{**m, "reasoning": None, "reasoning_content": None} for m in body["messages"]])
        return await self.reply(request, body, len(shown), chat=True)

    async def texts(self, request: Request) -> Response:
        body = self.checked(await self.body(request), "prompt")
        return await self.reply(request, body, len(body["prompt"]), chat=False)

    async def body(self, request: Request) -> Fields:
        self.headers.append(dict(request.headers))
        try:
            body = json.loads(await request.body())
        except ValueError:
            raise Refused(400, "no JSON") from None
        if "fails" in self.faults and not isinstance(body, dict):
            raise Refused(500, "a slip")
        if not isinstance(body, dict):
            raise Refused(400, "no object")
        if "full" in self.faults:
            raise Refused(429, "full")
        self.asked.append(body)
        return body

    def checked(self, body: Fields, what: str) -> Fields:
        bounds = {"temperature": (0, 2), "top_p": (0, 1), "n": (1, 8), "presence_penalty": (-2, 2), "seed": (0, 2**63)}
        bounds |= {"frequency_penalty": (-2, 2), "max_tokens": (1, CONTEXT), "top_logprobs": (0, 20)}
        if "careless" in self.faults:
            body = {k: v for k, v in body.items() if k not in bounds or isinstance(v, int | float)}
            bounds = {}
        for name, (low, high) in bounds.items():
            value = body.get(name)
            if value is not None and (not isinstance(value, int | float) or not low <= value <= high):
                raise Refused(400, f"{name} is wrong", None if "no_param" in self.faults else name)
        if body.get("thinking_token_budget") is not None:
            raise Refused(400, "there are no budgets", "thinking_token_budget")
        if body.get("model") != self.name:
            raise Refused(404, "no such model", "model", "model_not_found")
        said = body.get(what)
        if not isinstance(said, str if what == "prompt" else list) or not said:
            raise Refused(400, f"{what} is missing", what)
        texts = [said] if what == "prompt" else [m.get("content") if isinstance(m, dict) else None for m in said]
        if not all(isinstance(text, str | None) for text in texts) or (
            what == "messages" and not isinstance(said[0], dict)
        ):
            raise Refused(400, f"{what} is wrong", what)
        if any(m.get("role") not in ("user", "assistant", "system") for m in said if what == "messages"):
            raise Refused(400, "messages is wrong: no such role", what)
        words = sum(len(text.split()) for text in texts if text)
        if words > CONTEXT and "any_length" not in self.faults:
            raise Refused(400, f"{words} tokens are more than the {CONTEXT} there are", what, "context_length_exceeded")
        for name, kinds in {"stop": str | list, "logit_bias": dict, "tools": list, "response_format": dict}.items():
            if body.get(name) is not None and not isinstance(body[name], kinds):
                raise Refused(400, f"{name} is wrong", name)
        if (body.get("response_format") or {}).get("type", "text") not in ("text", "json_object", "json_schema"):
            raise Refused(400, "response_format is wrong", "response_format")
        return body

    # ---- what is said ------------------------------------------------------------------------------------------------

    def said(self, body: Fields, index: int, chat: bool) -> tuple[str, str, str]:
        """Thinking, answer and why it ended."""
        thinks = chat and (body.get("chat_template_kwargs") or {}).get("enable_thinking") is not False
        thinking, answer = THINKING if thinks else "", " ".join([ANSWER] * self.repeats)
        if (body.get("response_format") or {}).get("type", "text") != "text":
            answer = '{"ok": true}'
        elif body.get("temperature", 1) > 0:
            seed = random.random() if body.get("seed") is None or "seed" in self.faults else body["seed"] + index
            answer = f"drawn {hashlib.sha256(str(seed).encode()).hexdigest()[:12]}"
        thinking, answer = (self.biased(text, body) if text else "" for text in (thinking, answer))
        if "text" in self.faults and body.get("stream"):
            answer = answer[:-1]
        whole, finish, limit = thinking + answer, "stop", body.get("max_tokens") or CONTEXT
        if len(whole) > limit:
            whole, finish = whole[:limit], "length"
        stops = [body["stop"]] if isinstance(body.get("stop"), str) else body.get("stop") or []
        for stop in stops:
            if stop in whole:
                keep = len(stop) if "stop" in self.faults else 0
                whole, finish = whole[: whole.index(stop) + keep], "stop"
        return whole[: len(thinking)], whole[len(thinking) :], finish

    def biased(self, answer: str, body: Fields) -> str:
        bias = {} if "bias" in self.faults else {chr(int(k)): v for k, v in (body.get("logit_bias") or {}).items()}
        for char, value in bias.items():
            answer = char * 200 if value == 100 else answer.replace(char, "")
        return answer

    def logprobs(self, text: str, body: Fields) -> Fields | None:
        if not body.get("logprobs"):
            return None
        chance = 0.5 if "logprobs" in self.faults else -0.5
        top = [{"token": "x", "logprob": -1.0 if "logprobs" not in self.faults else -0.1, "bytes": [120]}] * 2
        top = top[: body.get("top_logprobs") or 0]
        return {
            "content": [{"token": c, "logprob": chance, "bytes": list(c.encode()), "top_logprobs": top} for c in text]
        }

    def names(self) -> tuple[str, ...]:
        return {"vllm": ("reasoning",), "sglang": ("reasoning_content",)}.get(
            self.style, ("reasoning_content", "reasoning")
        )

    def usage(self, prompt: int, said: list[tuple[str, str, str]]) -> Fields:
        drawn = sum(len(thinking + answer) for thinking, answer, _ in said)
        total = prompt + drawn + ("sum" in self.faults)
        thought = sum(len(thinking) for thinking, *_ in said)
        details = {"completion_tokens_details": {"reasoning_tokens": thought}}
        return {"prompt_tokens": prompt, "completion_tokens": drawn, "total_tokens": total, **details}

    # ---- how it is said ----------------------------------------------------------------------------------------------

    async def reply(self, request: Request, body: Fields, prompt: int, chat: bool) -> Response:
        said = [self.said(body, index, chat) for index in range(body.get("n") or 1)]
        kind = "chat.completion" if chat else "text_completion"
        head = {"id": "c-1", "object": kind, "created": 1, "model": self.name}
        if body.get("stream"):
            head["object"] += ".chunk" if chat else ""
            events = self.events(body, head, said, prompt, chat)
            return StreamingResponse(events, media_type="text/event-stream")
        self.running += 1
        try:
            await asyncio.sleep(self.first_s + self.token_s * sum(len(t + a) for t, a, _ in said))
        finally:
            self.running -= 1
        choices: list[Fields] = []
        for index, (thinking, answer, finish) in enumerate(said):
            choice: Fields = {
                "index": index,
                "finish_reason": finish,
                "logprobs": self.logprobs(thinking + answer, body),
            }
            if body.get("tool_choice") == "required":
                call = {"id": "call-1", "type": "function", "function": self.function(body)}
                message = {"role": "assistant", "content": None, "tool_calls": [call]}
                choices.append(choice | {"message": message, "finish_reason": "tool_calls"})
            elif chat:
                message = {"role": "assistant", "content": answer} | (
                    dict.fromkeys(self.names(), thinking) if thinking else {}
                )
                choices.append(choice | {"message": message})
            else:
                choices.append(choice | {"text": answer})
        return JSONResponse(head | {"choices": choices, "usage": self.usage(prompt, said)})

    def function(self, body: Fields) -> Fields:
        arguments = '{"city": "Par' if "arguments" in self.faults else '{"city": "Paris"}'
        return {"name": body["tools"][0]["function"]["name"], "arguments": arguments}

    async def events(
        self, body: Fields, head: Fields, said: list[tuple[str, str, str]], prompt: int, chat: bool
    ) -> AsyncIterator[bytes]:
        self.running += 1
        try:
            await asyncio.sleep(self.first_s)
            yield b": alive\n\n"
            usage = {"choices": [], "usage": self.usage(prompt, said)}
            if "usage" in self.faults:
                yield self.event(head | usage)
            for index, (thinking, answer, finish) in enumerate(said):
                for delta in self.deltas(body, thinking, answer):
                    if "id" in self.faults:
                        head = head | {"id": f"{head['id']}1"}
                    part: Fields = {"delta": delta} if chat else {"text": delta.get("content", "")}
                    text = delta.get("content") or next((delta[n] for n in self.names() if n in delta), "")
                    part |= {"index": index, "finish_reason": None, "logprobs": self.logprobs(text, body)}
                    yield self.event(head | {"choices": [part]})
                    await asyncio.sleep(self.token_s)
                end: Fields = {"delta": {}} if chat else {"text": ""}
                end |= {"index": index, "finish_reason": "tool_calls" if body.get("tool_choice") else finish}
                for _ in range(2 if "finish" in self.faults else 1):
                    yield self.event(head | {"choices": [end]})
            if "breaks" in self.faults:
                os._exit(3)
            if (body.get("stream_options") or {}).get("include_usage") and "usage" not in self.faults:
                yield self.event(head | usage)
            if "done" not in self.faults:
                yield b"data: [DONE]\n\n"
        finally:
            self.running -= "deaf" not in self.faults

    def deltas(self, body: Fields, thinking: str, answer: str) -> list[Fields]:
        role = {"role": "assistant"}
        if body.get("tool_choice") == "required":
            function, index = self.function(body), {} if "index" in self.faults else {"index": 0}
            begin = {
                **index,
                "id": "call-1",
                "type": "function",
                "function": {"name": function["name"], "arguments": ""},
            }
            more = {**index, "function": {"arguments": function["arguments"]}}
            return [role | {"tool_calls": [begin]}, {"tool_calls": [more]}]
        found: list[Fields] = [role | {"content": ""}]
        found += [dict.fromkeys(self.names(), char) for char in thinking]
        if thinking and answer and ("mixed" in self.faults or self.style == "vllm"):
            found[-1] |= {"content": answer[0]}
            answer = answer[1:]
        found += [{"content": "\ufffd" if "unicode" in self.faults and ord(c) > 0xFFFF else c} for c in answer]
        return [role | each for each in found] if "role" in self.faults else found

    def event(self, body: Fields) -> bytes:
        return b"data: " + json.dumps(body, ensure_ascii=False).encode() + b"\n\n"


def main() -> None:
    words = argparse.ArgumentParser()
    words.add_argument("words", nargs="*")  # serve MODEL
    words.add_argument("--model-path")
    words.add_argument("--served-model-name", required=True)
    words.add_argument("--host", required=True)
    words.add_argument("--port", type=int, required=True)
    given, _ = words.parse_known_args()
    setting = json.loads(os.environ.get("STAND_IN", "{}"))
    if record := setting.get("record"):
        environment = {name: os.environ.get(name) for name in ("VLLM_API_KEY", "FATHOM_API_KEY")}
        said = {"argv": sys.argv[1:], "environment": environment, "pid": os.getpid()}
        Path(record).write_text(json.dumps(said))
    print("loading weights", flush=True)
    if setting.get("dies"):
        print("CUDA out of memory", flush=True)
        sys.exit(7)
    time.sleep(setting.get("loading_s", 0))
    style = setting["style"]
    key = os.environ["VLLM_API_KEY"] if style == "vllm" else ""
    pace = {name: setting[name] for name in ("token_s", "repeats") if name in setting}
    server = StandIn(tuple(setting.get("faults", ())), style, key, given.served_model_name, **pace)
    signal.signal(signal.SIGUSR1, lambda *_: setattr(server, "token_s", 0.0))  # so that a test need not wait
    uvicorn.run(server.app, host=given.host, port=given.port, log_level="warning", timeout_graceful_shutdown=1)


if __name__ == "__main__":
    main()
