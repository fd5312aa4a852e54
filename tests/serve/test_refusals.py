"""What is refused, and in which words."""

import base64
import json
import re
from pathlib import Path
from typing import Any

import openai
import pytest

from fathom.serve.options import ServeOptions, read_keys
from fathom.serve.schema import UNSUPPORTED

MESSAGES = [{"role": "user", "content": "8,2,4:10"}]
IMAGE = {"type": "image_url", "image_url": {"url": "http://localhost/x.png"}}


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("temperature", -1, "greater than or equal to 0"),
        ("temperature", "hot", "valid number"),
        ("top_p", 0, "greater than 0"),
        ("min_p", 2, "less than or equal to 1"),
        ("top_k", -2, "greater than or equal to -1"),
        ("presence_penalty", 3, "less than or equal to 2"),
        ("frequency_penalty", -3, "greater than or equal to -2"),
        ("repetition_penalty", 0, "greater than 0"),
        ("n", 0, "greater than or equal to 1"),
        ("n", 17, "more than the 16 choices"),
        ("max_tokens", 0, "greater than or equal to 1"),
        ("max_completion_tokens", 600, "the context holds 512"),
        ("min_tokens", 600, "raise max_tokens"),
        ("stop", ["a", "b", "c", "d", "e"], "at most 4"),
        ("stop", "", "at least 1 character"),
        ("stop_token_ids", [9999], "outside the model's vocabulary"),
        ("logit_bias", {"x": 1}, "no token id"),
        ("logit_bias", {"99999": 1}, "outside the model's vocabulary"),
        ("logit_bias", {"5": 101}, "less than or equal to 100"),
        ("top_logprobs", 2, "needs logprobs"),
        ("seed", 2**63, "less than"),
        ("reasoning_effort", "huge", "'none'"),
        ("messages", [], "at least 1 item"),
        ("messages", [{"role": "user", "content": [IMAGE]}], "'text'"),
        ("messages", [{"role": "oracle", "content": "x"}], "'system'"),
        ("messages", [{"role": "system", "content": "x"}, *MESSAGES], "user and assistant in turns"),
        (
            "messages",
            [{"role": "user", "content": "1" * 5000}],
            "the prompt has 1671 tokens, but the context holds 512",
        ),
        ("messages", [{"role": "user", "content": "half \ud800"}], "surrogate"),
        ("chat_template_kwargs", {"colour": 1}, "chat_template_kwargs.colour"),
    ],
)
def test_a_bad_field_is_named(shared: Any, field: str, value: Any, says: str) -> None:
    reply = shared.http.post(
        "/v1/chat/completions",
        content=json.dumps({"messages": MESSAGES, field: value}),
        headers={"content-type": "application/json"},
    )
    error = reply.json()["error"]
    assert reply.status_code == 400
    assert says in error["message"]
    assert error["type"] == "invalid_request_error"
    if field != "chat_template_kwargs":
        assert error["param"] == field


@pytest.mark.parametrize("field", UNSUPPORTED)
def test_a_known_field_that_is_not_honoured_is_refused(shared: Any, field: str) -> None:
    with pytest.raises(openai.BadRequestError, match=f"{field} is not supported") as refused:
        shared.openai.chat.completions.create(model="tiny/model", messages=MESSAGES, extra_body={field: ["x"]})
    assert refused.value.param == field


def test_another_model_is_not_found(shared: Any) -> None:
    with pytest.raises(openai.NotFoundError, match="'tiny/model'") as refused:
        shared.openai.chat.completions.create(model="gpt", messages=MESSAGES)
    assert (refused.value.param, refused.value.code) == ("model", "model_not_found")


def test_too_long_a_completion_is_counted(shared: Any) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        shared.openai.completions.create(model="tiny/model", prompt=[5] * 100, max_tokens=413)
    assert "100 tokens and max_tokens=413, 513 together, but the context holds 512" in refused.value.message
    assert refused.value.code == "context_length_exceeded"
    assert (
        shared.openai.completions.create(model="tiny/model", prompt=[5] * 511, max_tokens=1).usage.total_tokens == 512
    )


