"""Plain completions, ids of texts, and what operators read."""

import json
import time
from typing import Any

import pytest
import torch
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


def definition(served: Any, ids: list[int]) -> list[float]:
    """Log-probabilities of all tokens but the first, by a forward pass and a softmax."""
    model = served.desk.speaker.model
    with torch.no_grad():
        logits = model.logits(model(torch.tensor([ids]))[0])
    return [float(row.log_softmax(-1)[token]) for row, token in zip(logits[:-1], ids[1:], strict=True)]


def test_an_echoed_prompt_is_scored(shared: Any) -> None:
    tokenizer = shared.desk.speaker.tokenizer
    ids = [tokenizer.bos_id, *tokenizer.encode("8,2,4:10 caf\u00e9")]
    reply = complete(shared, [ids, ids[:2]], echo=True, logprobs=2, max_tokens=0)
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (len(ids) + 2, 0)
    choice, found = reply.choices[0], reply.choices[0].logprobs
    assert (choice.text, choice.finish_reason) == (tokenizer.decode(ids), "length")
    assert found.token_logprobs[0] is None and found.top_logprobs[0] is None
    assert found.token_logprobs[1:] == pytest.approx(definition(shared, ids), abs=1e-5)
    assert [choice.text[at : at + 1] for at in found.text_offset[:3]] == ["<", "8", ","]
    assert len(found.tokens) == len(found.text_offset) == len(found.top_logprobs) == len(ids)
    assert all(len(rivals) == 2 for rivals in found.top_logprobs[1:])
    assert reply.choices[1].logprobs.token_logprobs == found.token_logprobs[:2]
    [last] = [chunk.choices[0] for chunk in complete(shared, [ids], stream=True, max_tokens=0, echo=True, logprobs=2)][
        1:
    ]
    assert (last.text, last.finish_reason) == ("", "length")


def test_an_evaluation_harness_finds_its_continuation(shared: Any) -> None:
    """As lm-eval reads it: one token is drawn and dropped, and greedy is what equals the best rival."""
    tokenizer = shared.desk.speaker.tokenizer
    context = shared.desk.speaker.encode("8,2,4:10")
    for text, greedy in (("8+4=12,12-2=10</think><answer>8+4-2</answer>", True), ("8+4=13", False)):
        continuation = tokenizer.encode_template(text)
        law = {"logprobs": 1, "echo": True, "max_tokens": 1, "seed": 1234}
        whole = complete(shared, [context + continuation], **law).choices[0].logprobs
        scored, rivals = whole.token_logprobs[len(context) : -1], whole.top_logprobs[len(context) : -1]
        assert len(scored) == len(continuation)  # a drawn end of the text is listed, or one would be missing
        assert scored == pytest.approx(definition(shared, context + continuation)[len(context) - 1 :], abs=1e-4)
        assert all(one == max(top.values()) for one, top in zip(scored, rivals, strict=True)) == greedy
        parts = list(complete(shared, [context + continuation], stream=True, **law))
        shown = [part.choices[0].logprobs for part in parts if part.choices[0].logprobs]
        assert [each for part in shown for each in part.token_logprobs] == whole.token_logprobs


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


def numbers(served: Any) -> dict[str, float]:
    """Every sample of /metrics: those of several labels added up, and each by the label besides the model's."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(served.http.get("/metrics").text):
        for sample in family.samples:
            name, labels = sample.name.removeprefix("fathom:"), sample.labels.keys() - {"model_name", "le"}
            found[name] = found.get(name, 0) + sample.value
            for label in labels:
                found[f"{name}/{sample.labels[label]}"] = sample.value
    return found


def test_metrics_add_up(serve: Any) -> None:
    served = serve()
    usage = [complete(served, "8,2,4", n=2).usage, complete(served, "1").usage]
    list(complete(served, "8,2", stream=True))
    value = numbers(served)
    drawn = sum(each.completion_tokens for each in usage)
    assert (
        value["prompt_tokens_total"] == value["prefix_cache_queries_total"] == sum(u.prompt_tokens for u in usage) + 4
    )
    assert drawn < value["generation_tokens_total"] <= drawn + 8
    assert value["request_success_total"] == 4
    assert value["e2e_request_latency_seconds_count"] == value["time_to_first_token_seconds_count"] == 3
    times = [f"request_{part}_time_seconds" for part in ("queue", "prefill", "decode")]
    assert [value[f"{name}_count"] for name in times] == [4, 4, 4]  # of every sample
    assert all(value[f"{name}_sum"] > 0 for name in times)
    # two samples share one request, so their times together are between those of the requests once and twice
    whole = value["e2e_request_latency_seconds_sum"]
    assert sum(value[f"{name}_sum"] for name in times) <= 2 * whole
    assert value["num_requests_running"] == value["num_requests_waiting"] == value["num_preemptions_total"] == 0
    assert value["kv_cache_usage_perc"] == value["kv_cache_used_pages"] == 0


def test_what_was_read_before_is_counted_as_cached(serve: Any) -> None:
    served = serve()
    first, again = (complete(served, [[7] * 40, [8] * 20], n=2).usage for _ in range(2))
    assert first.prompt_tokens_details.cached_tokens == 0
    assert again.prompt_tokens_details.cached_tokens == 32 + 16  # full pages of 16 tokens
    assert (again.prompt_cache_hit_tokens, again.prompt_cache_miss_tokens) == (48, 12)
    *_, last = complete(served, [7] * 40, stream=True, stream_options={"include_usage": True})
    assert last.usage.prompt_tokens_details.cached_tokens == 32
    value = numbers(served)
    assert value["prefix_cache_hits_total"] == 48 + 32
    assert value["prefix_cache_queries_total"] == 60 + 60 + 40


def test_drafts_and_preemptions_are_counted(serve: Any) -> None:
    served = serve(rows=2, drafts=1, pages=6)  # of 16 tokens: too few for two of these
    complete(served, [[5, 6], [7, 8]], max_tokens=60, extra_body={"ignore_eos": True})
    value = numbers(served)
    checked, kept = served.desk._engine.verdicts
    assert value["spec_decode_num_draft_tokens_total"] == sum(checked) > 0
    assert value["spec_decode_num_accepted_tokens_total"] == sum(kept)
    assert value["spec_decode_num_accepted_tokens_per_pos_total/0"] == kept[0]
    assert value["spec_decode_num_drafts_total"] == checked[0]
    assert value["num_preemptions_total"] == served.desk._engine.counters.preemptions > 0
    assert value["kv_cache_used_pages"] == 0


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
