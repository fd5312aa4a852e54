"""The server in front of an engine that runs as a child: the same gate, limits and shapes as around our own."""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
from fastapi import FastAPI, Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from fathom import __version__
from fathom.serve.answers import DONE, KEEP_ALIVE, STREAM_HEADERS, unless_left
from fathom.serve.app import enclose
from fathom.serve.child import Child
from fathom.serve.errors import ApiError, json_response, to_json
from fathom.serve.options import ServeOptions
from fathom.serve.translate import Answer, to_engine, to_error

RETRY_S = 5  # what a client waits that found the queue full
PROBE_S = 5.0  # that the engine has to say it is well

# FastAPI finds routes by their decorators; to pyright the functions look unused.
# pyright: reportUnusedFunction=false


class Front:
    """Who is let in to the engine, and how it is asked."""

    def __init__(self, options: ServeOptions, model: str, child: Child, url: str, key: str) -> None:
        self.options, self.model, self.child = options, model, child
        self.draining = False
        self.inside = 0  # completions
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        headers = {"authorization": f"Bearer {key}"}
        self.http = httpx.AsyncClient(base_url=url, headers=headers, timeout=None, limits=limits, trust_env=False)

    async def well(self) -> bool:
        """Whether the engine runs and says that it is well."""
        if not self.child.alive:
            return False
        try:
            return (await self.http.get("/health", timeout=PROBE_S)).status_code == 200
        except httpx.HTTPError:
            return False

    async def drain(self, seconds: float) -> None:
        """Let nobody in any more and wait for those inside; after `seconds` the rest fail, with the engine."""
        self.draining = True
        deadline = time.monotonic() + seconds
        while self.inside and time.monotonic() < deadline and self.child.alive:
            await asyncio.sleep(0.02)
        await asyncio.to_thread(self.child.end)

    def let_in(self, samples: int) -> None:
        """Count completions in, or raise the ApiError that says why not."""
        if not self.child.alive:
            raise self.dead()
        if self.draining:
            raise ApiError(503, "the server is shutting down", code="draining", retry_after_s=10)
        most = self.options.rows + self.options.queue
        if self.inside and self.inside + samples > most:
            message = f"{self.inside} completions are inside, and {samples} more exceed the {most} that this server "
            raise ApiError(429, f"{message}takes; try again later", code="queue_full", retry_after_s=RETRY_S)
        self.inside += samples

    async def ask(self, method: str, path: str, body: Any = None, name: str = "") -> httpx.Response:
        """The engine's answer, unread; ApiError for a refusal or where there is no engine."""
        headers = {"content-type": "application/json"} | ({"x-request-id": name} if name else {})
        content = None if body is None else json.dumps(body).encode()  # half a surrogate pair goes as its escape
        request = self.http.build_request(method, path, content=content, headers=headers)
        try:
            response = await self.http.send(request, stream=True)
            if response.status_code < 400:
                return response
            said = await response.aread()
        except httpx.HTTPError as error:
            raise self.dead() from error
        raise to_error(response.status_code, said, response.headers)

    async def read(self, method: str, path: str, body: Any = None, name: str = "") -> httpx.Response:
        """The engine's answer, whole."""
        response = await self.ask(method, path, body, name)
        try:
            await response.aread()
        except httpx.HTTPError as error:
            raise self.dead() from error
        finally:
            await response.aclose()
        return response

    def dead(self) -> ApiError:
        """The answer where the engine gave none."""
        state = "does not answer yet" if self.child.alive else "is not running"
        return ApiError(503, f"the engine {self.options.engine} {state}", code="engine_dead", retry_after_s=10)


def build_front(front: Front, keys: tuple[str, ...]) -> FastAPI:
    """The application."""

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncGenerator[None]:
        yield
        await front.http.aclose()

    app = FastAPI(title="Fathom", version=__version__, lifespan=life, docs_url=None, redoc_url=None)
    _add_state(app, front)
    _add_models(app, front)
    _add_completions(app, front)
    enclose(app, front.options, keys)
    return app


def _add_state(app: FastAPI, front: Front) -> None:
    @app.get("/health")
    async def health() -> Response:
        """200 while the engine runs and says that it is well."""
        if await front.well():
            return json_response({"status": "ok"})
        return json_response({"status": front.dead().message}, 503)

    @app.get("/ready")
    async def ready() -> Response:
        """200 while requests are let in."""
        if front.draining or not await front.well():
            state = "draining" if front.draining else "loading" if front.child.alive else "dead"
            return json_response({"status": state}, 503, {"retry-after": "10"})
        return json_response({"status": "ready"})

    @app.get("/metrics")
    async def metrics() -> Response:
        """The engine's own, for Prometheus."""
        found = await front.read("GET", "/metrics")
        return Response(found.content, headers={"content-type": found.headers.get("content-type", "text/plain")})

    @app.get("/version")
    async def version() -> Response:
        """Of the package, and the engine's name."""
        return json_response({"version": __version__, "engine": front.options.engine})


