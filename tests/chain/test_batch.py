"""A file of prompts: answers, resumption, torn lines, bad lines."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from fathom.chain.batch import Tally, answer_file
from fathom.cli import main
from fathom.config import SamplingConfig
from fathom.infer.lines import Line, read_lines
from fathom.infer.offline import Engine
from fathom.runs import Run

LAW = SamplingConfig(temperature=0.7, max_tokens=24)
QUESTION = "8,2,4:10"
ANSWER = "8+4-2"


@pytest.fixture(scope="module")
def engine(trained: Run) -> Engine:
    return Engine(trained.path, rows=4, device="cpu")


def write(path: Path, *lines: object) -> Path:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def answered(engine: Engine, source: Path, output: Path, seed: int = 0) -> Tally:
    return answer_file(engine, source, output, LAW, seed, Console(quiet=True))


def records(output: Path) -> dict[Any, dict[str, Any]]:
    return {record["id"]: record for record in map(json.loads, output.read_text().splitlines())}


def test_every_line_is_answered_with_its_own_fields(engine: Engine, tmp_path: Path) -> None:
    source = write(
        tmp_path / "in.jsonl",
        {"prompt": QUESTION, "temperature": 0},
        "",
        {"id": "two", "messages": [{"role": "user", "content": QUESTION}], "n": 3, "temperature": 1.5},
        {"id": "cut", "prompt": QUESTION, "max_tokens": 2, "temperature": 0},
    )
    assert answered(engine, source, tmp_path / "out.jsonl") == Tally(written=3)
    found = records(tmp_path / "out.jsonl")
    assert set(found) == {1, "two", "cut"}
    assert found[1]["prompt"] == QUESTION and "messages" not in found[1]
    assert found["two"]["messages"] == [{"role": "user", "content": QUESTION}]
    [whole], [cut] = found[1]["completions"], found["cut"]["completions"]
    assert (whole["answer"], whole["finish"]) == (ANSWER, "stop")
    assert whole["text"] == f"<think>{whole['thinking']}</think><answer>{ANSWER}</answer>"
    assert (cut["answer"], cut["finish"], cut["tokens"]) == (None, "length", 2)
    assert len(found["two"]["completions"]) == 3


def test_a_lines_text_depends_on_no_other_line(engine: Engine, tmp_path: Path) -> None:
    lines = [{"id": f"q{n}", "prompt": QUESTION, "temperature": 3.0} for n in range(9)]
    answered(engine, write(tmp_path / "a.jsonl", *lines), tmp_path / "a.out")
    answered(engine, write(tmp_path / "b.jsonl", *lines[::-2]), tmp_path / "b.out")
    answered(engine, tmp_path / "a.jsonl", tmp_path / "c.out", seed=1)
    first, second, third = (records(tmp_path / name) for name in ("a.out", "b.out", "c.out"))
    assert second == {own: first[own] for own in second} and len(second) == 5
    assert all(third[own]["completions"] != first[own]["completions"] for own in first)
    assert len({record["completions"][0]["text"] for record in first.values()}) == 9


def test_what_is_answered_is_passed_over_and_a_torn_line_replaced(engine: Engine, tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", *({"id": n, "prompt": QUESTION, "temperature": 3.0} for n in range(6)))
    output = tmp_path / "out.jsonl"
    answered(engine, source, output)
    whole = output.read_bytes()
    first_three = b"".join(whole.splitlines(keepends=True)[:3])
    output.write_bytes(whole[: len(first_three) + 40])  # as a killed process leaves it
    assert answered(engine, source, output) == Tally(written=3, kept=3)
    assert output.read_bytes().startswith(first_three)
    assert sorted(output.read_bytes().splitlines()) == sorted(whole.splitlines())
    assert answered(engine, source, output) == Tally(kept=6)


def test_bad_lines_are_named_and_the_others_go_on(
    engine: Engine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bad = [
        ("not json", "it is no JSON ("),
        ("[1]", "it is no JSON object"),
        ("[" * 100_000, "it is no JSON ("),
        ({"id": "a"}, "no prompt and no messages"),
        ({"prompt": "1", "messages": []}, "both prompt and messages"),
        ({"prompt": 5}, "prompt=5 is not a text"),
        ({"prompt": "1", "temprature": 1}, "'temprature' is no field"),
        ({"prompt": "1", "temperature": "hot"}, "temperature='hot' is not a number"),
        ('{"prompt": "1", "temperature": NaN}', "temperature=nan is not a number"),
        ({"prompt": "1", "top_p": 2}, "top_p=2"),
        ({"prompt": "1", "n": 0}, "n=0 is not a whole number from 1 to 4096"),
        ({"prompt": "1", "seed": -1}, "seed=-1 is not"),
        ({"prompt": "1", "id": [1]}, "id=[1] is neither"),
        ({"prompt": "1", "id": "good"}, "id 'good' is that of line 1 too"),
        ({"messages": [{"role": "user"}]}, "messages is not a list"),
        ({"messages": [{"role": "system", "content": "x"}]}, "the roles of messages are system"),
        ({"prompt": "1", "max_tokens": 10**6}, "lower max_tokens"),
        ({"prompt": "\ud800"}, "half of a surrogate pair"),
    ]
    source = write(
        tmp_path / "in.jsonl", {"id": "good", "prompt": "1"}, *(line for line, _ in bad), {"id": "last", "prompt": "1"}
    )
    with caplog.at_level(logging.WARNING):
        tally = answered(engine, source, tmp_path / "out.jsonl")
    assert tally == Tally(written=2, bad=list(range(2, len(bad) + 2)))
    assert set(records(tmp_path / "out.jsonl")) == {"good", "last"}
    for number, (_, reason) in enumerate(bad, start=2):
        assert any(f"line {number} is left out: " in said and reason in said for said in caplog.messages), reason


def test_answers_to_something_else_are_not_mixed_in(engine: Engine, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    answered(engine, write(tmp_path / "in.jsonl", {"id": "a", "prompt": QUESTION}), output)
    before = output.read_bytes()
    for changed in ({"prompt": "1"}, {"prompt": QUESTION, "top_k": 3}, {"prompt": QUESTION, "n": 2}):
        with pytest.raises(ValueError, match=r"answers id 'a' of .*in.jsonl line 1 for another prompt"):
            answered(engine, write(tmp_path / "in.jsonl", {"id": "a", **changed}), output)
    with pytest.raises(ValueError, match="another prompt, sampling, seed or model"):
        answered(engine, write(tmp_path / "in.jsonl", {"id": "a", "prompt": QUESTION}), output, seed=1)
    assert output.read_bytes() == before
    with pytest.raises(ValueError, match="line 2 is no answer of `fathom generate`"):
        output.write_bytes(before + b"{}\n")
        answered(engine, tmp_path / "in.jsonl", output)
    with pytest.raises(ValueError, match="is the input itself"):
        answered(engine, tmp_path / "in.jsonl", tmp_path / "in.jsonl")


def test_ids_keep_their_kind(tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", {"prompt": "a"}, {"id": "1", "prompt": "b"})
    lines = [line for line in read_lines(source, LAW, 0) if isinstance(line, Line)]
    assert [line.id for line in lines] == [1, "1"]
    assert lines[0].seed != lines[1].seed


def test_the_command_answers_a_file_and_says_what_it_left_out(
    trained: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write(tmp_path / "in.jsonl", {"prompt": QUESTION}, {"prompt": QUESTION})
    words = ["generate", str(trained.path), "--input", str(source), "--output", str(tmp_path / "out"), "--temperature"]
    assert main([*words, "0"]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'out'}: 2 answered\n"
    write(source, {"prompt": QUESTION}, {"prompt": QUESTION}, "{", {"prompt": QUESTION})
    assert main([*words, "0"]) == 2
    assert "1 answered, 2 were there; left out 1 of" in capsys.readouterr().err
    assert main([*words, "1"]) == 2
    assert "another prompt, sampling" in capsys.readouterr().err
    for wrong in (["--output", "x"], ["--input", "x", "8,2,4:10", "--output", "y"], ["--input", "x"]):
        assert main(["generate", str(trained.path), *wrong]) == 2
        assert "both --input and --output" in capsys.readouterr().err
    assert main(["generate", str(trained.path), "--input", "absent", "--output", "y"]) == 2
    assert "there is no file absent" in capsys.readouterr().err


def test_several_replies_on_the_command_line(trained: Run, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["generate", str(trained.path), QUESTION, "--n", "3", "--seed", "4", "--temperature", "3"]
    outputs: list[str] = []
    for _ in range(2):
        assert main(words) == 0
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1]
    assert len({part for part in outputs[0].split("<think>") if part}) == 3
