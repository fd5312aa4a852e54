"""`fathom eval` on questions from files: progress, a table, and a JSON file with scores and answers."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from fathom.chain.progress import progress
from fathom.chain.talk import open_speaker
from fathom.checkpoint.find import holds_weights
from fathom.config import Config, SamplingConfig, TaskConfig
from fathom.config.task import FROM_FILES
from fathom.eval import r1
from fathom.eval.answers import Grade, attempt_all, attempt_record, encode_question, match_answers, score_attempts
from fathom.eval.exam import Exam
from fathom.eval.programs import grade_programs, read_programs
from fathom.eval.questions import Question, read_questions
from fathom.eval.scores import require_samples
from fathom.infer.offline import Engine, choose
from fathom.runs import Record, Run, describe_commit, describe_machine, finite, write_whole
from fathom.tasks import build
from fathom.tasks.given import Given
from fathom.tasks.sandbox import require_isolation
from fathom.tasks.task import require_disjoint, text_key


def examine(config: Config, run: Run, exam: Exam, console: Console) -> Path:
    """Ask the questions of `exam` and show the scores; the file that keeps them, with every answer.

    Files and settings are checked before the model is loaded.
    """
    if exam.suite:
        return examine_r1(config, run, exam, console)
    if exam.lm_eval:
        from fathom.eval.harness import run_tasks  # an optional package

        engine = Engine(open_speaker(run), rows=config.eval.rows)
        tasks = run_tasks(engine, exam.lm_eval, exam.lm_eval_path, exam.few_shot, exam.limit, config.seed)
        console.print(tasks.table, highlight=False, markup=False)
        return _keep(run, exam, "lm_eval", {"evaluation": "lm_eval", **tasks.record}, engine)
    if exam.questions is None:
        raise ValueError(
            f"{run.path} is a checkpoint without a task of its own; add --questions FILE, --suite r1 or --lm_eval TASK"
        )
    questions, samples = read_unseen(exam.questions, config), exam.samples or config.eval.samples
    require_samples(config.eval.k, samples)
    engine = Engine(open_speaker(run), rows=config.eval.rows)
    sampling = choose(engine.speaker.sampling, exam.law)
    record = _sit(engine, exam.questions, questions, sampling, samples, config.eval.k, config.seed, console)
    console.print(f"[bold]{exam.questions.name}[/bold]  {describe_scores(record)}", highlight=False)
    return _keep(run, exam, exam.questions.stem, {"evaluation": "questions", **record}, engine)


def examine_r1(config: Config, run: Run, exam: Exam, console: Console) -> Path:
    """The benchmarks whose files are given, sampled as R1 was, beside the published scores."""
    files = {benchmark: Path(file) for benchmark in r1.SUITE if (file := getattr(exam, benchmark.field))}
    questions = {benchmark: _read(benchmark, file, config) for benchmark, file in files.items()}
    samples = {benchmark: exam.samples or benchmark.samples for benchmark in files}
    require_samples(config.eval.k, min(samples.values()))
    engine = Engine(open_speaker(run), rows=config.eval.rows)
    law: dict[str, Any] = {"temperature": r1.TEMPERATURE, "top_p": r1.TOP_P, "max_tokens": r1.MAX_TOKENS} | exam.law
    records: dict[str, Record] = {}
    for benchmark, file in files.items():
        asked, drawn = questions[benchmark], samples[benchmark]
        own = law if "max_tokens" in exam.law else {**law, "max_tokens": _room(engine, asked)}
        ks = (*config.eval.k, drawn)  # the vote of all answers is R1's cons@64
        sampling = choose(SamplingConfig(), own)
        records[benchmark.name] = _sit(
            engine, file, asked, sampling, drawn, ks, config.seed, console, _grade(benchmark, config)
        )
        console.print(f"[bold]{benchmark.name}[/bold]  {describe_scores(records[benchmark.name])}", highlight=False)
    console.print(published_table(records))
    for line in published_notes(records):
        console.print(line, highlight=False, style="dim")
    return _keep(run, exam, "r1", {"evaluation": "r1", "benchmarks": records}, engine)


def _read(benchmark: r1.Benchmark, file: Path, config: Config) -> list[Question]:
    if benchmark is not r1.LIVE_CODE_BENCH:
        return read_unseen(file, config)
    require_isolation(config.task.isolation)  # before hours of answers that nobody could grade
    return read_unseen(file, config, read_programs)


def _grade(benchmark: r1.Benchmark, config: Config) -> Grade:
    if benchmark is not r1.LIVE_CODE_BENCH:
        return match_answers
    return partial(grade_programs, isolation=TaskConfig(isolation=config.task.isolation))


def read_unseen(file: Path, config: Config, read: Callable[[Path], list[Question]] = read_questions) -> list[Question]:
    """The questions of a file. Raises ValueError where the run's task has trained on one of them."""
    questions, task = read(file), config.task
    if task.kind in FROM_FILES and task.kind != "custom":
        given = build(task)
        assert isinstance(given, Given)
        trained = {problem.key for problem in given.sides[False]}
        require_disjoint(trained, [text_key(question.text) for question in questions])
    return questions


