"""What a stream says of its tokens: against log-probabilities, definitions, and the engine asked directly."""

import json
import math
from typing import Any

import openai
import pytest
import torch

from fathom.infer.engine import Engine

MESSAGES = [{"role": "user", "content": "8,2,4:10"}]


def events_of(served: Any, **fields: Any) -> list[dict[str, Any]]:
    body = {"messages": MESSAGES, "temperature": 0, "stream": True, **fields}
    lines = served.http.post("/v1/chat/completions", json=body).text.splitlines()
    return [json.loads(line[6:]) for line in lines if line.startswith("data: {")]


def traces_of(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [event["trace"] for event in events if "trace" in event]


def test_a_trace_says_how_each_token_came_about(shared: Any, speaker: Any) -> None:
    events = events_of(shared, trace=True, logprobs=True, temperature=0.7, seed=5, max_tokens=30)
    traces = traces_of(events)
    tokens = [token for trace in traces for token in trace["tokens"]]
    logprobs = [each for event in events for c in event["choices"] for each in (c["logprobs"] or {}).get("content", [])]
    assert [token["id"] for token in tokens][: len(logprobs)] == [each["token_id"] for each in logprobs]
    for token, each in zip(tokens, logprobs, strict=False):
        assert token["probability"] == pytest.approx(math.exp(each["logprob"]))
    # the definition: one pass over prompt and completion, the distribution at the place in front of each token
    prompt = speaker.encode("8,2,4:10")
    ids = torch.tensor([prompt + [token["id"] for token in tokens]])
    with torch.no_grad():
        law = (speaker.model.logits(speaker.model(ids))[0, len(prompt) - 1 : -1] / 0.7).log_softmax(-1)
    entropy = -(law.exp() * law).sum(-1)
    assert [token["entropy"] for token in tokens] == pytest.approx(entropy.tolist(), abs=1e-4)
    text = "".join(token["text"] for token in tokens)
    said = [choice["delta"] for event in events for choice in event["choices"]]
    thinking, answer = ("".join(each.get(name) or "" for each in said) for name in ("reasoning_content", "content"))
    assert text.removesuffix("<|eos|>") in (f"{thinking}</think>{answer}", thinking)
    assert {token["draft"] for token in tokens} == {None}


def test_experts_are_those_the_engine_tells(shared: Any, speaker: Any) -> None:
    traces = traces_of(events_of(shared, trace=True))
    engine = Engine(speaker.model, 1)
    request = speaker.ask("8,2,4:10", speaker.sampling)
    greedy = type(speaker.sampling)(**vars(speaker.sampling) | {"temperature": 0.0, "max_tokens": 60})
    engine.submit(type(request)(request.prompt, greedy, 0, request.stop_ids, experts=True))
    while engine.busy:
        pieces = engine.step()
    assert [token["experts"] for trace in traces for token in trace["tokens"]] == pieces[0].experts.tolist()
    assert traces[0]["n_routed_experts"] == 4


def test_the_cache_is_compared_with_that_of_whole_heads(shared: Any) -> None:
    first, *others = traces_of(events_of(shared, trace=True))
    latent, rope, heads, width = 16, 16, 2, 16  # of the model in conftest; one layer, float32
    assert first["cache"] == {"bytes_per_token": (latent + rope) * 4, "mha_bytes_per_token": 2 * heads * width * 4}
    assert all("cache" not in other for other in others)


def test_drafts_are_judged(serve: Any) -> None:
    served = serve(drafts=1)
    tokens = [token for trace in traces_of(events_of(served, trace=True)) for token in trace["tokens"]]
    assert {"accepted", "rejected", None} >= {token["draft"] for token in tokens} > {None}
    text = served.http.get("/metrics").text
    rate = next(float(line.split()[-1]) for line in text.splitlines() if "draft_acceptance_rate{" in line)
    judged = [token["draft"] for token in tokens if token["draft"]]
    assert judged.count("accepted") == pytest.approx(rate * len(judged), abs=1)


def test_nothing_is_traced_unasked(shared: Any) -> None:
    plain, traced = events_of(shared, seed=1), events_of(shared, seed=1, trace=True)
    assert traces_of(plain) == [] and len(traces_of(traced)) > 0
    assert all("usage" not in event for event in plain)
    join = lambda events: "".join(c["delta"].get("content") or "" for e in events for c in e["choices"])  # noqa: E731
    assert join(plain) == join(traced) != ""


def test_official_clients_read_past_a_trace(shared: Any) -> None:
    with shared.openai.chat.completions.stream(
        model="tiny/model", messages=MESSAGES, temperature=0, extra_body={"trace": True}
    ) as stream:
        message = stream.get_final_completion().choices[0].message
    assert message.content == "<answer>8+4-2</answer>"


def test_a_trace_needs_a_stream(shared: Any) -> None:
    with pytest.raises(openai.BadRequestError, match="needs stream=true") as refused:
        shared.openai.chat.completions.create(model="tiny/model", messages=MESSAGES, extra_body={"trace": True})
    assert refused.value.param == "trace"


def test_tokens_are_counted_while_they_come(shared: Any) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    events = events_of(shared, stream_options=options)
    counts = [event["usage"] for event in events if "usage" in event]
    drawn = [count["completion_tokens"] for count in counts]
    thought = [count["completion_tokens_details"]["reasoning_tokens"] for count in counts]
    assert drawn == sorted(drawn) and thought == sorted(thought) and len(counts) >= 3
    whole = shared.openai.chat.completions.create(model="tiny/model", messages=MESSAGES, temperature=0).usage
    assert (drawn[-1], thought[-1]) == (whole.completion_tokens, whole.completion_tokens_details.reasoning_tokens)
