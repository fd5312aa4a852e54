"""The application: routes, errors in one shape, start and end."""

import asyncio
import re
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from fathom import __version__
from fathom.config.published import to_published
from fathom.infer.speaker import load_speaker
from fathom.serve.chat_page import add_page
from fathom.serve.desk import Desk
from fathom.serve.errors import ApiError, error_response, json_response
from fathom.serve.gate import Gate, unknown_header
from fathom.serve.grading import grading_routes, verifier_of
from fathom.serve.metrics import CONTENT_TYPE
from fathom.serve.options import ServeOptions
from fathom.serve.prompts import render
from fathom.serve.routes import completion_routes, encode_text
from fathom.serve.schema import DetokenizeRequest, ReloadRequest, TokenizeRequest
from fathom.serve.stages import Stages

# a part of an error's place that is a field and no name of a kind, such as `str` or `list[TextPart]`
FIELD = re.compile(r"(?!(?:str|int|float|bool|constrained|list|literal|dict|function)\b)[a-z_]+")


def build_app(stages: Stages, source: Path, keys: Sequence[str] = ()) -> FastAPI:
    """The server of a model and of the stages before it; `source` is where newer weights are looked for."""
    desk = stages.desk

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncGenerator[None]:
        desk.loop.start()
        yield
        await stages.stop()

    app = FastAPI(title="Fathom", version=__version__, lifespan=life, docs_url=None, redoc_url=None)
    app.include_router(completion_routes(stages))
    app.include_router(grading_routes(verifier_of(source, desk.speaker.uses_template)))
    _add_models(app, stages)
    _add_tokens(app, stages)
    _add_state(app, desk)
    _add_reload(app, stages, source)
    enclose(app, desk.options, keys)
    return app


def enclose(app: FastAPI, options: ServeOptions, keys: Sequence[str]) -> None:
    """What stands around every application's own routes: the page, errors in OpenAI's shape, and the gate."""
    add_page(app)
    _add_errors(app)
    app.add_middleware(Gate, keys=keys, body_bytes=options.body_bytes)
    if options.cors_origin:  # in front of the gate: a browser asks for leave without a key
        origins, headers = list(options.cors_origin), ["authorization", "content-type"]
        app.add_middleware(CORSMiddleware, allow_origins=origins, allow_headers=headers, allow_methods=["GET", "POST"])


# FastAPI finds routes by their decorators; to pyright the functions look unused.
# pyright: reportUnusedFunction=false


def _add_models(app: FastAPI, stages: Stages) -> None:
    @app.get("/v1/models")
    async def models() -> Response:
        """The model that is served, then other stages of its run."""
        return json_response({"object": "list", "data": stages.entries()})

    @app.get("/v1/models/{model:path}")
    async def model(model: str) -> Response:
        """A model by its id, which may have slashes."""
        return json_response(stages.entry(model))


def _add_tokens(app: FastAPI, stages: Stages) -> None:
    desk = stages.desk  # the stages of a run have one tokenizer

    @app.post("/tokenize")
    async def tokenize(body: TokenizeRequest) -> Response:
        """Ids of a text, or of a dialogue in the model's template."""
        stages.require(body.model)
        if (body.prompt is None) == (body.messages is None):
            raise ApiError(400, "give either prompt or messages", param="prompt")
        ids = _ids(desk, body)
        fields = {"count": len(ids), "max_model_len": desk.limits.context, "tokens": ids}
        return json_response(fields, headers=unknown_header(body.unknown))

    @app.post("/detokenize")
    async def detokenize(body: DetokenizeRequest) -> Response:
        """The text of ids."""
        stages.require(body.model)
        size = desk.speaker.model.config.vocab_size
        if strangers := [token for token in body.tokens if token >= size]:
            raise ApiError(400, f"tokens holds {strangers[0]}, outside the vocabulary of {size}", param="tokens")
        text = desk.speaker.tokenizer.decode(body.tokens)
        return json_response({"prompt": text}, headers=unknown_header(body.unknown))


def _ids(desk: Desk, body: TokenizeRequest) -> list[int]:
    if body.messages is not None:
        return render(desk.speaker, body.messages, body.chat_template_kwargs).ids
    text = body.prompt or ""
    try:
        return (
            desk.speaker.tokenizer.encode(text, whole=True)
            if body.add_special_tokens is False
            else encode_text(desk, text)
        )
    except ValueError as error:
        raise ApiError(400, str(error), param="prompt") from error


