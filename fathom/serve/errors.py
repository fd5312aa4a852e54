"""Errors as the OpenAI clients read them: {"error": {message, type, param, code}}."""

import json
from collections.abc import Mapping
from typing import Any

from starlette.responses import Response

TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    422: "invalid_request_error",
    429: "rate_limit_error",
    503: "overloaded_error",
}


class ApiError(Exception):
    """A request that is answered with an error."""

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.retry_after_s = retry_after_s

    @property
    def body(self) -> dict[str, Any]:
        """What the client reads."""
        kind = TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        code = self.code or ("server_error" if self.status >= 500 else None)
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": code}}

    @property
    def headers(self) -> dict[str, str]:
        """When to come again, where that helps."""
        return {} if self.retry_after_s is None else {"retry-after": str(self.retry_after_s)}


def to_json(content: object) -> bytes:
    """Compact UTF-8; half a surrogate pair, which an echoed field may hold, is written as its escape."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.encode("utf-8", errors="backslashreplace")


def json_response(content: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A JSON body that curl shows with its line end."""
    return Response(to_json(content) + b"\n", status, dict(headers or {}), "application/json")


def error_response(error: ApiError) -> Response:
    """The answer to a request that failed."""
    return json_response(error.body, error.status, error.headers)
