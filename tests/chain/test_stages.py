"""The stages of a small chain: what each needs, what it books, what makes it run again."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fathom.chain import stages
from fathom.checkpoint.files import list_checkpoints
from fathom.checkpoint.state import load_weights, weights_hash
from fathom.config import Config, OptimizerConfig, ParallelConfig, ScheduleConfig, TrainConfig
from fathom.eval.suite import Answer, random_play
from fathom.model import Transformer
from fathom.parallel.world import World, launch
from fathom.runs import Run
from fathom.tasks import Countdown, Problem, build, distinct_problems
from fathom.tasks.task import is_held_out

WORLD = World(0, 1, torch.device("cpu"))


def test_every_line_of_the_ledger_says_what_went_in_and_what_came_out(finished: Path, micro: Config) -> None:
    ledger = {line["stage"]: line for line in Run(finished).read_ledger()}
    assert list(ledger) == [
        *("tokenize", "pretrain", "sft", "eval_before", "grpo"),
        *("eval_after", "control_random", "mtp_check", "sft_control", "eval_sft_control"),
    ]
    for stage, line in ledger.items():
        assert line["seed"] == micro.seed and line["processes"] == 1, stage
        assert line["seconds"] > 0 and line["dollars"] == pytest.approx(line["seconds"] / 100, abs=2e-5), stage
        assert len(line["data_hash"]) == 64, stage
        assert stage in ("tokenize", "control_random") or len(line["weights_hash"]) == 64, stage
        assert "score" in line or "loss" in line or stage in ("tokenize", "grpo"), stage
    hashes = {stage: line.get("weights_hash") for stage, line in ledger.items()}
    assert hashes["eval_before"] == hashes["sft"]
    assert hashes["eval_after"] == hashes["mtp_check"] == hashes["grpo"]
    assert hashes["eval_sft_control"] == hashes["sft_control"]
    assert len({hashes["pretrain"], hashes["sft"], hashes["grpo"], hashes["sft_control"]}) == 4
    asked = {ledger[stage]["data_hash"] for stage in ("eval_before", "eval_after", "eval_sft_control")}
    assert len(asked) == 1 and ledger["control_random"]["data_hash"] in asked  # one exam for all


def test_booked_hashes_are_those_of_the_checkpoints(finished: Path, micro: Config) -> None:
    run = Run(finished)
    for stage in ("pretrain", "sft", "grpo", "sft_control"):
        model = Transformer(micro.model)
        load_weights(list_checkpoints(run.checkpoint_dir(stage))[-1], model)
        assert weights_hash(model) == stages.last_line(run, stage)["weights_hash"]


def test_a_line_a_step_of_every_training_stage(finished: Path, micro: Config) -> None:
    run = Run(finished)
    steps = {"pretrain": 4, "sft": 40, "grpo": 2, "sft_control": 2}
    assert {line["stage"] for line in run.read_metrics()} == set(steps)
    for stage, count in steps.items():
        assert [line["step"] for line in run.read_metrics(stage)] == list(range(1, count + 1))
    line = run.read_metrics("pretrain")[-1]
    wanted = (
        "loss loss_main loss_mtp loss_balance lr grad_norm tokens tokens_per_s mfu max_vio mtp_acceptance rows seconds"
    )
    assert {*wanted.split(), "validation_loss"} <= line.keys()
    assert (
        stages.last_line(run, "pretrain")["tokens"]
        == 4 * 8 * 48
        == sum(line["tokens"] for line in run.read_metrics("pretrain"))
    )


def test_a_seed_decides_every_number(run: Run, micro: Config, tmp_path: Path) -> None:
    again = Run(tmp_path / "again")
    stages.tokenize(WORLD, micro, again)
    stages.pretrain(WORLD, micro, again)
    for stage in ("tokenize", "pretrain"):
        assert stages.last_line(again, stage)["key"] == stages.last_line(run, stage)["key"]
    assert stages.last_line(again, "pretrain")["weights_hash"] == stages.last_line(run, "pretrain")["weights_hash"]
    stages.pretrain(WORLD, replace(micro, seed=1), again)
    assert stages.last_line(again, "pretrain")["weights_hash"] != stages.last_line(run, "pretrain")["weights_hash"]


def test_another_mixture_of_the_same_shards_is_another_pretraining(run: Run, micro: Config) -> None:
    config = replace(micro, text=replace(micro.text, arithmetic_share=0.2))
    before = stages.last_line(run, "tokenize")["data_hash"], stages.last_line(run, "pretrain")["weights_hash"]
    stages.tokenize(WORLD, config, run)
    stages.pretrain(WORLD, config, run)
    assert stages.last_line(run, "tokenize")["data_hash"] == before[0]
    assert stages.last_line(run, "pretrain")["weights_hash"] != before[1]


@pytest.mark.parametrize("stage", ["pretrain", "sft"])
def test_a_growing_batch_grows_in_every_stage(run: Run, micro: Config, stage: str) -> None:
    ramp = ScheduleConfig(warmup_steps=2, batch_ramp=1.0, batch_start=0.25)
    train: TrainConfig = replace(getattr(micro, stage), steps=4, schedule=ramp)
    config = replace(micro, **{stage: train})
    getattr(stages, stage)(WORLD, config, run)
    assert [line["rows"] for line in run.read_metrics(stage)] == [2, 4, 5, 6]


def test_a_new_model_can_start_from_the_weights_of_another_run(run: Run, micro: Config) -> None:
    checkpoint = list_checkpoints(run.checkpoint_dir("grpo"))[-1]
    model = stages.new_model(replace(micro, init=str(checkpoint)), WORLD)
    assert weights_hash(model) == stages.last_line(run, "grpo")["weights_hash"]
    fresh = [weights_hash(stages.new_model(replace(micro, seed=seed), WORLD)) for seed in (0, 0, 1)]
    assert fresh[0] == fresh[1] != fresh[2]


def test_stages_say_which_one_must_come_before(micro: Config, tmp_path: Path) -> None:
    run = Run(tmp_path)
    with pytest.raises(ValueError, match="run `fathom tokenize` first"):
        stages.pretrain(WORLD, micro, run)
    with pytest.raises(ValueError, match="run `fathom pretrain` first"):
        stages.sft(WORLD, micro, run)
    with pytest.raises(ValueError, match="run `fathom sft` first"):
        stages.grpo(WORLD, micro, run)
    with pytest.raises(ValueError, match="run `fathom pretrain` first"):
        stages.grpo(WORLD, replace(micro, cold_start=False), run)
    with pytest.raises(ValueError, match="holds no checkpoint of the stage sft"):
        stages.model_of_stage(micro, run, WORLD, "sft")


def test_a_model_of_another_shape_than_the_checkpoint_is_refused(run: Run, micro: Config) -> None:
    config = replace(micro, model=replace(micro.model, hidden_size=32))
    with pytest.raises(ValueError, match="hidden_size=16, but the config says 32"):
        stages.model_of_stage(config, run, WORLD, "sft")


def test_a_batch_that_cannot_be_shared_out_is_refused(micro: Config) -> None:
    pair = World(0, 2, torch.device("cpu"))
    stages.require_layout("sft", micro.sft, micro.model, pair)
    with pytest.raises(ValueError, match="batch_rows=7 does not divide among 2 workers"):
        stages.require_layout("sft", replace(micro.sft, batch_rows=7), micro.model, pair)
    three = World(0, 3, torch.device("cpu"), layout=ParallelConfig(expert=3))
    with pytest.raises(ValueError, match="expert=3 must divide the 4 routed experts and the 3 devices"):
        stages.require_layout("sft", replace(micro.sft, batch_rows=6), micro.model, three)


@pytest.mark.parametrize("name", ["shard", "expert", "context", "pipeline"])
def test_what_cannot_be_spread_is_refused_before_a_stage_begins(name: str, run: Run, micro: Config) -> None:
    layout = ParallelConfig(**{name: 2})
    pair = World(0, 2, torch.device("cpu"), layout=layout)
    critic = replace(micro.grpo, objective=replace(micro.grpo.objective, advantage="gae", drop_equal_groups=False))
    with pytest.raises(ValueError, match=rf"parallel\.{name}=2 (spreads|does not spread)"):
        stages.grpo(pair, replace(micro, parallel=layout, grpo=critic), run)
    adapted = replace(micro, parallel=layout, lora=replace(micro.lora, rank=2))
    with pytest.raises(ValueError, match=rf"lora\.rank=2 adapts weights .* parallel\.{name}=2"):
        stages.grpo(pair, adapted, run)


def test_adapters_in_a_checkpoint_of_parts_are_refused_before_a_stage_begins(run: Run, micro: Config) -> None:
    alone = World(0, 1, torch.device("cpu"))
    config = replace(micro, parallel=ParallelConfig(checkpoint="sharded"), lora=replace(micro.lora, rank=2))
    for stage in (stages.sft, stages.grpo):
        with pytest.raises(ValueError, match=r"lora\.rank=2 keeps adapters in whole .* parallel\.checkpoint=sharded"):
            stage(alone, config, run)
    stages.require_whole(replace(config, parallel=ParallelConfig()))
    stages.require_whole(replace(config, lora=replace(config.lora, rank=0)))


@pytest.mark.parametrize(
    ("asked", "device", "dtype"),
    [
        ("auto", "cpu", torch.float32),
        ("auto", "cuda", torch.bfloat16),
        ("float32", "cuda", torch.float32),
        ("bfloat16", "cpu", torch.bfloat16),
    ],
)
def test_the_precision_of_passes(asked: str, device: str, dtype: torch.dtype) -> None:
    world = World(0, 1, torch.device(device))
    assert stages.compute_dtype(Config(dtype=asked), world) == dtype  # pyright: ignore[reportArgumentType]


def test_held_out_problems_are_asked_and_the_same_for_every_seed(finished: Path, micro: Config) -> None:
    problems = distinct_problems(build(micro.task), micro.eval.problems, stages.EVALUATION_SEED)
    assert len({problem.key for problem in problems}) == 16
    assert all(is_held_out(problem.key, micro.task.held_out_share) for problem in problems)
    line = stages.last_line(Run(finished), "eval_after")
    assert line["data_hash"] == stages.problems_hash(problems)
    assert line["score"]["problems"] == line["score"]["answers"] == 16
    assert {sample["question"] for sample in Run(finished).read_samples("eval_after")} <= {p.question for p in problems}


def answers(correct: list[bool], mark: str) -> list[Answer]:
    problems = [Problem(f"1,{n}:3", f"{n:02}", (1, n), 3) for n in range(len(correct))]
    replies = [f"{mark}</think><answer>{n}</answer>" for n in range(len(correct))]
    sampled = [Answer(p, False, reply, right, 3) for p, reply, right in zip(problems, replies, correct, strict=True)]
    return [*sampled, *(replace(answer, greedy=True, reply="greedy") for answer in sampled)]


def test_examples_are_drawn_without_looking_at_the_answers(tmp_path: Path) -> None:
    chosen: list[list[str]] = []
    for name, correct in (("a", [True] * 20), ("b", [False] * 20)):
        run = Run(tmp_path / name)
        stages.keep_examples(run, "eval_after", answers(correct, "t"))
        samples = run.read_samples("eval_after")
        assert len(samples) == stages.SHOWN
        assert {sample["correct"] for sample in samples} == {correct[0]}
        assert all(sample["thinking"] == "t" and sample["reply"] != "greedy" for sample in samples)
        chosen.append([sample["question"] for sample in samples])
    assert chosen[0] == chosen[1]
    few = Run(tmp_path / "few")
    stages.keep_examples(few, "eval_after", answers([True] * 3, "t"))
    assert len(few.read_samples()) == 3


def test_examples_of_an_evaluation_repeated_replace_the_old_ones(tmp_path: Path) -> None:
    run = Run(tmp_path)
    for stage, mark in (("eval_before", "old"), ("eval_after", "old"), ("eval_after", "new")):
        stages.keep_examples(run, stage, answers([True] * 10, mark))
    assert {sample["thinking"] for sample in run.read_samples("eval_after")} == {"new"}
    assert {sample["thinking"] for sample in run.read_samples("eval_before")} == {"old"}
    assert len(run.read_samples("eval_after")) == stages.SHOWN


def test_random_play_gets_the_models_own_mean_number_of_tries(run: Run, micro: Config) -> None:
    line = stages.last_line(run, "eval_after")
    run.append_ledger(**(line | {"score": line["score"] | {"mean_tries": 6.5}}))
    problems = distinct_problems(build(micro.task), micro.eval.problems, stages.EVALUATION_SEED)
    score = stages.random_control(WORLD, micro, run, "eval_after")["score"]
    assert score == random_play(Countdown(micro.task), problems, 6.5, micro.seed)
    assert score["solved"] > 0.8  # two numbers and two signs leave little to guess
    assert stages.random_control(WORLD, replace(micro, task=replace(micro.task, kind="arithmetic")), run, "x") == {}


def test_drafts_are_checked_on_no_more_problems_than_there_are(finished: Path, micro: Config) -> None:
    score = stages.last_line(Run(finished), "mtp_check")["score"]
    assert score["answers"] == micro.eval.problems < stages.CHECKED
    assert score["equal"] is True
    assert 0.0 <= score["acceptance"] <= 1.0 <= score["tokens_per_step"] <= 2.0
    assert score["acceptance_by_position"] == [score["acceptance"]]
    plain = replace(micro, model=replace(micro.model, num_nextn_predict_layers=0))
    assert stages.speculation(WORLD, plain, Run(finished), "grpo") == {}


def test_operations_are_counted_from_tokens(finished: Path, micro: Config) -> None:
    run = Run(finished)
    line = stages.last_line(run, "grpo")
    metrics = run.read_metrics("grpo")
    assert line["tokens"] == sum(each["rollout_tokens"] for each in metrics) > 0
    assert line["trained_tokens"] == sum(each["trained_tokens"] for each in metrics) > 0
    per_token = stages.train_flops_per_token(micro.model, micro.grpo.sampling.max_tokens, mtp=False)
    assert line["flops"] == pytest.approx(per_token * (line["tokens"] / 3 + line["trained_tokens"]))
    assert np.isfinite(line["flops"])


def test_operations_of_mtp_count_for_the_steps_that_trained_it(run: Run, micro: Config) -> None:
    model = Transformer(micro.model)
    run.append_metrics("late", 1, tokens=100, loss_main=2.0)
    run.append_metrics("late", 2, tokens=100, loss_main=1.0, loss_mtp=3.0)
    record = stages.training_record(run, "late", model, WORLD, micro.pretrain, "")
    plain, with_mtp = (
        stages.train_flops_per_token(micro.model, micro.pretrain.seq_len, mtp=mtp) for mtp in (False, True)
    )
    assert with_mtp > plain
    assert (record["tokens"], record["flops"]) == (200, 100 * plain + 100 * with_mtp)


# ---- over several processes ------------------------------------------------------------------------------------------


def cold_start(world: World, config: Config, path: Path) -> None:
    stages.sft(world, config, Run(path))


@pytest.mark.ranks
@pytest.mark.parametrize("layout", [ParallelConfig(), ParallelConfig(shard=2, zero=3), ParallelConfig(expert=2)])
def test_a_cold_start_in_parts_is_that_of_one_process(
    run: Run, micro: Config, layout: ParallelConfig, tmp_path: Path
) -> None:
    """Dialogues of unlike lengths are dealt out, and the weight of each token stays that of the whole step."""
    optimizer = OptimizerConfig(lr=1e-2, eps=1e-4)  # a larger eps does not blow up the rounding of small gradients
    config = replace(micro, sft=replace(micro.sft, steps=4, save_every=4, optimizer=optimizer))
    apart = Run(shutil.copytree(run.path, tmp_path / "apart"))
    cold_start(WORLD, config, run.path)
    launch(2, "cpu", cold_start, replace(config, parallel=layout, workers=2), apart.path, layout=layout)
    assert stages.last_line(apart, "sft")["processes"] == 2
    for mine, wanted in zip(apart.read_metrics("sft"), run.read_metrics("sft"), strict=True):
        assert mine["tokens"] == wanted["tokens"]
        for name in ("loss", "loss_main", "loss_mtp", "grad_norm"):
            assert mine[name] == pytest.approx(wanted[name], rel=1e-5), name
    found, expected = (stages.model_of_stage(config, one, WORLD, "sft").state_dict() for one in (apart, run))
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=1e-4, atol=1e-5)
