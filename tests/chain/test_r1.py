"""The later stages of R1 behind a small chain: what each takes and leaves, and that they are skipped when done."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from fathom.chain import laptop, r1
from fathom.checkpoint.find import newest_stage
from fathom.checkpoint.hub import read_config
from fathom.config import Config
from fathom.config.r1 import PreferenceConfig, R1Config, RejectConfig
from fathom.runs import Run
from fathom.tasks import build, distinct_problems
from fathom.tasks.task import is_held_out
from fathom.text.chat import parse_reply
from fathom.text.general import split_preferences

LATER = [
    *("reject", "tune", "eval_tune", "reward_model", "rl", "rl_preference", "eval_rl"),
    *("student", "distill", "eval_distill"),
]
PROBLEMS, SAMPLES = 12, 6


@pytest.fixture(scope="module")
def whole(micro: Config) -> Config:
    """The small chain with R1's stages, on a task so small that its training problems are soon known by heart."""
    student = replace(R1Config().student, vocab_size=1300, hidden_size=16, num_hidden_layers=1, intermediate_size=32)
    attention = replace(student.attention, num_attention_heads=2, num_key_value_heads=1, head_dim=8)
    short = replace(micro.sft, steps=2, save_every=2, seq_len=64)
    task = replace(micro.task, max_number=5, max_target=9, held_out_share=0.3)
    return replace(
        micro,
        task=task,
        sft=replace(micro.sft, steps=100, save_every=100, batch_rows=16, micro_batch_rows=16),
        eval=replace(micro.eval, problems=4),
        r1=R1Config(
            enabled=True,
            reject=RejectConfig(problems=PROBLEMS, samples=SAMPLES, keep=2),
            tune=short,
            preference=PreferenceConfig(pairs=300, steps=3, rows=8),
            rl=replace(micro.grpo, steps=2),
            preference_steps=1,
            preference_share=0.5,
            student=replace(student, attention=attention),
            student_pretrain=replace(micro.pretrain, steps=2),
            distill=short,
        ),
    )


@pytest.fixture(scope="module")
def done(whole: Config, tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = Run(tmp_path_factory.mktemp("r1") / "run")
    laptop.run(whole, run.path)
    return run


def test_every_stage_books_its_line_and_is_skipped_the_next_time(done: Run, whole: Config) -> None:
    assert [line["stage"] for line in done.read_ledger()][-len(LATER) :] == LATER
    count = len(done.read_ledger())
    laptop.run(whole, done.path)
    assert len(done.read_ledger()) == count
    assert newest_stage(done) == "rl_preference"
    changed = replace(whole, r1=replace(whole.r1, distill=replace(whole.r1.distill, steps=1)))
    laptop.run(changed, done.path)
    assert [line["stage"] for line in done.read_ledger()][count:] == ["distill", "eval_distill"]


def test_only_right_and_different_answers_to_training_problems_are_kept(done: Run, whole: Config) -> None:
    kept, task = r1.read_kept(done), build(whole.task)
    line = done.read_ledger("reject")[0]
    assert len(kept) == len(set(kept)) == line["kept"] == line["counts"]["kept"] > 0
    assert sum(line["counts"].values()) == PROBLEMS * SAMPLES
    assert max(Counter(question for question, _ in kept).values()) <= 2
    problems = {each.question: each for each in distinct_problems(task, PROBLEMS, whole.seed, held_out=False)}
    for question, reply in kept:
        problem = problems[question]
        assert not is_held_out(problem.key, whole.task.held_out_share)
        answer = parse_reply(reply).answer
        assert answer is not None and task.grade(problem, answer) == 1


def test_the_student_is_another_model_that_learned_from_the_same_dialogues(done: Run, whole: Config) -> None:
    lines = {line["stage"]: line for line in done.read_ledger()}
    assert lines["tune"]["data_hash"] == lines["distill"]["data_hash"]
    (last,) = sorted(done.checkpoint_dir("distill").glob("step_*"))[-1:]
    assert read_config(last).num_hidden_layers == 1
    assert read_config(last).moe.n_routed_experts == 0
    assert lines["reward_model"]["score"]["pairs"] > 0


def test_pairs_that_cannot_be_balanced_are_refused(whole: Config, tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_text('{"prompt": "a", "chosen": "long answer", "rejected": "no"}\n' * 5)
    law = replace(whole.r1.preference, file=str(file))
    with pytest.raises(ValueError, match=r"leave 0 pairs to train on"):
        r1.preferences(replace(whole, r1=replace(whole.r1, preference=law)))
    trained, held_out = r1.preferences(whole)
    assert split_preferences([*trained, *held_out], law.held_out_share) == (trained, held_out)
