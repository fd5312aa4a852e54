"""The card of distillation: what the student is shown, what its teaching costs, a verdict that can go each way."""

from pathlib import Path

import torch

from fathom.chain.r1 import read_kept
from fathom.demo import RUN
from fathom.plan.count import main_parameters, train_flops_per_token
from fathom.runs import Run
from fathom.tasks import build
from fathom.tasks.posed import read_question
from fathom.tasks.task import is_held_out
from fathom.text.chat import parse_reply
from fathom.unlocks import distillation
from fathom.unlocks.distillation import BASE, DISTILLED, REINFORCED, TEACHER
from fathom.unlocks.experiment import Context, Figures
from fathom.unlocks.reasoning import Stage


def test_the_student_is_shown_right_answers_to_training_problems(tmp_path: Path) -> None:
    pupil = distillation.variants("toy")[DISTILLED]
    asked = pupil.course.task
    assert asked == Run(RUN).config.task  # whose held-out problems the teacher has not been trained on
    context = Context(torch.device("cpu"), "toy", tmp_path)
    shown = read_kept(distillation.teachings(context, distillation.DEMO, asked, pupil.reject, 0))
    assert len(shown) > pupil.reject.problems / 2
    task = build(asked)
    for question, reply in shown:
        problem = read_question(question, asked, task)
        assert problem is not None and not is_held_out(problem.key, asked.held_out_share)
        assert task.grade(problem, str(parse_reply(reply).answer)) and parse_reply(reply).well_formed


def test_operations_are_those_of_the_tokens_met(tmp_path: Path) -> None:
    course = distillation.variants("toy")[DISTILLED].course
    each = train_flops_per_token(course.model, course.grpo.sampling.max_tokens, mtp=False)
    run = Run(tmp_path)
    for step in (1, 2):
        run.append_metrics("grpo", step, rollout_tokens=300, trained_tokens=50)
        run.append_metrics("sft", step, tokens=70)
    assert distillation.operations(Stage(run, "grpo", course.model), course) == 300 * each
    assert distillation.operations(Stage(run, "sft", course.model), course) == 140 * each


def test_student_is_smaller_than_its_teacher() -> None:
    pupil = distillation.variants("cpu")[DISTILLED]
    assert main_parameters(pupil.course.model) < main_parameters(Run(RUN).config.model)


def figures(base: float, reinforced: float, distilled: float) -> Figures:
    scores = {BASE: base, REINFORCED: reinforced, DISTILLED: distilled, TEACHER: 0.8}
    flops = {REINFORCED: 6e12, DISTILLED: 2e12}
    return {name: {"accuracy": x, "parameters": 9, "flops": flops.get(name, 0)} for name, x in scores.items()}


def test_the_distilled_student_must_be_better() -> None:
    noise = (0.0, 0.01, 0.02)
    better = distillation.conclude([figures(0.0, 0.3, 0.6 + n) for n in noise])
    assert better.verdict == "supported" and "3.0 times the operations" in better.measured
    assert distillation.conclude([figures(0.0, 0.6, 0.3 + n) for n in noise]).verdict == "not supported"
    assert distillation.conclude([figures(0.0, 0.3, 0.6)]).verdict == "inconclusive"
