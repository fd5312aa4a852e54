"""Manners under load: full, left alone, broken, reloaded, told to go."""

import asyncio
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest
import torch

from fathom.checkpoint.files import list_checkpoints
from fathom.checkpoint.state import save_checkpoint, weights_hash
from fathom.infer.request import Request
from fathom.infer.speaker import load_speaker
from fathom.runs import Run
from fathom.serve.errors import ApiError

MODEL = "tiny/model"
MESSAGES = [{"role": "user", "content": "8,2,4:10"}]
LONG = {"messages": MESSAGES, "ignore_eos": True, "max_tokens": 400, "seed": 1, "temperature": 1.0}
ANSWER = "<answer>8+4-2</answer>"


def hold(served: Any, seconds: float) -> None:
    """Keep the engine from its next step, as a long prompt would."""
    asyncio.run_coroutine_threadsafe(served.desk.loop.call(lambda _: time.sleep(seconds)), served.running._coroutines)


def slow_down(served: Any) -> None:
    """Let every step of the engine take a while, so that long completions last for seconds on any machine."""
    engine = served.desk._engine
    step = engine.step

    def slowly() -> Any:
        time.sleep(0.005)
        return step()

    engine.step = slowly


def wait_until(true: Any, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def rows_used(served: Any) -> int:
    return served.desk._engine._runner.rows.count


def gauge(served: Any, name: str) -> float:
    lines = served.http.get("/metrics").text.splitlines()
    [value] = [line.split()[-1] for line in lines if line.startswith(f"{name}{{")]
    return float(value)


def test_a_full_queue_says_when_to_come_again(serve: Any) -> None:
    served = serve(rows=1, queue=1)
    hold(served, 0.8)
    with ThreadPoolExecutor(2) as pool:
        body = {"messages": MESSAGES, "temperature": 0}
        first = [pool.submit(served.http.post, "/v1/chat/completions", json=body) for _ in range(2)]
        wait_until(lambda: served.desk.samples == 2)
        full = served.http.post("/v1/chat/completions", json=body)
        assert (full.status_code, full.json()["error"]["code"]) == (429, "queue_full")
        assert 1 <= int(full.headers["retry-after"]) <= 60
        with pytest.raises(openai.RateLimitError):
            served.openai.chat.completions.create(model=MODEL, messages=MESSAGES)
        patient = served.openai.with_options(max_retries=2)  # heeds Retry-After
        reply = patient.chat.completions.create(model=MODEL, messages=MESSAGES, temperature=0)
        assert reply.choices[0].message.content == ANSWER
        assert [each.result().status_code for each in first] == [200, 200]
    assert served.desk.samples == 0


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_rows(serve: Any, stream: bool) -> None:
    served = serve(rows=1)
    slow_down(served)
    with httpx.Client(base_url=served.url) as client:
        if stream:
            with client.stream("POST", "/v1/chat/completions", json=LONG | {"stream": True, "n": 16}) as reply:
                parts = reply.iter_text()  # kept: httpx hangs up where nobody holds it any more
                next(parts)
                wait_until(lambda: rows_used(served) == 1)
        else:
            with pytest.raises(httpx.ReadTimeout):
                client.post("/v1/chat/completions", json=LONG | {"n": 16}, timeout=0.15)
    wait_until(lambda: rows_used(served) == 0 and served.desk.samples == 0, 2)
    assert not served.desk._engine.busy
    assert not served.desk.loop._flights
    assert gauge(served, "fathom:kv_cache_used_pages") == gauge(served, "fathom:kv_cache_usage_perc") == 0
    assert gauge(served, "fathom:request_cancelled_total") == 1


def test_a_client_that_leaves_before_its_turn(serve: Any) -> None:
    served = serve(rows=1)
    hold(served, 0.5)
    with pytest.raises(httpx.ReadTimeout):
        served.http.post("/v1/chat/completions", json=LONG, timeout=0.1)
    wait_until(lambda: served.desk.samples == 0)
    reply = served.openai.chat.completions.create(model=MODEL, messages=MESSAGES, temperature=0)
    assert reply.choices[0].message.content == ANSWER
    assert rows_used(served) == 0


def test_silence_is_filled_with_comments(serve: Any) -> None:
    served = serve(keep_alive_s=0.05)
    hold(served, 0.05)
    body = {"messages": MESSAGES, "temperature": 0, "stream": True}
    with served.http.stream("POST", "/v1/chat/completions", json=body) as reply:
        parts = reply.iter_text()
        raw = next(parts)
        hold(served, 0.4)
        raw += "".join(parts)
    assert raw.endswith("data: [DONE]\n\n")
    text = "".join(
        choice["delta"].get("content") or ""
        for line in raw.split("\n\n")
        if line.startswith("data: {")
        for choice in json.loads(line[6:])["choices"]
    )
    assert text == ANSWER
    hold(served, 0.3)
    whole = served.openai.chat.completions.create(model=MODEL, messages=MESSAGES, temperature=0, stream=True)
    assert [chunk.choices[0].finish_reason for chunk in whole][-1] == "stop"


def test_comments_come_while_nothing_else_does(serve: Any) -> None:
    served = serve(keep_alive_s=0.05, events_per_s=1000)
    body = {**LONG, "stream": True}
    with served.http.stream("POST", "/v1/chat/completions", json=body) as reply:
        parts = reply.iter_text()
        next(parts)
        hold(served, 0.5)
        raw = "".join(parts)
    assert raw.count(": keep-alive\n\n") >= 3


def test_events_of_a_stream_are_coalesced(serve: Any) -> None:
    served = serve(events_per_s=10)
    began = time.monotonic()
    body = {**LONG, "stream": True}
    raw = served.http.post("/v1/chat/completions", json=body).text
    seconds = time.monotonic() - began
    chunks = raw.count("data: {")
    assert chunks <= 10 * seconds * 2 + 6  # an event may hold thinking and answer, a chunk each
    assert chunks < 400


def test_a_failing_request_ends_alone(serve: Any) -> None:
    served = serve(rows=4)
    speaker = served.desk.speaker

    def fails(tokens: Any) -> None:
        if len(tokens) == 3:
            raise OSError("the grammar is gone")

    async def admit() -> str:
        prompt = speaker.encode("8,2,4:10")
        law = type(speaker.sampling)(max_tokens=9)
        visit = await served.desk.admit([Request(prompt, law, seed=1, stop_ids=frozenset(), allow=fails)], False)
        try:
            await served.desk.news(visit)
        except ApiError as error:
            return f"{error.status} {error.message}"
        finally:
            served.desk.leave(visit)
        return ""

    with ThreadPoolExecutor(4) as pool:
        others = [
            pool.submit(served.openai.chat.completions.create, model=MODEL, messages=MESSAGES, temperature=0)
            for _ in range(4)
        ]
        failed = asyncio.run_coroutine_threadsafe(admit(), served.running._coroutines).result(timeout=20)
        assert failed == "500 the completion failed: OSError: the grammar is gone"
        assert [each.result().choices[0].message.content for each in others] == [ANSWER] * 4
    assert served.http.get("/health").status_code == 200


def test_health_tells_when_the_engine_died(serve: Any) -> None:
    served = serve(rows=1)
    with served.http.stream("POST", "/v1/chat/completions", json=LONG | {"stream": True, "n": 8}) as reply:
        parts = reply.iter_text()
        next(parts)
        weight = served.desk.speaker.model.embedding.weight
        with torch.no_grad():
            asyncio.run_coroutine_threadsafe(
                served.desk.loop.call(lambda _: weight.data.fill_(torch.nan)), served.running._coroutines
            )
        raw = "".join(parts)
    assert '"code":"engine_dead"' in raw
    assert raw.endswith("data: [DONE]\n\n")
    for path in ("/health", "/ready"):
        assert served.http.get(path).status_code == 503
    refused = served.http.post("/v1/chat/completions", json=LONG)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "engine_dead")
    assert "retry-after" in refused.headers
    assert served.desk.samples == 0