@pytest.mark.parametrize(
    ("content", "kind", "status", "says"),
    [
        (b"{", "application/json", 400, "no JSON"),
        (b"[" * 20000, "application/json", 400, ""),
        (b'{"messages": NaN}', "application/json", 400, "messages"),
        (b"\xff", "application/json", 400, ""),
        (b"{}", "text/plain", 415, "send application/json"),
        (b"a=b", "application/x-www-form-urlencoded", 415, "send application/json"),
        (b"", "application/json", 400, ""),
        (b"x" * (5 << 20), "application/json", 413, "takes 4194304 bytes"),
    ],
)
def test_bodies_that_are_none(shared: Any, content: bytes, kind: str, status: int, says: str) -> None:
    for body in (content, iter([content])):  # with a length and in chunks
        reply = shared.http.post("/v1/chat/completions", content=body, headers={"content-type": kind})
        assert reply.status_code == status
        assert says in reply.json()["error"]["message"] or not isinstance(body, bytes)
        assert reply.headers["x-request-id"]


def test_unknown_routes_and_methods_are_json_too(shared: Any) -> None:
    assert shared.http.get("/v1/chat/completions").status_code == 405
    assert shared.http.get("/v2").json()["error"]["type"] == "not_found_error"


def paths(app: Any) -> list[tuple[str, str]]:
    found = app.openapi()["paths"]
    return [(method, re.sub(r"{.*}", "x", path)) for path, methods in found.items() for method in methods]


def test_every_route_but_the_probes_needs_a_key(serve: Any) -> None:
    served = serve(keys=("first-key-1", "second-key-2"))
    routes = paths(served.app)
    assert ("post", "/v1/chat/completions") in routes and ("get", "/metrics") in routes
    for method, path in [*routes, ("get", "/openapi.json"), ("get", "/nowhere"), ("post", "/health/"), ("get", "/")]:
        status = served.http.request(method, path, headers={"authorization": "Bearer wrong-key-1"}).status_code
        assert (status == 401) == (path not in ("/health", "/ready")), path
    for header in ("", "Bearer", "Bearer first-key", "Bearer first-key-12", "Basic !", "Bearer \u00e9\u00e9"):
        reply = served.http.get("/v1/models", headers={"authorization": header.encode("latin-1")})
        assert reply.status_code == 401
        assert set(reply.json()["error"]) == {"message", "type", "param", "code"}
    browser = "Basic " + base64.b64encode(b"anyone:first-key-1").decode()
    for header in ("Bearer first-key-1", "bearer second-key-2", browser):
        assert served.http.get("/v1/models", headers={"authorization": header}).status_code == 200
    with pytest.raises(openai.AuthenticationError) as refused:
        served.openai.with_options(api_key="wrong").models.list()
    assert refused.value.code == "invalid_api_key"


def test_other_origins_may_not_ask_unless_named(shared: Any, serve: Any) -> None:
    ask = {"origin": "https://page.example", "access-control-request-method": "POST"}
    assert "access-control-allow-origin" not in shared.http.options("/v1/models", headers=ask).headers
    named = serve(cors_origin=("https://page.example",), keys=("first-key-1",))
    leave = named.http.options("/v1/models", headers=ask | {"authorization": ""})  # browsers send no key with this
    assert (leave.status_code, leave.headers["access-control-allow-origin"]) == (200, "https://page.example")
    stranger = {"origin": "https://other.example"}
    assert "access-control-allow-origin" not in named.http.get("/v1/models", headers=stranger).headers


def test_a_public_address_needs_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FATHOM_API_KEY", raising=False)
    for host in ("0.0.0.0", "::", "10.0.0.1", "example.org"):
        with pytest.raises(ValueError, match="there is no API key"):
            read_keys(ServeOptions(host=host))
    assert read_keys(ServeOptions()) == read_keys(ServeOptions(host="::1")) == ()
    file = tmp_path / "keys.txt"
    file.write_text("# ours\nfirst-key-1\n\nsecond-key-2\nfirst-key-1\n")
    monkeypatch.setenv("FATHOM_API_KEY", "third-key-3, ")
    options = ServeOptions(host="0.0.0.0", api_key_file=file)
    assert read_keys(options) == ("third-key-3", "first-key-1", "second-key-2")
    file.write_text("short\n")
    with pytest.raises(ValueError, match="shorter than 8"):
        read_keys(options)
