"""The stages of a run: each takes what the earlier ones left in the run directory and books its own line.

Every function here is called by all processes of a world; the verbs of the command line start that world.
"""

import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from fathom.chain.base import base_model, begins_with_base
from fathom.chain.data import open_text, prepare_text, solved_problems, validation_batches
from fathom.chain.stage import Record, file_hash, fingerprint, run_stage
from fathom.checkpoint.files import list_checkpoints
from fathom.checkpoint.state import checkpoint_path, hash_of_weights, load_weights, weights_hash
from fathom.config import Config, GRPOConfig, ModelConfig, TrainConfig
from fathom.eval.scores import require_samples, score_at
from fathom.eval.suite import Answer, evaluate, random_play, tried
from fathom.infer.speculate import speculate_greedy
from fathom.model import Transformer
from fathom.model.draw import without_memory
from fathom.model.lora import adapt
from fathom.model.parallelize import whole_weights
from fathom.parallel.mesh import replicas
from fathom.parallel.world import World
from fathom.plan.count import train_flops_per_token
from fathom.plan.hardware import HARDWARE, Devices
from fathom.plan.layout import Layout, check
from fathom.rl.budget import next_points
from fathom.rl.loop import train_grpo
from fathom.rl.sync import require_no_critic, require_whole_layers
from fathom.runs import Run
from fathom.tasks import Countdown, Problem, Task, build, distinct_problems
from fathom.tasks.task import require_held_out
from fathom.text.chat import parse_reply, render_prompt
from fathom.text.dialogues import DialogueIds
from fathom.text.packing import Batch, PackedLoader
from fathom.text.padding import DialogueLoader
from fathom.text.tokenizer import Tokenizer
from fathom.train import schedule
from fathom.train.loop import Notify, Place, train_language

EVALUATION_SEED = 1  # held-out problems are the same for every run and seed
SHOWN = 8  # answers kept as examples of a stage
CHECKED = 64  # greedy texts compared with and without drafts


def quiet(step: int, metrics: dict[str, object]) -> None:
    """Tell nobody about a step."""


def compute_dtype(config: Config, world: World) -> torch.dtype:
    """The precision of forward and backward passes: bfloat16 on a GPU unless asked otherwise."""
    if config.dtype == "auto":
        return torch.bfloat16 if world.device.type == "cuda" else torch.float32
    return torch.bfloat16 if config.dtype == "bfloat16" else torch.float32


def tokenize(world: World, config: Config, run: Run, start_over: bool = True) -> Record:
    """Tokenizer and shards."""

    def work() -> Record:
        counts = prepare_text(config, run) if world.is_main else {}
        world.barrier()
        return {**counts, "data_hash": file_hash(*run.shards_dir.glob("*.bin"))}

    inputs: dict[str, object] = {"text": config.text, "task": config.task, "seed": config.seed}
    return run_stage(run, world, config, "tokenize", inputs, work, run.tokenizer_path, start_over)


def pretrain(
    world: World,
    config: Config,
    run: Run,
    notify: Notify = quiet,
    start_over: bool = True,
    stage: str = "pretrain",
) -> Record:
    """Next-token training on the mixture of text and worked arithmetic."""
    train, rows = config.pretrain, world.rows
    require_layout(stage, train, config.model, world)

    def work() -> Record:
        tokenizer = Tokenizer.load(run.tokenizer_path)
        shards = open_text(config, run, tokenizer)
        loader = PackedLoader(
            shards.training, shards.shares, seq_len=train.seq_len, batch_rows=train.batch_rows, seed=config.seed
        )
        first_rows = [0]
        for step in range(train.steps):
            count = schedule.batch_rows(train.schedule, train.batch_rows, step, train.steps, rows.size)
            first_rows.append(first_rows[-1] + count)

        def batch_of(step: int, count: int) -> Batch:
            share = count // rows.size
            return loader.rows(first_rows[step] + rows.rank * share, share)

        kept = validation_batches(shards.validation, 64, train.seq_len, rows.rank, rows.size)
        model = new_model(config, world)
        place = Place(run, stage, world, compute_dtype(config, world), notify, config.resilience)
        state = train_language(place, train, model, batch_of, kept, config.text.mask_documents, config.seed)
        return training_record(run, stage, state.model, world, train, last_line(run, "tokenize")["data_hash"])

    inputs: dict[str, object] = {
        "model": config.model,
        "train": train,
        "text": config.text,  # shards that stay the same may be mixed anew
        "seed": config.seed,
        "init": config.init,
        "readers": readers_that_count(train, world),
        "data": last_line(run, "tokenize")["data_hash"] if world.is_main else None,
    }
    output = checkpoint_path(run.checkpoint_dir(stage), train.steps)
    return run_stage(run, world, config, stage, inputs, work, output, start_over)


