"""Answers held to JSON, judged by another package's validator."""

import json
from typing import Any

import openai
import pytest
from jsonschema_rs import validator_for

pytest.importorskip("xgrammar")
MESSAGES = [{"role": "user", "content": "8,2,4:10"}]
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "count": {"type": "integer", "minimum": 0, "maximum": 99},
        "tags": {"type": "array", "items": {"enum": ["a", "\u00e9"]}, "maxItems": 3},
    },
    "required": ["name", "count", "tags"],
    "additionalProperties": False,
}
FORM = {"type": "json_schema", "json_schema": {"name": "thing", "schema": SCHEMA, "strict": True}}


def ask(served: Any, **fields: Any) -> Any:
    law = {"temperature": 1.0, "max_tokens": 200, "response_format": FORM}
    return served.openai.chat.completions.create(model="tiny/model", messages=MESSAGES, **law | fields)


@pytest.mark.parametrize("seed", range(2))
def test_answers_fit_their_schema_and_thinking_is_free(shared: Any, seed: int) -> None:
    free = ask(shared, seed=seed, response_format={"type": "text"}).choices[0].message
    reply = ask(shared, seed=seed, n=2)
    for choice in reply.choices:
        assert choice.finish_reason == "stop"
        found = json.loads(choice.message.content)
        assert validator_for(SCHEMA).is_valid(found), found
    assert reply.choices[0].message.model_extra == free.model_extra  # untouched


def test_streams_and_budgets_keep_the_grammar(shared: Any) -> None:
    whole = ask(shared, seed=1, extra_body={"thinking_token_budget": 3})
    chunks = list(ask(shared, seed=1, extra_body={"thinking_token_budget": 3}, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.choices[0].message.content
    assert validator_for(SCHEMA).is_valid(json.loads(whole.choices[0].message.content))
    assert whole.usage.completion_tokens_details.reasoning_tokens == 3


def test_a_model_that_does_not_think_is_held_from_the_start(shared: Any) -> None:
    reply = ask(shared, seed=2, reasoning_effort="none").choices[0].message
    assert validator_for(SCHEMA).is_valid(json.loads(reply.content))
    assert reply.model_extra == {}


def test_any_json_object(shared: Any) -> None:
    reply = ask(shared, response_format={"type": "json_object"}, seed=3, max_tokens=400, temperature=0.7).choices[0]
    if reply.finish_reason == "stop":
        assert isinstance(json.loads(reply.message.content), dict)
    assert reply.message.content[:1] == "{"


@pytest.mark.parametrize(
    ("form", "says"),
    [
        ({"type": "json_schema"}, "schema is missing"),
        ({"type": "json_schema", "json_schema": {"name": "x"}}, "schema is missing"),
        ({"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nonsense"}}}, "not understood"),
        ({"type": "regex"}, "'text'"),
    ],
)
def test_forms_that_are_none(shared: Any, form: Any, says: str) -> None:
    with pytest.raises(openai.BadRequestError, match=says) as refused:
        ask(shared, response_format=form)
    assert refused.value.param == "response_format"