def test_weights_are_reloaded_under_a_stream(serve: Any, run: Run) -> None:
    served = serve(rows=1)
    body = {**LONG, "stream": True, "n": 5}
    with served.http.stream("POST", "/v1/chat/completions", json=body) as reply:
        parts = reply.iter_text()
        raw = next(parts)
        assert served.http.post("/admin/reload", json={"in_flight": "refuse"}).status_code == 409
        reloaded = served.http.post("/admin/reload", json={})
        raw += "".join(parts)
    assert reloaded.json() == {"version": 1, "checkpoint": "grpo/step_000001"}
    prints = [json.loads(line[6:])["system_fingerprint"] for line in raw.split("\n\n") if line.startswith("data: {")]
    assert prints == sorted(prints)
    assert set(prints) == {"weights-0", "weights-1"}
    assert served.http.get("/version").json()["weights"] == 1


def test_reloaded_weights_answer(serve: Any, tmp_path: Any, run: Run) -> None:
    copy = shutil.copytree(run.path, tmp_path / "served")
    served = serve(source=copy)
    before = served.openai.chat.completions.create(model=MODEL, messages=MESSAGES, temperature=0)
    newer = load_speaker(copy, torch.device("cpu")).model
    newer.initialise(torch.Generator().manual_seed(1))
    other = Run(copy)
    save_checkpoint(other.checkpoint_dir("grpo"), 2, newer, {"step": torch.zeros(1)}, {"stage": "grpo"}, keep=2)
    other.append_ledger("grpo", key="", weights_hash=weights_hash(newer))
    assert len(list_checkpoints(other.checkpoint_dir("grpo"))) == 2
    assert served.http.post("/admin/reload", json={}).json()["checkpoint"] == "grpo/step_000002"
    after = served.openai.chat.completions.create(model=MODEL, messages=MESSAGES, temperature=0, max_tokens=30)
    assert before.choices[0].message.content == ANSWER
    assert after.choices[0].message != before.choices[0].message
    assert (before.system_fingerprint, after.system_fingerprint) == ("weights-0", "weights-1")