def sft(world: World, config: Config, run: Run, notify: Notify = quiet, start_over: bool = True) -> Record:
    """The cold start: fine-tuning on worked solutions of training problems (R1 2.3.1)."""
    return fine_tune(world, config, run, "sft", config.sft, "pretrain", notify=notify, start_over=start_over)


def sft_control(world: World, config: Config, run: Run, notify: Notify = quiet) -> Record:
    """The control of GRPO: the cold start goes on, on the same solutions, for as much compute."""
    return fine_tune(world, config, run, "sft_control", config.sft_control, "sft", config.sft.steps, notify)


def fine_tune(
    world: World,
    config: Config,
    run: Run,
    stage: str,
    train: TrainConfig,
    source: str,
    skip: int = 0,
    notify: Notify = quiet,
    start_over: bool = True,
) -> Record:
    """Supervised training on worked solutions from the weights of stage `source`; `skip` batches lie behind."""

    def dialogues(tokenizer: Tokenizer) -> list[DialogueIds]:
        if world.is_main:
            solved_problems(config, run, tokenizer)
        world.barrier()
        return solved_problems(config, run, tokenizer)

    return supervise(
        world, config, run, stage, train, source, dialogues, {"task": config.task}, skip, notify, start_over
    )


def supervise(
    world: World,
    config: Config,
    run: Run,
    stage: str,
    train: TrainConfig,
    source: str,
    dialogues: Callable[[Tokenizer], Sequence[DialogueIds]],
    inputs: dict[str, object],
    skip: int = 0,
    notify: Notify = quiet,
    start_over: bool = True,
) -> Record:
    """Supervised training on dialogues, which follow from `inputs`, from the weights of stage `source`."""
    require_layout(stage, train, config.model, world)
    if config.lora.rank and train.precision == "fp8":
        raise ValueError(
            f"lora.rank={config.lora.rank} trains beside weights that {stage}.precision=fp8 would requantise at every "
            "step; choose one of the two"
        )
    require_whole(config)

    def work() -> Record:
        tokenizer = Tokenizer.load(run.tokenizer_path)
        rows = dialogues(tokenizer)
        loader = DialogueLoader(
            rows,
            pad_id=tokenizer.pad_id,
            seq_len=train.seq_len,
            batch_rows=train.batch_rows,
            seed=config.seed,
            rank=world.rows.rank,
            world=world.rows.size,
        )
        model = adapt(model_of_stage(config, run, world, source), config.lora, config.seed)
        place = Place(run, stage, world, compute_dtype(config, world), notify, config.resilience)
        state = train_language(place, train, model, lambda step, rows: loader.batch(skip + step, rows))
        return training_record(run, stage, state.model, world, train, dialogues_hash(rows))

    inputs = {
        "train": train,
        **({"lora": config.lora} if config.lora.rank else {}),
        **inputs,
        "seed": config.seed,
        "readers": readers_that_count(train, world),
        "weights": hash_of_stage(config, run, source) if world.is_main else None,
    }
    output = checkpoint_path(run.checkpoint_dir(stage), train.steps)
    return run_stage(run, world, config, stage, inputs, work, output, start_over)


def grpo(world: World, config: Config, run: Run, notify: Notify = quiet, start_over: bool = True) -> Record:
    """Reinforcement learning on the task, from the cold start or, as R1-Zero, from the pretrained model."""
    cold = config.cold_start and (not begins_with_base(config, run) or run.read_ledger("sft"))
    source = "sft" if cold else "pretrain"
    inputs: dict[str, object] = {"task": config.task}
    return reinforce(
        world, config, run, "grpo", config.grpo, source, lambda _: build(config.task), inputs, notify, start_over
    )


