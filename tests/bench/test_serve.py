"""The load generator: arrivals, times against a server whose delays are known, errors, goodput, the limit."""

import asyncio
import json
import statistics
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from fathom.bench.latency import is_good, percentile, spread_ms, summarize
from fathom.bench.load import Answered, Share, arrivals, ask, file_bodies
from fathom.bench.load_options import LoadOptions
from fathom.bench.serve import describe_limit, find_roof, main, read_model
from fathom.bench.step import step_bytes
from fathom.cli import main as command
from fathom.config.published import to_published
from fathom.plan.count import decode_flops_per_token
from fathom.plan.hardware import HARDWARE
from fathom.presets import preset
from fathom.serve.server import Running, listen

FIRST_S, TOKEN_S = 0.05, 0.02


class Slow:
    """A server that answers max_tokens tokens, each after its delay; every `refuses`-th is sent away."""

    def __init__(self, refuses: int = 0) -> None:
        self.refuses, self.bodies, self.inside, self.most = refuses, list[dict[str, Any]](), 0, 0
        routes = [("/v1/models", self.models, "GET"), ("/v1/chat/completions", self.chat, "POST")]
        self.app = Starlette(routes=[Route(path, view, methods=[method]) for path, view, method in routes])

    async def drain(self, seconds: float) -> None:
        return

    async def models(self, _: Request) -> Response:
        return JSONResponse({"data": [{"id": "slow"}]})

    async def chat(self, request: Request) -> Response:
        body = await request.json()
        self.bodies.append(body)
        prompt = 10 + 2 * len(body["messages"][0]["content"].split())
        usage = {"prompt_tokens": prompt, "completion_tokens": body["max_tokens"], "total_tokens": 0}
        if self.refuses and len(self.bodies) % self.refuses == 0:
            return JSONResponse({"error": {"message": "full"}}, 429)
        self.inside += 1
        self.most = max(self.most, self.inside)
        if body.get("stream"):
            return StreamingResponse(self.events(body["max_tokens"], usage), media_type="text/event-stream")
        await asyncio.sleep(FIRST_S)
        self.inside -= 1
        return JSONResponse({"choices": [], "usage": usage})

    async def events(self, tokens: int, usage: dict[str, Any]) -> AsyncIterator[bytes]:
        yield b'data: {"choices": [{"delta": {"role": "assistant", "content": ""}}]}\n\n: alive\n\n'
        for place in range(tokens):
            await asyncio.sleep(TOKEN_S if place else FIRST_S)
            yield b'data: {"choices": [{"delta": {"content": "a"}}]}\n\n'
        yield b"data: " + json.dumps({"choices": [], "usage": usage}).encode() + b"\n\ndata: [DONE]\n\n"
        self.inside -= 1


@pytest.fixture
def serve() -> Iterator[Callable[[Slow], str]]:
    begun: list[Running] = []

    def start(server: Slow) -> str:
        begun.append(Running(server.app, server, listen("127.0.0.1", 0)))
        begun[-1].start()
        return begun[-1].url

    yield start
    for running in begun:
        running.stop()


def test_arrivals_are_poisson_and_repeat() -> None:
    times = arrivals(50.0, 20_000, seed=3)
    gaps = [after - before for before, after in zip([0.0, *times], times, strict=False)]
    assert times == arrivals(50.0, 20_000, seed=3) != arrivals(50.0, 20_000, seed=4)
    assert statistics.fmean(gaps) == pytest.approx(1 / 50, rel=0.03)
    assert statistics.pstdev(gaps) == pytest.approx(1 / 50, rel=0.03)  # of an exponential the mean
    assert sum(gap > 2 / 50 for gap in gaps) / len(gaps) == pytest.approx(2.718281828**-2, abs=0.01)


def test_closed_loop_times_what_the_server_takes(serve: Callable[[Slow], str]) -> None:
    slow = Slow()
    options = LoadOptions(clients=3, requests=9, warm_up=0, max_tokens=5, prompt_tokens=(50, 110))
    found = main(serve(slow), options)
    assert (found["requests"], found["answered"], found["errors"], found["model"]) == (9, 9, {}, "slow")
    assert slow.most == 3
    assert found["ttft_ms"]["p50"] >= 1e3 * FIRST_S
    assert found["token_ms"]["p50"] >= 1e3 * TOKEN_S
    assert found["event_gap_ms"]["p50"] >= 1e3 * TOKEN_S
    assert found["e2e_ms"]["p50"] >= found["ttft_ms"]["p50"] + 4 * 1e3 * TOKEN_S - 1
    assert found["tokens_per_s"] == pytest.approx(45 / found["seconds"], rel=5e-3)  # both are rounded
    assert found["mean_prompt_tokens"] == pytest.approx(
        statistics.fmean([50, 110, 50, 110, 50, 110, 50, 110, 50]), abs=0.1
    )
    assert 0 < found["client"]["cpu_share"] <= 1
    assert found["limit"] == {"unknown": "which model it is; give --config"}
    # three clients ask at a time, and who of them is first is chance
    assert sorted(body["seed"] for body in slow.bodies[2:]) == list(range(9))
    assert all(body["ignore_eos"] and body["stream"] for body in slow.bodies[2:])


def test_open_loop_does_not_wait_for_answers(serve: Callable[[Slow], str]) -> None:
    slow = Slow(refuses=6)
    options = LoadOptions(rate=200.0, requests=16, warm_up=0, max_tokens=3, stream=False, processes=2, e2e_ms=20_000)
    found = main(serve(slow), options)
    assert slow.most > 2  # each takes 50 ms, and 16 come within some 80
    assert found["errors"] == {"429": 3}  # of 18 requests, two of which learn what a word has
    assert found["answered"] == 13
    assert found["goodput"]["share"] == round(13 / 16, 4)
    assert (found["ttft_ms"], found["token_ms"], found["client"]["processes"]) == (None, None, 2)