def _add_models(app: FastAPI, front: Front) -> None:
    async def listed() -> dict[str, Any]:
        return (await front.read("GET", "/v1/models")).json()

    @app.get("/v1/models")
    async def models() -> Response:
        """What the engine serves."""
        return json_response(await listed())

    @app.get("/v1/models/{model:path}")
    async def one(model: str) -> Response:
        """A model by its id, which may have slashes."""
        for entry in (await listed()).get("data", []):
            if entry.get("id") == model:
                return json_response(entry)
        raise ApiError(404, f"the model {model!r} is not served", "model", "model_not_found")


def _add_completions(app: FastAPI, front: Front) -> None:
    @app.post("/v1/chat/completions")
    async def chat(http: Request) -> Response:
        """Complete a dialogue."""
        body, answer = to_engine(front.options, front.model, await _read(http))
        return await _complete(front, http, body, answer)

    @app.post("/v1/completions")
    async def complete(http: Request) -> Response:
        """Complete texts."""
        body = {"model": front.model} | await _read(http)
        return await _complete(front, http, body, None)

    @app.post("/tokenize")
    @app.post("/detokenize")
    async def tokens(http: Request) -> Response:
        """Ids of a text, and back."""
        body = {"model": front.model} | await _read(http)
        return json_response((await front.read("POST", http.url.path, body, http.state.name)).json())


async def _read(http: Request) -> dict[str, Any]:
    try:
        body = json.loads(await http.body())
    except ValueError as error:
        raise ApiError(400, f"the body is no JSON: {error}") from error
    if not isinstance(body, dict):
        raise ApiError(400, "the body must be a JSON object")
    return body  # pyright: ignore[reportUnknownVariableType]


async def _complete(front: Front, http: Request, body: dict[str, Any], answer: Answer | None) -> Response:
    samples = _samples(front, body)
    if not isinstance(body.get("stream"), bool | None):
        raise ApiError(400, "stream: give true or false", param="stream")
    front.let_in(samples)
    path, name, streams = http.url.path, http.state.name, body.get("stream") or False
    stream: Stream | None = None
    try:
        if streams:
            stream = Stream(front, await unless_left(http, front.ask("POST", path, body, name)), answer, samples)
            return stream
        found = (await unless_left(http, front.read("POST", path, body, name))).json()
        return json_response(answer.whole(found) if answer else found)
    finally:
        if stream is None:
            front.inside -= samples


def _samples(front: Front, body: dict[str, Any]) -> int:
    """How many completions a request asks for; ApiError where that is no number or too many."""
    n = 1 if body.get("n") is None else body["n"]
    if type(n) is not int or not 1 <= n <= front.options.choices:
        raise ApiError(400, f"n={n!r} is not served; give 1 to {front.options.choices}", param="n")
    prompt = body.get("prompt")
    several = isinstance(prompt, list) and prompt and isinstance(prompt[0], (str, list))
    return n * len(prompt) if several and isinstance(prompt, list) else n  # pyright: ignore[reportUnknownArgumentType]


class Stream(StreamingResponse):
    """The engine's events in our shape. What it holds is given back even where the client left before it began."""

    def __init__(self, front: Front, engine: httpx.Response, answer: Answer | None, samples: int) -> None:
        super().__init__(_events(front, engine, answer), headers=STREAM_HEADERS, media_type="text/event-stream")
        self._front, self._engine, self._samples = front, engine, samples

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._front.inside -= self._samples
            await self._engine.aclose()  # which makes the engine drop what it still writes


async def _events(front: Front, engine: httpx.Response, answer: Answer | None) -> AsyncIterator[bytes]:
    """Server-sent events: chunks, comments in silence, an error where the engine broke off, `[DONE]`."""
    done = False
    try:
        async for line in _lines(engine, front.options.keep_alive_s):
            data = line.removeprefix("data:").strip() if line and line.startswith("data:") else None
            if data == "[DONE]":
                done = True
                break
            if data is not None:
                yield _translate(data, answer)
            elif line is None or line.startswith(":"):
                yield KEEP_ALIVE
        if not done:
            raise front.dead()
    except (httpx.HTTPError, ApiError):
        yield b"data: " + to_json(front.dead().body) + b"\n\n"
    yield DONE


def _translate(data: str, answer: Answer | None) -> bytes:
    body = json.loads(data)
    if "error" in body or "choices" not in body:
        return b"data: " + to_json(to_error(int(body.get("code") or 500), data.encode(), {}).body) + b"\n\n"
    return b"".join(b"data: " + to_json(each) + b"\n\n" for each in (answer.chunks(body) if answer else [body]))


async def _lines(engine: httpx.Response, silence_s: float) -> AsyncIterator[str | None]:
    """The lines of a stream, and None for every so many seconds without one."""
    lines = engine.aiter_lines()
    coming: asyncio.Future[str] = asyncio.ensure_future(anext(lines))
    try:
        while True:
            await asyncio.wait({coming}, timeout=silence_s)
            if not coming.done():
                yield None
                continue
            try:
                line = coming.result()
            except StopAsyncIteration:
                return
            coming = asyncio.ensure_future(anext(lines))
            yield line
    finally:
        coming.cancel()