def reinforce(
    world: World,
    config: Config,
    run: Run,
    stage: str,
    law: GRPOConfig,
    source: str,
    task_of: Callable[[Tokenizer], Task],
    inputs: dict[str, object],
    notify: Notify = quiet,
    start_over: bool = True,
) -> Record:
    """Reinforcement learning on a task, which follows from `inputs`, from the weights of stage `source`."""
    if config.lora.rank and law.objective.advantage == "gae":
        raise ValueError(
            f"lora.rank={config.lora.rank} does not go with a critic, whose whole model is trained; choose another "
            "objective, such as dr_grpo, or lora.rank=0"
        )
    require_whole(config)
    if world.layout.pipeline > 1:
        raise ValueError(
            f"parallel.pipeline={world.layout.pipeline} spreads layers for pretrain and sft alone: reinforcement "
            "samples from whole models; run it with --parallel.pipeline 1, whose checkpoints any cut can read"
        )
    require_whole_layers(world)
    if law.objective.advantage == "gae":
        require_no_critic(world)

    def work() -> Record:
        tokenizer = Tokenizer.load(run.tokenizer_path)
        model = adapt(model_of_stage(config, run, world, source), config.lora, config.seed)
        place = Place(run, stage, world, compute_dtype(config, world), notify, config.resilience)
        task = task_of(tokenizer)
        state = train_grpo(place, law, model, task, tokenizer, config.seed, config.dollars_per_hour)
        lines = run.read_metrics(stage)
        per_token = train_flops_per_token(model.config, law.sampling.max_tokens, mtp=False)
        sampled, trained = (sum(line[name] for line in lines) for name in ("rollout_tokens", "trained_tokens"))
        return {
            "steps": state.step,
            **budget_record(law, lines),
            "tokens": int(sampled),
            "trained_tokens": int(trained),
            "flops": per_token * (sampled / 3 + trained),  # a forward pass is a third of a training step
            "data_hash": fingerprint({**inputs, "seed": config.seed}),  # of what all problems follow from
            "weights_hash": hash_of_weights(whole_weights(state.model)),
        }

    depends: dict[str, object] = {
        "grpo": unlimited(law),  # more money lets the same stage go on
        **({"lora": config.lora} if config.lora.rank else {}),
        **inputs,
        "seed": config.seed,
        "processes": world.rows.size,
        "weights": hash_of_stage(config, run, source) if world.is_main else None,
    }
    output = checkpoint_path(run.checkpoint_dir(stage), law.steps)
    return run_stage(run, world, config, stage, depends, work, output, start_over)


def unlimited(config: GRPOConfig) -> GRPOConfig:
    """The same stage whatever it may cost."""
    plain = GRPOConfig()
    return replace(config, budget_dollars=0.0, plateau_steps=plain.plateau_steps, plateau_gain=plain.plateau_gain)


def budget_record(law: GRPOConfig, lines: Sequence[Record]) -> Record:
    """Of a stage with a budget: what was spent, why it ended, and what more would cost."""
    if not law.budget_dollars or not lines:
        return {}
    accuracies = [line["accuracy"] for line in lines if line.get("accuracy") is not None]
    spent = lines[-1].get("spent_dollars", 0.0)
    outlook = next_points(accuracies, spent / len(lines), law.plateau_steps)
    stopped = lines[-1].get("stopped", "")
    return {"budget": {"dollars": law.budget_dollars, "spent": spent, "stopped": stopped, "outlook": outlook}}


def evaluation(world: World, config: Config, run: Run, name: str, source: str) -> Record:
    """Accuracy of stage `source` on held-out problems, and a few of its answers as examples."""
    require_samples(config.eval.k, config.eval.samples)

    def work() -> Record:
        tokenizer = Tokenizer.load(run.tokenizer_path)
        task = build(config.task)
        problems = distinct_problems(task, config.eval.problems, EVALUATION_SEED)
        require_held_out(problems, run.config.task.held_out_share)  # the run's own, whatever the flags say
        model = model_of_stage(config, run, world, source)
        score, answers = evaluate(
            model, task, tokenizer, problems, config.eval, config.grpo.sampling, config.seed, world
        )
        if world.is_main:
            keep_examples(run, name, answers)
        return {
            "score": score.as_record() | score_at(tried(answers), config.eval.k),
            "tokens": int(score.mean_length * score.answers),
            "data_hash": problems_hash(problems),
            "weights_hash": weights_hash(model),
        }

    weights = hash_of_stage(config, run, source) if world.is_main else None
    return run_stage(run, world, config, name, evaluation_inputs(config, weights), work)