def test_kinds_of_errors() -> None:
    async def answer(request: httpx.Request) -> httpx.Response:
        kind = json.loads(request.content)["kind"]
        if kind == "gone":
            raise httpx.ConnectError("no")
        if kind == "slow":
            await asyncio.sleep(5)
        text = {"broken": "data: {oops\n\n", "event": 'data: {"error": {}}\n\ndata: [DONE]\n\n', "end": ": a\n\n"}
        return httpx.Response(int(kind) if kind.isdigit() else 200, text=text.get(kind, ""))

    async def ask_all() -> list[str]:
        async with httpx.AsyncClient(transport=httpx.MockTransport(answer), base_url="http://a", timeout=0.2) as http:
            kinds = ("503", "gone", "slow", "broken", "event", "end")
            return [(await ask(http, 0.0, {"kind": kind}, stream=True)).error for kind in kinds]

    assert asyncio.run(ask_all()) == ["503", "ConnectError", "timeout", "malformed", "error event", "no [DONE]"]


def test_figures_of_known_answers() -> None:
    def answer(due: float, late: float, first: float, ended: float, error: str = "") -> Answered:
        return Answered(due, due + late, due + first, due + ended, [0.1], prompt_tokens=10, tokens=5, error=error)

    answers = [
        answer(0, 0.0, 0.2, 0.6),
        answer(1, 0.0, 0.5, 1.5),
        answer(2, 0.1, 0.3, 0.7),
        answer(3, 0, 0.1, 1, "429"),
    ]
    options = LoadOptions(ttft_ms=400, token_ms=101)
    found = summarize([Share(answers[:2], 0.9, 1.0), Share(answers[2:], 0.1, 1.0)], options)
    assert found["seconds"] == 4.0
    assert (found["requests_per_s"], found["tokens_per_s"], found["prompt_tokens_per_s"]) == (0.75, 3.75, 7.5)
    assert found["ttft_ms"] == {"mean": 333.333, "p50": 300.0, "p90": 500.0, "p99": 500.0}
    assert found["token_ms"]["p90"] == 250.0
    assert found["goodput"] == {"within": {"ttft_ms": 400, "token_ms": 101}, "share": 0.5, "per_s": 0.5}
    assert found["client"]["is_bottleneck"]
    assert (found["client"]["cpu_share"], found["client"]["cpu_cores"]) == (0.9, 1.0)
    assert [is_good(each, LoadOptions(e2e_ms=650)) for each in answers] == [True, False, False, False]
    assert [percentile([4, 1, 3, 2], share) for share in (0.25, 0.5, 0.51, 0.99)] == [1, 2, 3, 4]
    assert spread_ms([]) is None


def test_the_limit_is_bytes_over_bandwidth(tmp_path: Path) -> None:
    model = preset("v3").model
    file = tmp_path / "config.json"
    file.write_text(json.dumps(to_published(model)))
    assert read_model(tmp_path) == model
    roof = find_roof(LoadOptions(hardware="8xH200"), model, {}, "gpu")
    found = {
        "answered": 9,
        "mean_inside": 32.2,
        "mean_prompt_tokens": 1000.0,
        "mean_tokens": 200.0,
        "tokens_per_s": 99.0,
    }
    limit = describe_limit(model, roof, found)
    moved = step_bytes(model, 32, 1100, 1, 2).total
    seconds = max(moved / (8 * 4.8e12), 32 * decode_flops_per_token(model, 1100) / (8 * HARDWARE["h200"].fp8_flops))
    assert (limit["rows"], limit["wall"], limit["context"]) == (32, "memory", 1100)
    assert limit["tokens_per_s"] == pytest.approx(32 / seconds, rel=1e-4)
    assert limit["share"] == pytest.approx(99 * seconds / 32, abs=1e-4)
    assert find_roof(LoadOptions(), model, {"device": "cuda"}, "127.0.0.1")["unknown"].startswith("what it runs on")
    assert find_roof(LoadOptions(), None, {}, "a")["unknown"].startswith("which model")


def test_prompts_of_a_file(tmp_path: Path) -> None:
    lines, plain = tmp_path / "a.jsonl", tmp_path / "a.txt"
    lines.write_text('{"prompt": "x"}\n{"messages": [{"role": "user", "content": "y"}], "max_tokens": 3}\n')
    plain.write_text("one\n\ntwo\n")
    bodies = file_bodies(LoadOptions(file=lines), "m", 3)
    assert [(body["messages"][0]["content"], body["max_tokens"]) for body in bodies] == [
        ("x", 128),
        ("y", 3),
        ("x", 128),
    ]
    assert [body["messages"][0]["content"] for body in file_bodies(LoadOptions(file=plain), "m", 2)] == ["one", "two"]
    lines.write_text('{"prompt": "x"}\n{"text": "y"}\n')
    with pytest.raises(ValueError, match=r"a\.jsonl, prompt 2: give an object with prompt or messages"):
        file_bodies(LoadOptions(file=lines), "m", 3)


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match="rate=-1"):
        LoadOptions(rate=-1)
    with pytest.raises(ValueError, match="ttft_ms and token_ms need the moments of tokens"):
        LoadOptions(stream=False, ttft_ms=3)


def test_the_command(serve: Callable[[Slow], str], capsys: pytest.CaptureFixture[str]) -> None:
    url = serve(Slow())
    assert command(["bench", "serve", url, "--requests", "2", "--max_tokens", "1", "--warm_up", "0"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["answered"] == 2
    assert command(["bench", "serve", "http://127.0.0.1:9"]) == 1
    assert "nobody answers at http://127.0.0.1:9/v1" in capsys.readouterr().err
