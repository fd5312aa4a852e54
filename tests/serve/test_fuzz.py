"""Bodies that nobody thought of: every answer is JSON, and none is a 5xx of the server's own making."""

import json
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

QUIET = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]
PATHS = ("/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize", "/grade")


def fuzz(served: Any, cases: int) -> int:
    """Ask what the OpenAPI schema allows and what it does not; how many were asked."""
    asked = 0
    schema = schemathesis.openapi.from_dict(served.app.openapi())
    schema.config.update(base_url=served.url)
    for path in PATHS:

        @given(case=schema[path]["POST"].as_strategy())
        @settings(
            max_examples=cases // len(PATHS),
            deadline=None,
            suppress_health_check=QUIET,
            phases=[Phase.generate],
            database=None,
            derandomize=True,
        )
        def ask(case: Any) -> None:
            nonlocal asked
            asked += 1
            body = case.body | {"model": None} if isinstance(case.body, dict) else None  # a stranger's model is a 404
            reply = served.http.post(case.path, json=body)
            assert reply.status_code in (200, 400), (reply.text, body)
            assert reply.status_code == 200 or set(reply.json()) == {"error"}

        ask()
    return asked


WEIRD = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8) | st.just("\ud800"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
FIELDS = [
    "prompt",
    "messages",
    "n",
    "stream",
    "stream_options",
    "max_tokens",
    "min_tokens",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "stop",
    "presence_penalty",
    "logit_bias",
    "stop_token_ids",
    "logprobs",
    "top_logprobs",
    "echo",
    "tools",
    "tool_choice",
    "response_format",
    "reasoning_effort",
    "thinking",
    "chat_template_kwargs",
    "thinking_token_budget",
    "min_thinking_tokens",
    "continue_final_message",
    "add_generation_prompt",
    "trace",
    "question",
    "answer",
    "tokens",
]


def test_cases_of_the_schema(shared: Any) -> None:
    assert fuzz(shared, 40) >= 30


@pytest.mark.slow
def test_two_thousand_cases_of_the_schema(shared: Any) -> None:
    assert fuzz(shared, 2400) >= 2000


@given(path=st.sampled_from(PATHS), changes=st.dictionaries(st.sampled_from(FIELDS), WEIRD, min_size=1, max_size=2))
@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[*QUIET, HealthCheck.function_scoped_fixture],
    database=None,
    derandomize=True,
)
def test_a_good_body_with_weird_fields(shared: Any, path: str, changes: dict[str, Any]) -> None:
    good = {
        "prompt": "8",
        "messages": [{"role": "user", "content": "8"}],
        "tokens": [1],
        "max_tokens": 2,
        "question": "8,2:10",
        "answer": "8+2",
    }
    body = json.dumps(good | changes)
    reply = shared.http.post(path, content=body, headers={"content-type": "application/json"})
    assert reply.status_code in (200, 400), (reply.text, body)
