"""What every request passes before its route: key, size, form; and what is written down of it."""

import base64
import binascii
import hashlib
import hmac
import json
import logging
import re
import secrets
import time
from collections.abc import Iterable, Sequence
from urllib.parse import quote

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fathom.serve.errors import ApiError, error_response

log = logging.getLogger("fathom.serve")
OPEN = frozenset({"/health", "/ready"})  # probes have no key; every other path, known or not, is guarded
REQUEST_ID = re.compile(r"[\w.:-]{1,128}", re.ASCII)
SAFETY = {  # of every answer: a browser loads and runs nothing but the page's own files
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}


class Gate:
    """ASGI middleware: names every request, logs it without its text, and turns away those without a key."""

    def __init__(self, app: ASGIApp, keys: Sequence[str], body_bytes: int) -> None:
        self._app, self._body_bytes = app, body_bytes
        self._keys = [_digest(key) for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or pass it on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        name = given if REQUEST_ID.fullmatch(given) else f"req-{secrets.token_hex(8)}"
        began, status, notes = time.monotonic(), 0, scope.setdefault("state", {}).setdefault("notes", {})
        scope["state"]["name"] = name

        async def reply(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message).update({"x-request-id": name} | SAFETY)
            await send(message)

        try:
            if error := self._refuse(scope, headers):
                response = error_response(error)
                if error.status == 401:
                    response.headers["www-authenticate"] = 'Basic realm="fathom", charset="UTF-8"'
                await response(scope, receive, reply)
            else:
                await self._app(scope, self._measured(receive), reply)
        except Exception:
            status = 500  # which the application answers further out
            raise
        finally:
            record = {"id": name, "method": scope["method"], "path": scope["path"], "status": status or 499}
            record |= {"seconds": round(time.monotonic() - began, 4)} | notes
            log.log(logging.DEBUG if scope["path"] in OPEN else logging.INFO, json.dumps(record))

    def _refuse(self, scope: Scope, headers: Headers) -> ApiError | None:
        if self._keys and scope["path"] not in OPEN and not self._knows(headers):
            return ApiError(401, "no valid API key was given; send Authorization: Bearer KEY", code="invalid_api_key")
        length = headers.get("content-length", "0")
        if length.isascii() and length.isdigit() and int(length) > self._body_bytes:
            return self._too_large(f"{length} bytes")
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if scope["method"] == "POST" and kind != "application/json":
            return ApiError(415, f"content-type {kind[:80]!r} is not served; send application/json", code="media_type")
        return None

    def _knows(self, headers: Headers) -> bool:
        """Whether a key was given that counts. All are compared, in constant time."""
        digest = _digest(_credential(headers.get("authorization", "")))
        return any([hmac.compare_digest(digest, key) for key in self._keys])

    def _measured(self, receive: Receive) -> Receive:
        """`receive` that stops at the most bytes a body may have."""
        read = 0

        async def measured() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > self._body_bytes:
                raise HTTPException(413, self._too_large("more").message)
            return message

        return measured

    def _too_large(self, size: str) -> ApiError:
        return ApiError(
            413, f"the request has {size}, the server takes {self._body_bytes} bytes", code="request_too_large"
        )


def _credential(header: str) -> str:
    """The key of `Bearer KEY`, or the password of a browser's Basic form."""
    scheme, _, value = header.partition(" ")
    if scheme.lower() != "basic":
        return value.strip() if scheme.lower() == "bearer" else ""
    try:
        return base64.b64decode(value, validate=True).decode().partition(":")[2]
    except (binascii.Error, UnicodeDecodeError):
        return ""


def _digest(key: str) -> bytes:
    """Keys of all lengths compare in equal time by their digests."""
    return hashlib.sha256(key.encode()).digest()


def unknown_header(names: Iterable[str]) -> dict[str, str]:
    """The header that lists fields which were accepted and mean nothing here."""
    listed = ",".join(quote(name[:64], safe="") for name in list(names)[:32])
    return {"x-fathom-ignored": listed} if listed else {}
