"""The card of R1-Zero: one base model for both rewards, its law of curves, a verdict that can go each way."""

import random
from pathlib import Path

import torch

from fathom.tasks import build
from fathom.text.disjoint import given_away
from fathom.text.shards import open_shard
from fathom.unlocks import r1_zero
from fathom.unlocks.experiment import Context, Figures
from fathom.unlocks.r1_zero import CONTROL, ZERO
from fathom.unlocks.reasoning import base, corpus, curve, mean_curve, reinforce


def test_a_curve_is_the_mean_of_neighbouring_steps_at_the_last_of_them() -> None:
    steps = [{"step": step, "reward": float(step)} for step in range(1, 26)]
    points = curve(steps, "reward")
    assert points == [(float(at + 1), at + 0.5) for at in range(1, 25, 2)]  # 25 is no whole stretch
    assert curve(steps[:3], "reward") == [(1, 1.0), (2, 2.0), (3, 3.0)]
    assert mean_curve([[(1, 0.0), (2, 4.0)], [(1, 1.0), (2, 2.0)]]) == [(1, 0.5), (2, 3.0)]


def test_both_rewards_begin_with_one_base_model_that_knows_no_problem(tmp_path: Path) -> None:
    context = Context(torch.device("cpu"), "toy", tmp_path)
    courses = r1_zero.variants("toy")
    read = corpus(context, courses[ZERO])
    start = base(context, courses[ZERO], 0, read)
    assert base(context, courses[CONTROL], 0, corpus(context, courses[CONTROL])) == start
    texts = open_shard(read.shards_dir / "expressions.bin", start.tokenizer)
    documents = [
        start.tokenizer.decode(texts.tokens[a:b]) for a, b in zip(texts.borders, texts.borders[1:], strict=False)
    ]
    assert len(documents) == courses[ZERO].text.expression_documents
    assert not given_away(documents, courses[ZERO].task)
    task = build(courses[ZERO].task)
    problem = task.sample(random.Random(0), held_out=True)
    assert given_away([f"{problem.question}\n{task.worked(problem, random.Random(0))}"], courses[ZERO].task)
    runs = {name: reinforce(context, c.grpo, start, task, c.task, 0) for name, c in courses.items()}
    assert runs[ZERO] != runs[CONTROL]
    first = {name: run.steps[0] for name, run in runs.items()}
    assert first[ZERO]["length"] == first[CONTROL]["length"]  # the same answers to the same questions
    assert start.run.path.name == base(context, courses[ZERO], 0, read).run.path.name


def figures(start: float, control: float, zero: float, length: float) -> Figures:
    def of(accuracy: float, tokens: float) -> Figures:
        return {"accuracy": accuracy, "length": tokens, "curves": {key: [(1, accuracy)] for key in r1_zero.CURVES}}

    return {"base": of(start, 20.0), CONTROL: of(control, 20.0), ZERO: of(zero, length)}


def test_accuracy_must_rise_by_its_reward_and_answers_grow() -> None:
    noise = (0.0, 0.01, 0.02)
    assert r1_zero.conclude([figures(0.05, 0.06, 0.7 + n, 30.0 + n) for n in noise]).verdict == "supported"
    assert r1_zero.conclude([figures(0.05, 0.06, 0.7, 30.0)]).verdict == "inconclusive"
    shorter = r1_zero.conclude([figures(0.05, 0.06, 0.7 + n, 15.0 + n) for n in noise])
    assert shorter.verdict == "not supported" and "0.75" in shorter.measured
    assert r1_zero.conclude([figures(0.05, 0.65 + n, 0.7, 30.0 + n) for n in noise]).verdict == "not supported"