def test_reloaded_weights_share_no_page_with_the_old(serve: Any) -> None:
    served = serve()
    body = {"prompt": [7] * 50, "max_tokens": 1, "temperature": 0}

    def cached() -> int:
        return served.http.post("/v1/completions", json=body).json()["usage"]["prompt_tokens_details"]["cached_tokens"]

    assert [cached(), cached()] == [0, 48]  # full pages of 16
    assert served.http.post("/admin/reload", json={}).json()["version"] == 1
    assert [cached(), cached()] == [0, 48]


def test_sigterm_lets_requests_finish(run: Run) -> None:
    command = [sys.executable, "-m", "fathom", "serve", str(run.path), "--port", "0", "--device", "cpu", "--rows", "2"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert process.stderr
    found = None
    while not found:
        line = process.stderr.readline()
        assert line
        found = re.search(r"http://[\d.:]+", line)
    url, name = found.group(), run.path.name
    threading.Thread(target=process.stderr.read, daemon=True).start()
    with httpx.Client(base_url=url, timeout=60) as client:
        assert client.get("/v1/models").json()["data"][0]["id"] == name
        with client.stream("POST", "/v1/chat/completions", json=LONG | {"stream": True, "n": 16}) as reply:
            parts = reply.iter_text()
            next(parts)
            process.send_signal(signal.SIGTERM)
            refused = None
            while refused is None or refused.status_code == 200:
                refused = httpx.get(f"{url}/ready")
            assert refused.status_code == 503
            late = httpx.post(f"{url}/v1/chat/completions", json={"messages": MESSAGES})
            assert (late.status_code, late.json()["error"]["code"]) == (503, "draining")
            assert "retry-after" in late.headers
            raw = "".join(parts)
    assert raw.endswith("data: [DONE]\n\n")
    assert raw.count('"finish_reason":"length"') == 16
    assert process.wait(timeout=20) == 0


def test_what_does_not_finish_in_time_gets_its_error(serve: Any) -> None:
    served = serve(rows=1)
    with served.http.stream("POST", "/v1/chat/completions", json=LONG | {"stream": True, "n": 16}) as reply:
        parts = reply.iter_text()
        next(parts)
        ending = threading.Thread(target=served.running.stop, args=(0.2,))
        ending.start()
        raw = "".join(parts)
    ending.join(timeout=20)
    assert served.running.ended
    assert '"code":"engine_dead"' in raw and "shutting down" in raw
    assert raw.endswith("data: [DONE]\n\n")


@pytest.mark.slow
def test_two_hundred_timed_out_requests_then_a_quick_one(serve: Any) -> None:
    served = serve(rows=8, queue=400)

    def give_up(number: int) -> bool:
        with httpx.Client(base_url=served.url, timeout=0.2) as client:
            try:
                client.post("/v1/chat/completions", json=LONG | {"seed": number})
            except httpx.TimeoutException:
                return True
        return False

    with ThreadPoolExecutor(50) as pool:
        assert sum(pool.map(give_up, range(200))) > 150
    wait_until(lambda: served.desk.samples == 0 and rows_used(served) == 0)
    began = time.monotonic()
    reply = served.openai.chat.completions.create(model=MODEL, messages=MESSAGES, temperature=0)
    assert reply.choices[0].message.content == ANSWER
    assert time.monotonic() - began < 2


@pytest.mark.slow
def test_a_thousand_requests_cancelled_at_random_moments(serve: Any) -> None:
    served, rng = serve(rows=8, queue=400), random.Random(0)

    def leave(wait_s: float) -> None:
        with httpx.Client(base_url=served.url, timeout=wait_s) as client:
            try:
                with client.stream("POST", "/v1/chat/completions", json=LONG | {"stream": True}) as reply:
                    deadline = time.monotonic() + wait_s
                    for _ in reply.iter_text():
                        if time.monotonic() > deadline:
                            return
            except httpx.TimeoutException:
                return

    with ThreadPoolExecutor(20) as pool:
        list(pool.map(leave, [rng.uniform(0.001, 0.4) for _ in range(1000)]))
    wait_until(lambda: served.desk.samples == 0 and rows_used(served) == 0)
    assert gauge(served, "fathom:kv_cache_used_pages") == gauge(served, "fathom:kv_cache_usage_perc") == 0
    assert not served.desk._engine.busy
    assert not served.desk.loop._flights
    reply = served.openai.chat.completions.create(model=MODEL, messages=MESSAGES, temperature=0)
    assert reply.choices[0].message.content == ANSWER
