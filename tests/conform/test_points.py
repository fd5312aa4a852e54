"""The list of points against Fathom's own server, a good stand-in, and stand-ins with one fault each."""

import json
from collections.abc import Callable, Iterator
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest

from fathom.cli import main
from fathom.conform import refusals
from fathom.conform.asked import Asked
from fathom.conform.points import POINTS, Outcome, check, conform, table
from fathom.serve.server import Running, listen

STAND_IN = Path(__file__).parents[1] / "serve" / "standin.py"
KEY = "a-key-of-eight"


class Nobody:
    """Nothing to drain."""

    async def drain(self, seconds: float) -> None:
        return


@pytest.fixture(scope="module")
def stand_in() -> Iterator[Callable[..., str]]:
    spec = spec_from_file_location("standin", STAND_IN)
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    begun: dict[tuple[Any, ...], tuple[Any, Running]] = {}

    def start(*faults: str, **options: Any) -> str:
        """The URL of a stand-in, which has these faults until it is asked for again."""
        kind = tuple(options.items())
        if kind not in begun:
            server = module.StandIn(**options)
            begun[kind] = server, Running(server.app, Nobody(), listen("127.0.0.1", 0))
            begun[kind][1].start()
        server, running = begun[kind]
        server.faults = frozenset(faults)
        return running.url

    yield start
    for _, running in begun.values():
        running.stop()


def outcomes_of(url: str, key: str = "", prompt: str = "hello", **options: Any) -> dict[str, Outcome]:
    found, _ = conform(url, key, "", prompt, options.get("max_tokens", 64), options.get("burst", 0), 20.0)
    return {each.name: each for each in found}


def test_a_good_server_holds_every_point(stand_in: Callable[..., str]) -> None:
    good = stand_in(key=KEY, token_s=0.0002)
    found = outcomes_of(good, KEY, burst=4)
    assert {each.name: each.seen for each in found.values() if each.result == "not held"} == {}
    missing = {name for name, each in found.items() if each.result == "not offered"}
    assert missing <= {
        "thinking budget",
        "inline thinking",
        "past thinking under either name",
        "no route without a key",
        "what is left alone stops",
    }
    assert len(found) == len(POINTS)


FAULTS = {
    "role": "role, id and end once a stream",
    "id": "role, id and end once a stream",
    "finish": "role, id and end once a stream",
    "done": "usage chunk last, then [DONE]",
    "usage": "usage chunk last, then [DONE]",
    "sum": "usage adds up",
    "text": "streamed text is the whole text",
    "mixed": "thinking and answer never mix",
    "bare_error": "bad fields are refused",
    "careless": "bad fields are refused",
    "no_param": "refusals name the field",
    "any_model": "a model by its id",
    "seed": "seeds repeat",
    "stop": "stop strings",
    "bias": "logit bias",
    "logprobs": "log-probabilities",
    "unicode": "characters are never cut",
    "index": "tool calls",
    "arguments": "tool calls",
    "fails": "nonsense never fails the server",
    "any_length": "prompts too long are refused",
    "open": "keys",
    "nameless": "requests have names",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_caught_by_its_point(stand_in: Callable[..., str], fault: str) -> None:
    faulty = stand_in(fault, key=KEY)
    asked = Asked(faulty, KEY, "stand/in", "hello", 64, 0, 20.0)
    point = next(point for point in POINTS if point.name == FAULTS[fault])
    outcome = check(point, asked)
    asked.close()
    assert outcome.result == "not held", outcome.seen


@pytest.mark.parametrize(
    ("fault", "name"), [("deaf", "what is left alone stops"), ("full", "full means 429 and Retry-After")]
)
def test_a_fault_under_load(
    stand_in: Callable[..., str], monkeypatch: pytest.MonkeyPatch, fault: str, name: str
) -> None:
    monkeypatch.setattr(refusals, "PATIENCE_S", 0.2)
    asked = Asked(stand_in(fault), "", "stand/in", "hello", 64, 4, 20.0)
    outcome = check(next(point for point in POINTS if point.name == name), asked)
    asked.close()
    assert outcome.result == "not held", outcome.seen


def test_the_wrong_shape_of_a_401(stand_in: Callable[..., str]) -> None:
    asked = Asked(stand_in(style="vllm", key=KEY), KEY, "stand/in", "hello", 64, 0, 20.0)
    keys = next(point for point in POINTS if point.name == "keys")
    assert "error is no object" in check(keys, asked).seen
    both = next(point for point in POINTS if point.name == "thinking under both names")
    assert check(both, asked).result == "not held"
    asked.close()


def test_levels() -> None:
    def outcome(level: Any, result: Any) -> bool:
        return Outcome(1, "a", level, result, "").fails

    assert [outcome("required", result) for result in ("held", "not held", "not offered")] == [False, True, True]
    assert [outcome("offered", result) for result in ("held", "not held", "not offered")] == [False, True, False]
    assert not any(outcome("optional", result) for result in ("held", "not held", "not offered"))


def test_the_command(stand_in: Callable[..., str], capsys: pytest.CaptureFixture[str]) -> None:
    url = stand_in()
    assert main(["conform", f"{url}/v1", "--max_tokens", "64"]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    record = json.loads(last)
    assert record["conforms"] is True
    assert record["model"] == "stand/in"
    assert record["held"] + record["not held"] + record["not offered"] == len(record["points"]) == len(POINTS)
    assert any("usage adds up" in line and " held" in line for line in lines)
    assert main(["conform", stand_in("role"), "--max_tokens", "64"]) == 2
    captured = capsys.readouterr()
    assert json.loads(captured.out.splitlines()[-1])["conforms"] is False
    assert "role, id and end once a stream" in captured.err
    assert main(["conform", "http://127.0.0.1:9"]) == 1
    assert "nobody answers at http://127.0.0.1:9/v1" in capsys.readouterr().err


def test_table_lines_up() -> None:
    lines = table(
        [Outcome(1, "a", "required", "held", "x" * 200), Outcome(12, "bc", "offered", "not held", "y")]
    ).splitlines()
    assert lines[1].index("held") == lines[2].index("not held")
    assert max(map(len, lines)) == 120
