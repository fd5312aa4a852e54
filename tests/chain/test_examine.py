"""Questions from files, put to a model that knows one reply by heart."""

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest

from fathom.chain import verbs
from fathom.chain.examine import read_unseen
from fathom.cli import main
from fathom.config import Config, EvalConfig, TaskConfig
from fathom.eval import r1
from fathom.eval.exam import Exam
from fathom.eval.questions import Question
from fathom.runs import Run
from fathom.tasks import Problem, build
from fathom.tasks.sandbox import can_isolate
from fathom.tasks.task import is_held_out

QUESTION, ANSWER = "8,2,4:10", "8+4-2"


def write(path: Path, *lines: dict[str, object]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def said_and_kept(words: list[str], output: Path, capsys: pytest.CaptureFixture[str]) -> tuple[str, dict[str, Any]]:
    assert main(["eval", *words]) == 0, capsys.readouterr().err
    return capsys.readouterr().out, json.loads(output.read_text())


def test_questions_of_a_file_are_scored_and_kept(
    trained: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(
        tmp_path / "mine.jsonl",
        {"question": QUESTION, "answer": " 8 + 4 - 2"},
        {"question": QUESTION, "answer": "9"},
        {"question": QUESTION, "answer": ANSWER, "id": "last"},
    )
    output = tmp_path / "scores.json"
    words = f"{trained.path} --questions {file} --samples 4 --temperature 0 --eval.k 1 4 --output {output}"
    said, kept = said_and_kept(words.split(), output, capsys)
    assert kept["questions"] == 3 and kept["samples"] == 4
    for name in ("accuracy", "pass@1", "pass@4", "maj@1", "maj@4"):
        assert kept[name] == pytest.approx(2 / 3, abs=1e-6)
    assert (kept["cut"], kept["no_answer"]) == (0, 0)
    assert kept["sampling"]["temperature"] == 0 and kept["model"] == "grpo/step_000001"
    assert [each["id"] for each in kept["answers"]] == ["1", "2", "last"]
    assert kept["answers"][1]["answers"] == [ANSWER] * 4 and kept["answers"][1]["correct"] == [False] * 4
    assert "66.7% accuracy (" in said and "66.7% maj@4 (" in said and str(output) in said.replace("\n", "")


def test_the_seed_fixes_the_answers(trained: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path / "q.jsonl", *({"question": QUESTION, "answer": ANSWER} for _ in range(3)))
    found: list[dict[str, Any]] = []
    for seed, rows in ((0, 2), (0, 64), (1, 64)):
        words = f"{trained.path} --questions {file} --samples 16 --temperature 1.5 --seed {seed} --eval.rows {rows} "
        words += f"--max_tokens 16 --output {tmp_path / 'out'}"
        found.append(said_and_kept(words.split(), tmp_path / "out", capsys)[1])
    assert found[0]["answers"] == found[1]["answers"]
    assert found[0]["answers"] != found[2]["answers"]
    assert found[0]["cut"] > 0 and found[0]["no_answer"] > 0


def test_a_checkpoint_alone_can_be_examined(trained: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(trained.path), str(tmp_path / "hub")]) == 0
    file = write(tmp_path / "q.jsonl", {"question": QUESTION, "answer": ANSWER})
    words = f"{tmp_path / 'hub'} --questions {file} --temperature 0 --output {tmp_path / 'out'}"
    assert said_and_kept(words.split(), tmp_path / "out", capsys)[1]["accuracy"] == 1.0
    assert main(["eval", str(tmp_path / "hub")]) == 2
    assert "without a task of its own; add --questions FILE, --suite r1 or --lm_eval TASK" in capsys.readouterr().err


def test_the_suite_stands_beside_the_published_scores(
    trained: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "140")
    aime = write(tmp_path / "aime.jsonl", {"Problem": QUESTION, "Answer": ANSWER}, {"Problem": QUESTION, "Answer": 7})
    output = tmp_path / "out.json"
    words = f"{trained.path} --suite r1 --aime {aime} --temperature 0 --max_tokens 24 --output {output}"
    said, kept = said_and_kept(words.split(), output, capsys)
    aime_record = kept["benchmarks"]["AIME 2024"]
    assert (aime_record["samples"], aime_record["accuracy"], aime_record["maj@64"]) == (64, 0.5, 0.5)
    assert aime_record["sampling"]["top_p"] == 0.95
    cells = [re.split(r"\s{2,}", line.strip()) for line in said.splitlines()]
    assert ["AIME 2024 pass@1", "50.0", "39.2", "71.0", "79.8", "79.2", "9.3", "16.0"] in cells
    assert ["AIME 2024 cons@64", "50.0", "-", "86.7", "-", "-", "13.4", "26.7"] in cells
    assert re.search(r"MATH-500 pass@1 +- +90.2 ", said)
    words_said = " ".join(said.split())
    assert r1.WINDOW not in words_said
    assert "AIME 2024 was run with temperature 0.0 where R1 had 0.6, max_tokens 24 where R1 had 32768." in words_said
    assert f"R1-Zero: {r1.PAPER}, Table 2; the second version and Nature print 77.9" in words_said


def test_the_suite_takes_the_room_that_the_context_has(
    trained: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path / "m.jsonl", {"problem": QUESTION, "answer": ANSWER})
    words = f"{trained.path} --suite r1 --math_500 {file} --gpqa {file} --samples 1 --output {tmp_path / 'out'}"
    _, kept = said_and_kept(words.split(), tmp_path / "out", capsys)
    law = kept["benchmarks"]["MATH-500"]["sampling"]
    assert (law["temperature"], law["top_p"]) == (0.6, 0.95)
    assert law["max_tokens"] == min(32768, trained.config.model.max_position_embeddings - 11)
    assert list(kept["benchmarks"]) == ["MATH-500", "GPQA Diamond"]


def test_programs_of_the_suite_are_run_beside_the_published_scores(
    trained: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "140")
    cases = json.dumps([{"input": "", "output": "6", "testtype": "stdin"}])
    lines = [{"question_content": QUESTION, "public_test_cases": cases, "private_test_cases": "[]"}]
    file, output = write(tmp_path / "lcb.jsonl", *lines), tmp_path / "out.json"
    isolation = "require" if can_isolate() else "limits"
    words = f"{trained.path} --suite r1 --livecodebench {file} --max_tokens 8 --output {output} "
    words += f"--task.isolation {isolation}"
    said, kept = said_and_kept(words.split(), output, capsys)
    record = kept["benchmarks"]["LiveCodeBench"]
    assert (record["samples"], record["accuracy"], record["undecided"]) == (8, 0, 0)
    assert (record["sampling"]["temperature"], record["sampling"]["top_p"]) == (0.6, 0.95)
    cells = [re.split(r"\s{2,}", line.strip()) for line in said.splitlines()]
    assert ["LiveCodeBench pass@1", "0.0", "36.2", "50.0", "65.9", "63.4", "34.2", "33.8"] in cells
    assert r1.WINDOW in " ".join(said.split())


def test_every_published_row_is_complete() -> None:
    assert [each.model for each in r1.PUBLISHED] == [
        "V3",
        "R1-Zero",
        "R1",
        "o1",
        "GPT-4o",
        "Claude 3.5 Sonnet",
    ]
    assert all(len(each.scores) == len(r1.ROWS) and each.source for each in r1.PUBLISHED)
    assert [each.samples for each in (r1.AIME, r1.GPQA, r1.MATH_500, r1.LIVE_CODE_BENCH)] == [64, 64, 16, 8]


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ("--temperature 0.5", "--temperature belongs to --questions, --suite or --lm_eval"),
        ("--output x", "--output belongs to --questions, --suite"),
        ("--aime x", "--aime belongs to a suite; add --suite r1"),
        ("--suite r1", "give one or more of --aime, --math_500, --gpqa, --livecodebench"),
        ("--suite r1 --questions x --aime x", "are evaluations of their own"),
        ("--questions absent.jsonl", "there is no file absent.jsonl"),
        ("--limit 3", "--limit belongs to --lm_eval"),
        ("--lm_eval arc_easy --temperature 1", "bring their own sampling"),
        ("--samples 0 --questions x", "samples=0 asks for no answer"),
        ("--eval.k 0", "eval.k=0 is not above zero"),
        ("--eval.k 3", "eval.k=3 exceeds the 2 answers to each question"),
        ("--questions FILE --eval.k 3", "eval.k=3 exceeds the 2 answers to each question"),
        ("--questions FILE --top_p 2", "top_p=2"),
        ("--questions FILE --max_tokens 100000", "question 1 has 11 tokens and max_tokens is 100000"),
    ],
)
def test_what_cannot_be_asked_is_refused(
    trained: Run, tmp_path: Path, flags: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path / "q.jsonl", {"question": QUESTION, "answer": ANSWER})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "300")
        try:
            code = main(["eval", str(trained.path), *flags.replace("FILE", str(file)).split()])
        except SystemExit as stop:  # tyro says what the config refuses
            code = stop.code
    assert code == 2
    assert sentence in " ".join(capsys.readouterr().err.split())


