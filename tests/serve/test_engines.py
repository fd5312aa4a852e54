"""Other engines behind our front: a stand-in that speaks their API, started as they are."""

import json
import os
import re
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from fathom.checkpoint.hub import load_published
from fathom.conform.points import conform
from fathom.runs import Run
from fathom.serve.engines import engine_flags, engine_program, require_flags
from fathom.serve.launch import exported, serve_engine
from fathom.serve.options import ServeOptions
from fathom.serve.translate import Answer, to_engine, to_error

STAND_IN = Path(__file__).with_name("standin.py")
KEY = "a-key-of-eight"
MESSAGES = [{"role": "user", "content": "hello"}]
THINKING, ANSWER = "let me see", "caf\u00e9 \U0001f600 is na\u00efve"


class Fronted:
    """`fathom serve --engine` as a process, and clients for it."""

    def __init__(self, run: Run, folder: Path, engine: str, setting: dict[str, Any], *flags: str) -> None:
        self.record = folder / "record.json"
        program = folder / "vllm"
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{STAND_IN}" "$@"\n')
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        setting = {"record": str(self.record), "style": engine} | setting
        environment = dict(os.environ) | {
            "PATH": f"{folder}:{os.environ['PATH']}",
            "STAND_IN": json.dumps(setting),
            "FATHOM_API_KEY": KEY,
        }
        if engine == "sglang":
            flags = (*flags, "--engine_command", f"{sys.executable} {STAND_IN}")
        words = ["serve", str(run.path), "--engine", engine, "--port", "0", "--name", "tiny/model", *flags]
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            [sys.executable, "-m", "fathom", *words], env=environment, stderr=subprocess.PIPE, text=True
        )

    def up(self) -> "Fronted":
        url = self.until(r"serving tiny/model at (\S+)")
        self.http = httpx.Client(base_url=url, timeout=30, headers={"authorization": f"Bearer {KEY}"})
        self.openai = openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0, timeout=30)
        self.url = url
        return self

    def until(self, pattern: str) -> str:
        """Read the log up to a line; its first group."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)
            if found := re.search(pattern, line):
                return found[found.lastindex or 0]
        raise AssertionError("".join(self.lines))

    def end(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)


@pytest.fixture(scope="module")
def fronts(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Fronted]]:
    begun: list[Fronted] = []

    def start(engine: str, *flags: str, **setting: Any) -> Fronted:
        begun.append(Fronted(run, tmp_path_factory.mktemp(engine), engine, setting, *flags))
        return begun[-1]

    yield start
    for front in begun:
        front.end()
        if front.process.stderr:
            front.process.stderr.close()


@pytest.fixture(scope="module")
def vllm(fronts: Callable[..., Fronted]) -> Fronted:
    return fronts("vllm", "--rows", "8", "--queue", "0", "--choices", "4", "--context", "256", "--drafts", "2").up()


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "zombie" not in Path(f"/proc/{pid}/status").read_text()


def wait_until(true: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_vllm_is_started_on_an_exported_model(vllm: Fronted, run: Run) -> None:
    said = json.loads(vllm.record.read_text())
    out = run.path / "exported" / "grpo-step_000001-bfloat16"
    assert said["argv"][:4] == ["serve", str(out), "--served-model-name", "tiny/model"]
    flags = dict(zip(said["argv"][4::2], said["argv"][5::2], strict=False))
    assert (flags["--max-num-seqs"], flags["--reasoning-parser"]) == ("8", "deepseek_r1")
    assert json.loads(said["argv"][said["argv"].index("--override-generation-config") + 1]) == {"max_new_tokens": 4096}
    assert said["argv"][said["argv"].index("--max-model-len") + 1] == "256"
    drafts = json.loads(said["argv"][said["argv"].index("--speculative-config") + 1])
    assert drafts == {"method": "mtp", "num_speculative_tokens": 2}
    assert said["environment"]["FATHOM_API_KEY"] is None
    assert len(said["environment"]["VLLM_API_KEY"]) > 20
    assert (
        load_published(out).config.hidden_size
        == load_published(run.checkpoint_dir("grpo") / "step_000001").config.hidden_size
    )


def test_both_names_whole_and_streamed(vllm: Fronted) -> None:
    reply = vllm.openai.chat.completions.create(model="tiny/model", messages=MESSAGES, temperature=0)
    message = reply.choices[0].message
    assert message.content == ANSWER
    assert message.model_extra == {"reasoning_content": THINKING, "reasoning": THINKING}
    with vllm.openai.chat.completions.stream(model="tiny/model", messages=MESSAGES, temperature=0) as stream:
        whole = stream.get_final_completion().choices[0].message
    assert (whole.role, whole.content) == ("assistant", ANSWER)
    assert whole.model_extra is not None
    assert whole.model_extra["reasoning"] == whole.model_extra["reasoning_content"] == THINKING
    body = {"messages": MESSAGES, "temperature": 0, "stream": True}
    raw = vllm.http.post("/v1/chat/completions", json=body)
    assert raw.text.endswith("data: [DONE]\n\n")
    deltas = [
        json.loads(line[6:])["choices"][0]["delta"] for line in raw.text.split("\n\n") if line.startswith("data: {")
    ]
    assert not any(delta.get("reasoning") and delta.get("content") for delta in deltas)
    assert [delta.get("role") for delta in deltas].count("assistant") == 1
    assert raw.headers["x-request-id"].startswith("req-")


@pytest.mark.parametrize("stream", [False, True])
def test_thinking_inline_and_left_out(vllm: Fronted, stream: bool) -> None:
    def ask(**fields: Any) -> tuple[str, str]:
        body = {"messages": MESSAGES, "temperature": 0, "stream": stream} | fields
        reply = vllm.http.post("/v1/chat/completions", json=body)
        if not stream:
            said = [reply.json()["choices"][0]["message"]]
        else:
            events = [json.loads(line[6:]) for line in reply.text.split("\n\n") if line.startswith("data: {")]
            said = [event["choices"][0]["delta"] for event in events]
        return "".join(each.get("content") or "" for each in said), "".join(each.get("reasoning", "") for each in said)

    assert ask(separate_reasoning=False) == (f"<think>{THINKING}</think>{ANSWER}", "")
    assert ask(include_reasoning=False) == (ANSWER, "")
    assert ask(thinking={"type": "disabled"}) == (ANSWER, "")
    assert ask(reasoning_effort="none") == (ANSWER, "")


def test_errors_in_one_shape(vllm: Fronted) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        vllm.openai.chat.completions.create(model="else", messages=MESSAGES)
    assert (missing.value.param, missing.value.type) == ("model", "not_found_error")
    with pytest.raises(openai.BadRequestError) as bad:
        vllm.openai.chat.completions.create(model="tiny/model", messages=MESSAGES, temperature=-1)
    assert bad.value.param == "temperature"
    with pytest.raises(openai.BadRequestError) as many:
        vllm.openai.chat.completions.create(model="tiny/model", messages=MESSAGES, n=5)
    assert many.value.param == "n"
    with pytest.raises(openai.AuthenticationError) as nobody:
        openai.OpenAI(base_url=f"{vllm.url}/v1", api_key="other", max_retries=0).models.list()
    assert nobody.value.code == "invalid_api_key"
    assert [model.id for model in vllm.openai.models.list()] == ["tiny/model"]
    assert vllm.openai.models.retrieve("tiny/model").id == "tiny/model"
    for path in ("/v1/models", "/metrics", "/version", "/openapi.json", "/"):
        assert httpx.get(vllm.url + path).status_code == 401, path


def test_state_is_passed_on(vllm: Fronted) -> None:
    assert httpx.get(f"{vllm.url}/health").status_code == httpx.get(f"{vllm.url}/ready").status_code == 200
    assert "vllm:num_requests_running 0" in vllm.http.get("/metrics").text
    assert vllm.http.get("/version").json()["engine"] == "vllm"
    assert vllm.http.post("/tokenize", json={"prompt": "ab"}).json()["tokens"] == [97, 98]


def test_the_front_conforms_where_the_engine_does_not(vllm: Fronted) -> None:
    outcomes, record = conform(vllm.url, KEY, "", "hello", 64, 0, 20.0)
    assert {each.name: each.seen for each in outcomes if each.result == "not held"} == {}
    assert record["conforms"]
    held = {each.name for each in outcomes if each.result == "held"}
    assert {"keys", "no route without a key", "thinking under both names", "inline thinking", "tool calls"} <= held


def test_death_turns_health_and_shows_the_last_lines(fronts: Callable[..., Fronted]) -> None:
    front = fronts("vllm", faults=["breaks"]).up()
    raw = front.http.post("/v1/chat/completions", json={"messages": MESSAGES, "temperature": 0, "stream": True}).text
    *_, error, done, end = raw.split("\n\n")
    assert (done, end) == ("data: [DONE]", "")
    assert json.loads(error[6:])["error"]["code"] == "engine_dead"
    wait_until(lambda: httpx.get(f"{front.url}/health").status_code == 503)
    front.until("vllm ended with code 3; its last lines")
    assert "loading weights" in front.until("  (.*)")
    reply = front.http.post("/v1/chat/completions", json={"messages": MESSAGES})
    assert (reply.status_code, reply.json()["error"]["code"]) == (503, "engine_dead")
    assert front.end() == 0


def test_an_engine_that_does_not_come_up(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAND_IN", '{"dies": true}')
    options = ServeOptions(engine="sglang", port=0, engine_command=f"{sys.executable} {STAND_IN}")
    with pytest.raises(RuntimeError, match=r"(?s)sglang ended with code 7; .*CUDA out of memory"):
        serve_engine(run.path, options)


def test_sigterm_drains_and_ends_the_child(fronts: Callable[..., Fronted]) -> None:
    front = fronts("sglang", "--rows", "1", "--queue", "0", token_s=0.05, repeats=100).up()
    said = json.loads(front.record.read_text())
    assert said["argv"][0] == "--model-path"
    assert said["argv"][said["argv"].index("--max-running-requests") + 1] == "1"
    body = {"messages": MESSAGES, "temperature": 0, "stream": True}
    with front.http.stream("POST", "/v1/chat/completions", json=body) as reply:
        parts = reply.iter_text()  # held: the stream is closed with it
        next(parts)
        assert "num_requests_running 1" in front.http.get("/metrics").text
    wait_until(lambda: "num_requests_running 0" in front.http.get("/metrics").text)  # the stream would take a minute
    with pytest.raises(httpx.ReadTimeout):
        front.http.post("/v1/chat/completions", json=body | {"stream": False}, timeout=0.1)
    wait_until(lambda: front.http.post("/v1/chat/completions", json=body | {"max_tokens": 1}).status_code == 200)
    with front.http.stream("POST", "/v1/chat/completions", json=body) as reply:
        parts = reply.iter_text()
        text = next(parts)
        full = front.http.post("/v1/chat/completions", json=body)
        assert (full.status_code, full.json()["error"]["code"]) == (429, "queue_full")
        assert full.headers["retry-after"]
        front.process.send_signal(signal.SIGTERM)
        wait_until(lambda: httpx.get(f"{front.url}/ready").status_code == 503)
        assert front.http.post("/v1/chat/completions", json=body).status_code == 503
        os.kill(said["pid"], signal.SIGUSR1)  # the rest at once
        text += "".join(parts)
    events = [json.loads(line[6:]) for line in text.split("\n\n") if line.startswith("data: {")]
    written = "".join(event["choices"][0]["delta"].get("content") or "" for event in events)
    assert written == " ".join([ANSWER] * 100)
    assert "".join(event["choices"][0]["delta"].get("reasoning") or "" for event in events) == THINKING
    assert text.endswith("data: [DONE]\n\n")
    assert front.process.wait(30) == 0
    assert not alive(said["pid"])


# ---- without a process ----------------------------------------------------------------------------------------------


def test_absence_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ValueError, match="vllm is not installed here; pip install vllm"):
        engine_program(ServeOptions(engine="vllm"))
    with pytest.raises(ValueError, match=r"sglang is not installed here; pip install 'sglang"):
        engine_program(ServeOptions(engine="sglang"))
    with pytest.raises(ValueError, match=r"no-such. names no program"):
        engine_program(ServeOptions(engine="sglang", engine_command="no-such"))


@pytest.mark.parametrize(
    ("engine", "field", "value"),
    [
        ("vllm", "events_per_s", 5.0),
        ("vllm", "device", "cpu"),
        ("sglang", "default_max_tokens", 100),
        ("vllm", "drafts", "auto"),
    ],
)
def test_flags_without_counterpart(engine: Any, field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"--{field} {value} has no counterpart in {engine}"):
        require_flags(ServeOptions(engine=engine, **{field: value}))


def test_flags_of_sglang() -> None:
    options = ServeOptions(engine="sglang", rows=4, context=99, drafts=1, device="cpu", engine_args="--tp 2")
    require_flags(options)
    flags = engine_flags(options, Path("/m"), "name", 7)
    assert flags[-4:] == ["--port", "7", "--tp", "2"]
    for pair in (("--context-length", "99"), ("--device", "cpu"), ("--speculative-num-draft-tokens", "2")):
        assert flags[flags.index(pair[0]) + 1] == pair[1]


def test_requests_in_the_engines_words() -> None:
    history = [{"role": "developer", "content": "a"}, {"role": "assistant", "content": "b", "reasoning": "c"}]
    body, _ = to_engine(ServeOptions(engine="vllm"), "m", {"messages": history, "thinking": {"type": "enabled"}})
    assert body["model"] == "m"
    assert body["messages"][0] == {"role": "system", "content": "a"}
    assert body["messages"][1]["reasoning_content"] == body["messages"][1]["reasoning"] == "c"
    assert body["chat_template_kwargs"] == {"thinking": True, "enable_thinking": True}
    assert "thinking" not in body
    with pytest.raises(Exception, match="thinking_token_budget has no counterpart in sglang"):
        to_engine(ServeOptions(engine="sglang"), "m", {"messages": [], "thinking_token_budget": 3})


def test_inline_tags_wherever_the_stream_is_cut() -> None:
    def chunk(**delta: Any) -> dict[str, Any]:
        return {"choices": [{"index": 0, "delta": delta, "finish_reason": None}]}

    for parts in (
        [chunk(reasoning="ab"), chunk(content="cd")],
        [chunk(reasoning="a"), chunk(reasoning="b", content="c"), chunk(content="d")],
        [chunk(reasoning="ab", content="cd")],
    ):
        answer = Answer((), inline=True)
        shown = [each["choices"][0]["delta"]["content"] for part in parts for each in answer.chunks(part)]
        assert "".join(shown) == "<think>ab</think>cd"


@pytest.mark.parametrize(
    ("body", "message", "param"),
    [
        (b'{"error": "Unauthorized"}', "Unauthorized", None),
        (b'{"object": "error", "message": "no", "param": "n", "code": 400}', "no", "n"),
        (b'{"error": {"message": "no", "param": "n", "code": "x"}}', "no", "n"),
        (b'{"detail": [{"msg": "bad"}]}', '[{"msg": "bad"}]', None),
        (b"Internal Server Error", "Internal Server Error", None),
        (b"", "the engine answered with status 500", None),
    ],
)
def test_shapes_of_errors(body: bytes, message: str, param: str | None) -> None:
    error = to_error(500, body, {"retry-after": "3"})
    assert (error.message, error.param, error.retry_after_s) == (message, param, 3)


def test_a_published_checkpoint_is_taken_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    (tmp_path / "tokenizer_config.json").touch()
    assert exported(tmp_path) == tmp_path