def describe_scores(record: Mapping[str, Any]) -> str:
    """One line on what a set of answers is worth."""
    names = ["accuracy", *(name for name in record if name.startswith(("pass@", "maj@")) and "_" not in name)]
    parts = [
        f"{record[name]:.1%} {name} ({record[f'{name}_low']:.1%} to {record[f'{name}_high']:.1%})" for name in names
    ]
    asked = f"{record['questions']} questions, {record['samples']} answers each"
    faults = f"{record['no_answer']:.1%} without an answer, {record['cut']:.1%} cut at max_tokens"
    return ", ".join([*parts, asked, faults, f"{record['seconds']:.0f} s"])


def published_table(records: Mapping[str, Record]) -> Table:
    """This model's scores beside those in print, in percent."""
    table = Table(title="Scores in percent; all but the first as published, not measured here", box=SIMPLE)
    table.add_column("benchmark", no_wrap=True)
    for name in ("this model", *(published.model for published in r1.PUBLISHED)):
        table.add_column(name, justify="right")
    for place, (benchmark, measure) in enumerate(r1.ROWS):
        own = _own_score(records.get(benchmark.name), measure)
        printed = [published.scores[place] for published in r1.PUBLISHED]
        label = f"{benchmark.name} {measure}"
        table.add_row(label, *("-" if score is None else f"{score:.1f}" for score in (own, *printed)))
    return table


def published_notes(records: Mapping[str, Record]) -> list[str]:
    """What the table's figures rest on: the sources, and where this run departs from the published set-up."""
    lines = [r1.WINDOW] if r1.LIVE_CODE_BENCH.name in records else []
    for benchmark in r1.SUITE:
        if record := records.get(benchmark.name):
            lines += _departures(benchmark, record)
    for published in r1.PUBLISHED:
        lines.append(f"{published.model}: {published.source}" + (f"; {published.note}" if published.note else ""))
    return lines


def _departures(benchmark: r1.Benchmark, record: Record) -> list[str]:
    found = {"samples": record["samples"], **record["sampling"]}
    wanted = {
        "samples": benchmark.samples,
        "temperature": r1.TEMPERATURE,
        "top_p": r1.TOP_P,
        "max_tokens": r1.MAX_TOKENS,
    }
    changed = [f"{name} {found[name]} where R1 had {value}" for name, value in wanted.items() if found[name] != value]
    return [f"{benchmark.name} was run with {', '.join(changed)}."] if changed else []


def _own_score(record: Record | None, measure: str) -> float | None:
    """Pass@1, or the vote of 64 answers where so many were drawn."""
    name = "accuracy" if measure == "pass@1" else "maj@64"
    return None if record is None or name not in record else 100 * record[name]


def _room(engine: Engine, questions: Sequence[Question]) -> int:
    """As many tokens as R1's answers might have, or as the context holds behind the longest question."""
    longest = max(len(encode_question(engine, question)) for question in questions)
    room = engine.model.config.max_position_embeddings - longest
    if room < 1:
        raise ValueError(
            f"the longest question has {longest} tokens, which fill the model's context of "
            f"{engine.model.config.max_position_embeddings}; this model cannot be asked it"
        )
    return min(r1.MAX_TOKENS, room)


def _sit(
    engine: Engine,
    file: Path,
    questions: Sequence[Question],
    sampling: SamplingConfig,
    samples: int,
    ks: Sequence[int],
    seed: int,
    console: Console,
    grade: Grade = match_answers,
) -> Record:
    """The record of one set of questions, every answer included."""
    started = time.perf_counter()
    with progress(console, file.name, len(questions)) as notify:
        attempts = attempt_all(engine, questions, sampling, samples, seed, lambda done: notify(done, {}), grade)
    return {
        "file": str(file),
        **score_attempts(attempts, ks),
        "sampling": asdict(sampling),
        "seed": seed,
        "seconds": round(time.perf_counter() - started, 3),
        "answers": [attempt_record(attempt) for attempt in attempts],
    }


def _keep(run: Run, exam: Exam, name: str, record: Record, engine: Engine) -> Path:
    kept = {**record, "model": engine.speaker.name, "commit": describe_commit(), "machine": describe_machine()}
    folder = Path() if holds_weights(run.path) else run.path  # a checkpoint's directory is for its weights
    path = exam.output or folder / f"eval_{name}.json"
    write_whole(path, json.dumps(finite(kept), indent=1, ensure_ascii=False, allow_nan=False, default=str) + "\n")
    return path