def test_a_runs_own_task_gets_votes_and_pass_at_k(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    config = run.config
    before = run.read_ledger("eval_after")[-1]
    verbs.evaluate(config, run, Exam())
    assert len(run.read_ledger("eval_after")) == 1  # scored already
    verbs.evaluate(config, run, Exam(samples=4))
    verbs.evaluate(
        type(config)(**{**vars(config), "eval": EvalConfig(problems=16, samples=4, rows=32, k=(1, 4))}), run, Exam()
    )
    plain, score = (line["score"] for line in run.read_ledger("eval_after")[-2:])
    assert "pass@1" not in plain and plain["answers"] == 64
    assert score["pass@1"] == pytest.approx(score["sampled"], abs=1e-6)
    assert score["maj@1"] == pytest.approx(score["sampled"], abs=1e-6)
    assert score["pass@4_low"] <= score["pass@4"] <= score["pass@4_high"] and score["pass@4"] >= score["pass@1"]
    assert {name: score[name] for name in plain} == plain
    assert before["score"]["answers"] == 16
    assert "pass@4 (" in capsys.readouterr().out


def test_tasks_of_the_harness(trained: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write(tmp_path / "data.jsonl", {"question": QUESTION, "reply": ANSWER}, {"question": QUESTION, "reply": "9"})
    (tmp_path / "mine.yaml").write_text(
        f"""
task: mine
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{data}"}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: ["8", "9"]
doc_to_target: 0
metric_list: [{{metric: acc}}]
"""
    )
    output = tmp_path / "out.json"
    words = f"eval {trained.path} --lm_eval mine --lm_eval_path {tmp_path} --limit 2 --output {output}".split()
    if importlib.util.find_spec("lm_eval") is None:
        assert main(words) == 2
        assert "need the extra `eval`: pip install 'fathomlm[eval]'" in capsys.readouterr().err
        return
    assert main(words) == 0
    assert "|mine " in capsys.readouterr().out
    assert json.loads(output.read_text())["results"]["mine"]["acc,none"] in (0.0, 1.0)


def test_questions_that_the_run_trained_on_are_refused(tmp_path: Path) -> None:
    """By canonical hash: spacing and case do not hide them; those that were held out may be asked."""
    lines = [f'{{"question": "How much is {n} and {n}?", "answer": "{2 * n}"}}' for n in range(40)]
    (tmp_path / "own.jsonl").write_text("\n".join(lines))
    task = TaskConfig(kind="jsonl", file=str(tmp_path / "own.jsonl"), held_out_share=0.5)
    sides = {held_out: [p for p in build(task).problems if is_held_out(p.key, 0.5) == held_out] for held_out in (0, 1)}
    config = Config(task=task)

    def asked(problems: list[Problem]) -> list[Question]:
        text = "\n".join(json.dumps({"question": f" {p.question.upper()}", "answer": p.answer}) for p in problems)
        (tmp_path / "asked.jsonl").write_text(text)
        return read_unseen(tmp_path / "asked.jsonl", config)

    assert len(asked(sides[1])) == len(sides[1]) > 10
    with pytest.raises(ValueError, match=f"1 of {len(sides[1]) + 1} problems to evaluate on are among the training"):
        asked([*sides[1], sides[0][0]])