def evaluation_inputs(config: Config, weights: str | None) -> dict[str, object]:
    """All that the score of the weights with hash `weights` depends on."""
    return {
        "eval": config.eval,
        "task": config.task,
        "sampling": config.grpo.sampling,
        "seed": config.seed,
        "weights": weights,
    }


def random_control(world: World, config: Config, run: Run, after: str) -> Record:
    """The other control: random legal play with the model's own mean number of tries."""
    task = build(config.task)
    if not isinstance(task, Countdown):
        return {}
    tries = max(1.0, last_line(run, after)["score"]["mean_tries"]) if world.is_main else 1.0

    def work() -> Record:
        problems = distinct_problems(task, config.eval.problems, EVALUATION_SEED)
        return {"score": random_play(task, problems, tries, config.seed), "data_hash": problems_hash(problems)}

    inputs: dict[str, object] = {"eval": config.eval, "task": config.task, "tries": tries, "seed": config.seed}
    return run_stage(run, world, config, "control_random", inputs, work)


def speculation(world: World, config: Config, run: Run, source: str) -> Record:
    """Greedy decoding with drafts of the MTP module against decoding without: equal texts, acceptance, speed."""
    if not config.model.num_nextn_predict_layers:
        return {}
    checked = min(CHECKED, config.eval.problems)

    def work() -> Record:
        record: Record = {}
        if world.is_main:
            tokenizer = Tokenizer.load(run.tokenizer_path)
            problems = distinct_problems(build(config.task), checked, EVALUATION_SEED)
            prompts = [render_prompt(tokenizer, problem.question) for problem in problems]
            model = model_of_stage(config, run, world, source)
            report = speculate_greedy(model, prompts, tokenizer.stop_ids, config.grpo.sampling.max_tokens)
            tokens = sum(len(text) for text in report.texts)
            score = {
                "equal": report.equal,
                "answers": len(prompts),
                "acceptance": round(report.acceptance, 4),
                "acceptance_by_position": [round(share, 4) for share in report.acceptance_by_position],
                "tokens_per_step": round(report.tokens_per_step, 4),
                "plain_tokens_per_s": round(tokens / report.plain_seconds, 1),
                "speculative_tokens_per_s": round(tokens / report.seconds, 1),
            }
            record = {"score": score, "data_hash": problems_hash(problems), "weights_hash": weights_hash(model)}
        world.barrier()
        return record

    inputs: dict[str, object] = {
        "checked": checked,
        "task": config.task,
        "sampling": config.grpo.sampling,
        "weights": hash_of_stage(config, run, source) if world.is_main else None,
    }
    return run_stage(run, world, config, "mtp_check", inputs, work)


