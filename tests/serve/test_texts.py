"""Plain completions, ids of texts, and what operators read."""

import json
import time
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from fathom import __version__
from fathom.config.published import to_published
from fathom.infer.engine import Engine
from fathom.infer.request import Request

MODEL = "tiny/model"


def complete(served: Any, prompt: Any, **fields: Any) -> Any:
    return served.openai.completions.create(model=MODEL, prompt=prompt, **{"temperature": 0, "max_tokens": 8} | fields)


def test_a_prompt_as_text_and_as_ids(shared: Any) -> None:
    tokenizer = shared.desk.speaker.tokenizer
    ids = [tokenizer.bos_id, *tokenizer.encode("8,2,4")]
    sampling = shared.desk.speaker.sampling
    law = type(sampling)(temperature=0, max_tokens=8)
    engine = Engine(shared.desk.speaker.model, rows=1)
    [[piece]] = engine.generate([Request(ids, law, seed=0, stop_ids=shared.desk.speaker.stop_ids)])
    wanted = shared.desk.speaker.read(piece.tokens)
    assert complete(shared, "8,2,4").choices[0].text == wanted
    assert complete(shared, ids).choices[0].text == wanted
    several = complete(shared, [ids, tokenizer.encode("say")], n=2)
    assert [choice.index for choice in several.choices] == [0, 1, 2, 3]
    assert [choice.text for choice in several.choices[:2]] == [wanted, wanted]
    assert several.usage.prompt_tokens == len(ids) + len(tokenizer.encode("say"))
    assert several.choices[2].text == complete(shared, [tokenizer.encode("say")]).choices[0].text


def test_sixteen_tokens_unless_more_are_wanted(shared: Any) -> None:
    reply = shared.http.post("/v1/completions", json={"prompt": "1", "logit_bias": {"2": -100}, "seed": 1}).json()
    assert reply["object"] == "text_completion"
    assert reply["usage"]["completion_tokens"] == 16
    assert reply["choices"][0]["finish_reason"] == "length"


def test_streams_of_several_prompts(shared: Any) -> None:
    fields = {"seed": 3, "temperature": 1.3, "n": 2, "echo": True}
    whole = complete(shared, ["8,2", "say"], **fields)
    chunks = list(complete(shared, ["8,2", "say"], stream=True, **fields))
    for choice in whole.choices:
        parts = [each.text for chunk in chunks for each in chunk.choices if each.index == choice.index]
        assert "".join(parts) == choice.text
    assert whole.choices[0].text.startswith("<|bos|>8,2")
    assert {chunk.object for chunk in chunks} == {"text_completion"}


def test_logprobs_in_the_older_shape(shared: Any) -> None:
    choice = complete(shared, "8,2,4", logprobs=3).choices[0]
    found = choice.logprobs
    assert "".join(found.tokens) == choice.text
    assert found.text_offset == [len("".join(found.tokens[:place])) for place in range(len(found.tokens))]
    for token, logprob, rivals in zip(found.tokens, found.token_logprobs, found.top_logprobs, strict=True):
        assert len(rivals) == 3
        assert max(rivals.values()) == rivals[token] == pytest.approx(logprob, abs=1e-6)


def test_ids_and_back(shared: Any) -> None:
    speaker = shared.desk.speaker
    found = shared.http.post("/tokenize", json={"prompt": "8,2 <think>\u00e9", "add_special_tokens": False}).json()
    assert found == {"count": len(found["tokens"]), "max_model_len": 512, "tokens": found["tokens"]}
    assert found["tokens"] == speaker.tokenizer.encode("8,2 <think>\u00e9")  # the user's tag is text
    assert shared.http.post("/detokenize", json={"tokens": found["tokens"]}).json() == {"prompt": "8,2 <think>\u00e9"}
    messages = [{"role": "user", "content": "8,2,4:10"}]
    assert shared.http.post("/tokenize", json={"messages": messages}).json()["tokens"] == speaker.encode("8,2,4:10")


def test_the_state_routes(shared: Any) -> None:
    assert shared.http.get("/health").json() == {"status": "ok"}
    assert shared.http.get("/ready").json() == {"status": "ready"}
    said = shared.http.get("/version").json()
    about = {"config": to_published(shared.desk.speaker.model.config), "dtype": "float32", "device": "cpu"}
    assert said == {"version": __version__, "weights": 0} | about


def test_metrics_add_up(serve: Any) -> None:
    served = serve()
    usage = [complete(served, "8,2,4", n=2).usage, complete(served, "1").usage]
    list(complete(served, "8,2", stream=True))
    families = {family.name: family for family in text_string_to_metric_families(served.http.get("/metrics").text)}
    value = {
        name: sum(s.value for s in family.samples if s.name == f"{name}_total") for name, family in families.items()
    }
    drawn = sum(each.completion_tokens for each in usage)
    assert value["fathom:prompt_tokens"] == sum(each.prompt_tokens for each in usage) + 4
    assert drawn < value["fathom:generation_tokens"] <= drawn + 8
    assert value["fathom:request_success"] == 4
    counts = {s.name: s.value for family in families.values() for s in family.samples}
    assert counts["fathom:e2e_request_latency_seconds_count"] == 3
    assert counts["fathom:time_to_first_token_seconds_count"] == 1
    assert counts["fathom:num_requests_running"] == counts["fathom:num_requests_waiting"] == 0


def logged(caplog: pytest.LogCaptureFixture, name: str) -> str:
    """The log's line of a request: it is written when the answer is out, so a client may be ahead of it."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        for line in caplog.messages:
            if name in line:
                return line
        time.sleep(0.01)
    raise AssertionError(f"no line of {name} in {caplog.messages}")


def test_the_log_has_no_prompts(shared: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "fathom.serve"):
        shared.http.post(
            "/v1/completions",
            json={"prompt": "secret words", "max_tokens": 2, "ignore_eos": True},
            headers={"x-request-id": "mine-1"},
        )
    record = json.loads(logged(caplog, "mine-1"))
    assert (record["path"], record["status"], record["prompt_tokens"], record["completion_tokens"]) == (
        "/v1/completions",
        200,
        len(shared.desk.speaker.tokenizer.encode("secret words")) + 1,
        2,
    )
    assert "secret" not in caplog.text
