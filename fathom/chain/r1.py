"""What follows GRPO in R1: rejection sampling, tuning anew, RL on all scenarios, distillation (R1 2.3, 2.4)."""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

from fathom.chain import stages
from fathom.chain.stage import Record, file_hash, run_stage
from fathom.config import Config, GRPOConfig
from fathom.eval.passk import wilson
from fathom.infer.engine import Engine
from fathom.parallel.world import World
from fathom.rl.reject import draw_and_sift, mixed
from fathom.rl.reward_model import accuracy, load_reward_model, save_reward_model, train_reward_model
from fathom.rl.scenarios import GeneralTask, Scenarios
from fathom.runs import Run, write_whole
from fathom.tasks import Task, build, distinct_problems
from fathom.text.dialogues import Dialogue, DialogueIds, encode_dialogue
from fathom.text.general import (
    Preference,
    balanced,
    made_up_dialogues,
    made_up_preferences,
    read_dialogues,
    read_preferences,
    split_preferences,
)
from fathom.text.tokenizer import Tokenizer
from fathom.train.loop import Notify

Step = tuple[str, Callable[[Notify], Record], int]  # what it is called, what it does, its optimizer steps


def steps(world: World, config: Config, run: Run) -> list[Step]:
    """The stages behind GRPO, in their order."""
    r1, student = config.r1, student_config(config)
    found: list[Step] = [
        ("rejection sampling", lambda _: reject(world, config, run), 0),
        ("tuning anew from the base", lambda n: tune(world, config, run, n), r1.tune.steps),
        ("evaluation of it", lambda _: stages.evaluation(world, config, run, "eval_tune", "tune"), 0),
        ("reward model", lambda _: reward_model(world, config, run), 0),
        ("RL on what rules check", lambda n: rl(world, config, run, n), r1.rl.steps - r1.preference_steps),
    ]
    if r1.preference_steps:
        found.append(("RL on all scenarios", lambda n: preference_rl(world, config, run, n), r1.preference_steps))
    last = last_policy(config)
    return [
        *found,
        ("evaluation after RL", lambda _: stages.evaluation(world, config, run, "eval_rl", last), 0),
        (
            "the student's pretraining",
            lambda n: stages.pretrain(world, student, run, n, stage="student"),
            r1.student_pretrain.steps,
        ),
        ("distillation", lambda n: distill(world, config, run, n), r1.distill.steps),
        ("evaluation of the student", lambda _: stages.evaluation(world, student, run, "eval_distill", "distill"), 0),
    ]


def last_policy(config: Config) -> str:
    """The stage that leaves the finished policy."""
    return "rl_preference" if config.r1.preference_steps else "rl"


def student_config(config: Config) -> Config:
    """The config of the model that is taught."""
    return replace(config, model=config.r1.student, pretrain=config.r1.student_pretrain, init="")


def reject(world: World, config: Config, run: Run) -> Record:
    """Answers of the reinforced model to training problems; the right, readable and different ones are kept."""
    law = config.r1.reject

    def work() -> Record:
        tokenizer, task = Tokenizer.load(run.tokenizer_path), build(config.task)
        problems = distinct_problems(task, law.problems, config.seed, held_out=False)
        mine = list(range(world.rank, len(problems), world.size))
        engine = Engine(stages.model_of_stage(config, run, world, "grpo"), rows=config.eval.rows)
        own = [problems[at] for at in mine]
        sifted = draw_and_sift(engine, task, tokenizer, own, config.grpo.sampling, law, config.seed, mine)
        parts = cast(list[tuple[list[Dialogue], Counter[str]]], world.gather((sifted.dialogues, sifted.counts)))
        kept = [dialogue for dialogues, _ in parts for dialogue in dialogues]
        counts = sum((each for _, each in parts), Counter[str]())
        if not kept:
            raise RuntimeError(
                f"none of {counts.total()} answers was right and readable, so there is nothing to tune on; train the "
                "policy further, or raise r1.reject.problems"
            )
        if world.is_main:
            write_dialogues(kept_path(run), kept)
        world.barrier()
        return {"kept": len(kept), "counts": dict(counts), "data_hash": file_hash(kept_path(run))}

    inputs: dict[str, object] = {
        "reject": law,
        "task": config.task,
        "sampling": config.grpo.sampling,
        "seed": config.seed,
        "weights": stages.hash_of_stage(config, run, "grpo") if world.is_main else None,
    }
    return run_stage(run, world, config, "reject", inputs, work, kept_path(run))


def tune(world: World, config: Config, run: Run, notify: Notify = stages.quiet) -> Record:
    """From the pretrained model once more, on what was kept and on general dialogues (R1 2.3.3)."""
    return _learn(world, config, run, "tune", "pretrain", notify)


def distill(world: World, config: Config, run: Run, notify: Notify = stages.quiet) -> Record:
    """The student learns from the same dialogues; it is not reinforced (R1 2.4)."""
    return _learn(world, student_config(config), run, "distill", "student", notify)