def require_layout(stage: str, train: TrainConfig, model: ModelConfig, world: World) -> None:
    """Refuse a batch that cannot be shared out evenly, and a layout that the planner refuses."""
    c, rows = world.layout, world.rows.size
    if train.batch_rows % rows:
        raise ValueError(
            f"{stage}.batch_rows={train.batch_rows} does not divide among {rows} workers; "
            f"choose a multiple of {rows} or another --workers"
        )
    share = train.batch_rows // rows
    # a pipeline's micro-batches are equal, while others may end in a smaller one
    micro = train.micro_batch_rows if c.pipeline > 1 else share
    layout = Layout(
        data=replicas(c, world.size),
        shard=c.shard,
        zero=c.zero,
        expert=c.expert,
        pipeline=c.pipeline,
        context=c.context,
        schedule=c.schedule,
        micro_batches=max(1, share // micro),
        micro_batch_rows=micro,
        recompute=c.recompute,
        precision="fp32",
    )
    check(layout, model, Devices(count=world.size, hardware=HARDWARE["laptop"]), train.batch_rows, train.seq_len)


def readers_that_count(train: TrainConfig, world: World) -> int:
    """Processes with rows of their own where other rows would be read by another number: a growing batch is rounded."""
    return world.rows.size if train.schedule.batch_ramp else 1


def require_whole(config: Config) -> None:
    """Refuse adapters on weights that are spread, and in checkpoints in parts, which name the model's own weights."""
    if not config.lora.rank:
        return
    spread = {name: getattr(config.parallel, name) for name in ("shard", "expert", "pipeline", "context")}
    if name := next((name for name, ways in spread.items() if ways > 1), ""):
        raise ValueError(
            f"lora.rank={config.lora.rank} adapts weights that every process holds whole, but parallel.{name}="
            f"{spread[name]}; leave it at 1, or lora.rank at 0"
        )
    if config.parallel.checkpoint == "sharded":
        raise ValueError(
            f"lora.rank={config.lora.rank} keeps adapters in whole checkpoints alone, but parallel.checkpoint=sharded; "
            "leave it at auto, or lora.rank at 0"
        )


def new_model(config: Config, world: World) -> Transformer:
    """A model with fresh weights, or with those of the checkpoint that `init` names.

    Where processes hold parts of it, a fresh one comes without memory: each draws its own parts in `train_language`.
    """
    c = world.layout
    if not config.init and max(c.shard, c.expert, c.pipeline) > 1:
        return without_memory(config.model)
    model = Transformer(config.model)
    if config.init:
        load_weights(Path(config.init), model)
    else:
        model.initialise(torch.Generator().manual_seed(config.seed))
    return model.to(world.device)


def model_of_stage(config: Config, run: Run, world: World, stage: str) -> Transformer:
    """The model as the newest checkpoint of a stage left it; before any pretraining it is that of `config.init`."""
    if stage == "pretrain" and begins_with_base(config, run):
        return base_model(config, world.device)
    checkpoints = list_checkpoints(run.checkpoint_dir(stage))
    if not checkpoints:
        raise ValueError(f"{run.path} holds no checkpoint of the stage {stage}; run `fathom {stage}` first")
    model = Transformer(config.model)
    load_weights(checkpoints[-1], model)
    return model.to(world.device)


def hash_of_stage(config: Config, run: Run, stage: str) -> str:
    """The hash of a finished stage's weights, or of the checkpoint in `config.init` before any pretraining."""
    return last_line(run, "base" if stage == "pretrain" and begins_with_base(config, run) else stage)["weights_hash"]


def dialogues_hash(rows: Sequence[DialogueIds]) -> str:
    """Hex SHA-256 of dialogues' ids, in their order."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(np.array([len(row.prompt), len(row.reply)], np.int64).tobytes())
        digest.update(np.concatenate(row).astype(np.int64).tobytes())
    return digest.hexdigest()


def problems_hash(problems: Sequence[Problem]) -> str:
    """Hex SHA-256 of the problems' own hashes, in their order."""
    return fingerprint([problem.key for problem in problems])


def last_line(run: Run, stage: str) -> Record:
    """The newest ledger line of a stage that must have run."""
    lines = run.read_ledger(stage)
    if not lines:
        raise ValueError(f"{run.path} has not finished the stage {stage}; run `fathom {stage}` first")
    return lines[-1]


def training_record(
    run: Run, stage: str, model: Transformer, world: World, train: TrainConfig, data_hash: str
) -> Record:
    """The ledger's figures of a training stage; every process must ask."""
    lines = run.read_metrics(stage)
    flops_per_token = {mtp: train_flops_per_token(model.config, train.seq_len, mtp) for mtp in (False, True)}
    return {
        "steps": train.steps,
        "tokens": sum(line["tokens"] for line in lines),
        "flops": sum(flops_per_token["loss_mtp" in line] * line["tokens"] for line in lines),
        "loss": lines[-1]["loss_main"] if lines else None,
        "data_hash": data_hash,
        "weights_hash": hash_of_weights(whole_weights(model, world.mesh.pipeline)),
    }


def keep_examples(run: Run, stage: str, answers: list[Answer]) -> None:
    """Keep a few sampled answers, drawn without looking at whether they are right."""
    sampled = {answer.problem.key: answer for answer in answers if not answer.greedy}
    keys = random.Random(0).sample(sorted(sampled), min(SHOWN, len(sampled)))
    run.forget_samples(stage)
    for answer in (sampled[key] for key in keys):
        reply = parse_reply(answer.reply)
        run.append_sample(
            stage,
            question=answer.problem.question,
            thinking=reply.thinking,
            answer=reply.answer,
            correct=answer.correct,
            reply=answer.reply,
        )