def _add_state(app: FastAPI, desk: Desk) -> None:
    try:
        published = to_published(desk.speaker.model.config)
    except ValueError:  # a family without a published form
        published = None

    @app.get("/health")
    async def health() -> Response:
        """200 while the engine runs."""
        status = "ok" if desk.loop.alive else f"the engine is not running: {desk.loop.failure or 'stopped'}"
        return json_response({"status": status}, 200 if desk.loop.alive else 503)

    @app.get("/ready")
    async def ready() -> Response:
        """200 while requests are let in."""
        if desk.loop.alive and not desk.draining:
            return json_response({"status": "ready"})
        return json_response({"status": "draining" if desk.draining else "dead"}, 503, {"retry-after": "10"})

    @app.get("/metrics")
    async def metrics() -> Response:
        """For Prometheus."""
        return Response(desk.metrics.text(), headers={"content-type": CONTENT_TYPE})

    @app.get("/version")
    async def version() -> Response:
        """Of the package and of the weights; the architecture as a published config.json has it, and where it runs."""
        weight = desk.speaker.model.embedding.weight
        dtype = str(weight.dtype).removeprefix("torch.")
        about = {"config": published, "dtype": dtype, "device": weight.device.type}
        return json_response({"version": __version__, "weights": desk.version} | about)


def _add_reload(app: FastAPI, stages: Stages, source: Path) -> None:
    desk, one_at_a_time = stages.desk, asyncio.Lock()

    @app.post("/admin/reload")
    async def reload(body: ReloadRequest) -> Response:
        """Take up the newest weights of what is served, between two tokens of whatever is being written."""
        desk.require_open()
        if one_at_a_time.locked():
            raise ApiError(409, "weights are being reloaded already; wait for that", code="busy")
        async with one_at_a_time:
            return json_response(await _reload(stages, source, body), headers=unknown_header(body.unknown))


async def _reload(stages: Stages, source: Path, body: ReloadRequest) -> dict[str, Any]:
    desk, old = stages.desk, stages.desk.speaker
    try:
        new = await asyncio.to_thread(load_speaker, source, old.model.embedding.weight.device)
        if new.tokenizer.hash != old.tokenizer.hash:
            raise ValueError(f"{new.name} has another tokenizer than the model being served; start the server anew")
        weights = new.model.state_dict()
        desk.version = await desk.ask_engine(lambda engine: engine.swap_weights(weights, in_flight=body.in_flight))
    except (ValueError, OSError) as error:
        raise ApiError(409, str(error), code="reload_failed") from error
    stages.follow(new)
    return {"version": desk.version, "checkpoint": new.name}


def _add_errors(app: FastAPI) -> None:
    """Answer every error in the one shape that clients read."""

    @app.exception_handler(ApiError)
    async def refused(_: Request, error: ApiError) -> Response:
        return error_response(error)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        return error_response(explain(error))

    @app.exception_handler(HTTPException)
    async def failed(_: Request, error: HTTPException) -> Response:
        return error_response(ApiError(error.status_code, str(error.detail)))

    @app.exception_handler(ClientDisconnect)
    async def left(_: Request, error: ClientDisconnect) -> Response:
        return Response(status_code=499)  # which nobody reads

    @app.exception_handler(Exception)
    async def broken(_: Request, error: Exception) -> Response:
        return error_response(ApiError(500, "the server made a mistake; its log says more"))


def explain(error: RequestValidationError) -> ApiError:
    """The most telling of what is wrong with a body, as one sentence, and the field it is in."""
    first = min(error.errors(), key=_vagueness)
    place = [part for part in first["loc"][1:] if isinstance(part, int) or FIELD.fullmatch(part)]
    message = str(first["msg"]).removeprefix("Value error, ")
    if first["type"] == "json_invalid":
        return ApiError(400, f"the body is no JSON: {first.get('ctx', {}).get('error', message)}")
    if not place:  # a field that is refused by name
        return ApiError(400, message, param=message.split()[0] if message.endswith("leave it out") else None)
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).lstrip(".")
    return ApiError(400, f"{path}: {message}", param=str(place[0]))


def _vagueness(found: Mapping[str, Any]) -> tuple[bool, int]:
    """A field that may be of several kinds has an error for each: the kind that nearly fits says most."""
    return str(found["type"]).endswith("_type"), -len(found["loc"])