def _learn(world: World, config: Config, run: Run, stage: str, source: str, notify: Notify) -> Record:
    r1 = config.r1

    def dialogues(tokenizer: Tokenizer) -> Sequence[DialogueIds]:
        both = mixed(read_kept(run), general_dialogues(config), r1.general_share, config.seed)
        return [encode_dialogue(tokenizer, dialogue) for dialogue in both]

    inputs: dict[str, object] = {
        "kept": file_hash(kept_path(run)) if world.is_main else None,
        "general": file_hash(Path(r1.general_file)) if r1.general_file else "made up",
        "share": r1.general_share,
    }
    train = r1.tune if stage == "tune" else r1.distill
    return stages.supervise(world, config, run, stage, train, source, dialogues, inputs, notify=notify)


def reward_model(world: World, config: Config, run: Run) -> Record:
    """A model of what people prefer, with its accuracy on pairs of other questions."""
    law = config.r1.preference

    def work() -> Record:
        tokenizer = Tokenizer.load(run.tokenizer_path)
        trained, held_out = preferences(config)
        policy = stages.model_of_stage(config, run, world, "tune")
        model, losses = train_reward_model(policy, tokenizer, balanced(trained), law, config.seed, world)
        if world.is_main:
            save_reward_model(model, reward_model_path(run))
        world.barrier()
        right = accuracy(model, tokenizer, held_out)
        low, high = wilson(round(right * len(held_out)), len(held_out))
        return {
            "steps": law.steps,
            "loss": losses[-1],
            "score": {"pairs_right": right, "low": low, "high": high, "pairs": len(held_out)},
            "data_hash": file_hash(Path(law.file)) if law.file else "made up",
            "weights_hash": file_hash(reward_model_path(run)),
        }

    inputs: dict[str, object] = {
        "preference": law,
        "file": file_hash(Path(law.file)) if law.file else "",
        "seed": config.seed,
        "processes": world.size,
        "weights": stages.hash_of_stage(config, run, "tune") if world.is_main else None,
    }
    return run_stage(run, world, config, "reward_model", inputs, work, reward_model_path(run))


def rl(world: World, config: Config, run: Run, notify: Notify = stages.quiet) -> Record:
    """Reinforcement of the tuned model where rules check (R1 2.3.4)."""
    law = replace(config.r1.rl, steps=config.r1.rl.steps - config.r1.preference_steps)
    inputs: dict[str, object] = {"task": config.task}
    return stages.reinforce(world, config, run, "rl", law, "tune", lambda _: build(config.task), inputs, notify)


def preference_rl(world: World, config: Config, run: Run, notify: Notify = stages.quiet) -> Record:
    """Its last steps, with general questions that the reward model judges: few, or it learns to please the model."""
    law: GRPOConfig = replace(config.r1.rl, steps=config.r1.preference_steps)
    inputs: dict[str, object] = {
        "task": config.task,
        "share": config.r1.preference_share,
        "reward_model": file_hash(reward_model_path(run)) if world.is_main else None,
    }
    return stages.reinforce(
        world, config, run, "rl_preference", law, "rl", lambda t: scenarios(world, config, run, t), inputs, notify
    )


def scenarios(world: World, config: Config, run: Run, tokenizer: Tokenizer) -> Task:
    """The run's task, and general questions beside it."""
    trained, held_out = preferences(config)
    policy = stages.model_of_stage(config, run, world, "tune")
    model = load_reward_model(reward_model_path(run), policy).to(world.device)
    general = GeneralTask([*trained, *held_out], model, tokenizer, config.r1.preference.held_out_share)
    return Scenarios(build(config.task), general, config.r1.preference_share)


def general_dialogues(config: Config) -> list[Dialogue]:
    """The user's, or made up ones."""
    path = config.r1.general_file
    return read_dialogues(Path(path)) if path else made_up_dialogues(config.seed, config.r1.reject.problems)


def preferences(config: Config) -> tuple[list[Preference], list[Preference]]:
    """Pairs to train on, and pairs of other questions; ValueError where either side is empty."""
    law = config.r1.preference
    pairs = read_preferences(Path(law.file)) if law.file else made_up_preferences(config.seed, law.pairs)
    trained, held_out = split_preferences(pairs, law.held_out_share)
    if not balanced(trained) or not held_out:
        raise ValueError(
            f"{law.file or 'the made-up pairs'} leave {len(balanced(trained))} pairs to train on, whose better answer "
            f"is as often the longer as the shorter, and {len(held_out)} to judge by; give more, or another "
            "r1.preference.held_out_share"
        )
    return trained, held_out


def kept_path(run: Run) -> Path:
    """What rejection sampling kept."""
    return run.path / "kept.jsonl"


def reward_model_path(run: Run) -> Path:
    """The reward model's weights."""
    return run.checkpoint_dir("reward_model") / "model.safetensors"


def write_dialogues(path: Path, dialogues: Sequence[Dialogue]) -> None:
    """One JSON object a line, `question` and `reply`; the whole file at once."""
    write_whole(path, "".join(json.dumps(dialogue._asdict()) + "\n" for dialogue in dialogues))


def read_kept(run: Run) -> list[Dialogue]:
    """What `write_dialogues` wrote."""
    return [Dialogue(**json.loads(line)) for line in kept_path(run).read_text(encoding="utf-8").splitlines()]
