"""GRPO from end to end: sampling, grading and one update, on the same model, prompts and lengths."""

import logging
import random
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from importlib import import_module
from itertools import cycle
from pathlib import Path
from typing import Any

import torch

from fathom.bench.peers import fastest_generation, load_transformers, require_peer
from fathom.bench.rounds import describe_conditions, play, summarize
from fathom.bench.shape import SHAPE, describe_shape, published
from fathom.bench.team import Team, Turn
from fathom.checkpoint.hub import load_published
from fathom.checkpoint.tokenizer import CHAT_TEMPLATE, write_tokenizer_config
from fathom.config import (
    GRPOConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimizerConfig,
    RewardConfig,
    SamplingConfig,
    ScheduleConfig,
    TaskConfig,
)
from fathom.infer import Engine
from fathom.parallel.world import World, keep_freed_memory
from fathom.rl.loop import Reference, rollout_metrics, share, update
from fathom.rl.reward import score
from fathom.rl.rollout import roll_out
from fathom.runs import Run
from fathom.tasks import Problem, Task, build, distinct_problems
from fathom.text.chat import ASSISTANT, BOS, EOS, PAD, THINK, USER, render_prompt
from fathom.text.corpus import read_documents
from fathom.text.tokenizer import Tokenizer
from fathom.train.loop import Place
from fathom.train.step import TrainState

log = logging.getLogger(__name__)

REWARD = RewardConfig(accuracy=1.0, format=0.1, language=1.0)  # language alone tells the babble of fresh weights apart
LEARNING_RATE = 1e-6  # low: both policies stay where they are, and so do the lengths of their answers
MANY_STEPS = 1_000_000  # that are never reached


@dataclass(frozen=True)
class RolloutSize:
    """Answers and tokens of one step, and how many steps make a turn."""

    prompts: int
    group: int
    max_tokens: int
    steps: int

    @property
    def grpo(self) -> GRPOConfig:
        """One update a rollout, and no group is dropped: every sampled token is trained on."""
        return GRPOConfig(
            steps=MANY_STEPS,
            prompts=self.prompts,
            group=self.group,
            refill_rounds=0,
            objective=ObjectiveConfig(drop_equal_groups=False),
            reward=REWARD,
            sampling=SamplingConfig(max_tokens=self.max_tokens),
            optimizer=OptimizerConfig(lr=LEARNING_RATE, weight_decay=0.0),
            schedule=ScheduleConfig(warmup_steps=0, decay="constant"),
        )


SIZES = (RolloutSize(prompts=32, group=8, max_tokens=48, steps=2),)
ROUNDS = 7


def main(
    peer: str, config: ModelConfig = SHAPE, sizes: Sequence[RolloutSize] = SIZES, rounds: int = ROUNDS
) -> dict[str, Any]:
    """Completion tokens per second of wall time, sampling and training together, beside TRL's GRPOTrainer if asked.

    The weights are fresh, so answers run to their full length but for the few that end by chance. Each side has both
    cores: as two processes, and the peer also as one process of two threads, of which the faster counts.
    """
    require_peer("rollout", peer, "trl")
    conditions = describe_conditions()
    measured = [_measure(peer, config, size, rounds) for size in sizes]
    return {"bench": "rollout", "peer": peer, "model": describe_shape(config), "sizes": measured, **conditions}


def _measure(peer: str, config: ModelConfig, size: RolloutSize, rounds: int) -> dict[str, Any]:
    log.info("sampling and training on %d x %d answers of %d tokens", size.prompts, size.group, size.max_tokens)
    with ExitStack() as stack:
        path = stack.enter_context(published_with_tokenizer(config))
        teams = [stack.enter_context(Team("fathom", 2, 1, roll_out_fathom, path, size))]
        if peer == "trl":
            teams.append(stack.enter_context(Team("trl", 1, 2, roll_out_trl, path, size)))
            teams.append(stack.enter_context(Team("trl", 2, 1, roll_out_trl, path, size)))
        speeds, last = play(teams, rounds)
        settings = {team.name: team.ready[0] for team in teams if team.ready[0]}
    answers = size.prompts * size.group * size.steps
    lengths = {name: sum(result["tokens"] for result in results) / answers for name, results in last.items()}
    return {
        "prompts": size.prompts,
        "group": size.group,
        "max_tokens": size.max_tokens,
        "steps": size.steps * rounds,
        "mean_length": {name: round(length, 2) for name, length in lengths.items()},
        "settings": settings,
        **summarize(speeds, "fathom"),
    }


@contextmanager
def published_with_tokenizer(config: ModelConfig) -> Generator[Path]:
    """A directory with fresh weights and a tokenizer of as many entries."""
    tokenizer = Tokenizer.train(read_documents(["sample"]), config.vocab_size)
    with published(replace(config, bos_token_id=tokenizer.bos_id, eos_token_id=tokenizer.eos_id)) as path:
        tokenizer.save(path / "tokenizer.json")
        write_tokenizer_config(path, BOS, EOS, PAD, CHAT_TEMPLATE)
        yield path


def problems_of(size: RolloutSize) -> list[Problem]:
    """The prompts of both sides."""
    return distinct_problems(build(TaskConfig()), size.prompts, seed=0, held_out=False)


class SameProblems:
    """A task whose problems come in a fixed order."""

    def __init__(self, task: Task, problems: Sequence[Problem]) -> None:
        self._problems = cycle(problems)
        self.worked, self.grade, self.soundness = task.worked, task.grade, task.soundness

    def sample(self, rng: random.Random, held_out: bool) -> Problem:
        return next(self._problems)


def roll_out_fathom(world: World, turn: Turn, path: Path, size: RolloutSize) -> None:
    """A team's job: the steps of Fathom's GRPO loop, without what it writes to disk."""
    keep_freed_memory()
    config, tokenizer, model = size.grpo, Tokenizer.load(path / "tokenizer.json"), load_published(path)
    task = SameProblems(build(TaskConfig()), problems_of(size)[world.rank :: world.size])
    place = Place(Run(path), "grpo", world)
    state = TrainState.start(model, config.optimizer)
    reference = Reference(state, config)
    questions = share(size.prompts, world.rank, world.size)
    engine = Engine(model, rows=questions * size.group)
    result: dict[str, Any] = {}
    while turn(result):
        tokens = 0
        for _ in range(size.steps):
            draw = f"0/{state.step}/{world.rank}"
            rollout = roll_out(engine, task, tokenizer, config, questions, state.step, draw)
            update(place, config, state, reference, rollout)
            rollout_metrics(place, rollout)
            tokens += rollout.tokens
        result = {"tokens": tokens}


def roll_out_trl(world: World, turn: Turn, path: Path, size: RolloutSize) -> None:
    """A team's job: TRL's trainer, which takes its turns between steps."""
    trl, transformers, datasets = map(import_module, ("trl", "transformers", "datasets"))
    problems, task, tokenizer = problems_of(size), build(TaskConfig()), Tokenizer.load(path / "tokenizer.json")
    model = load_transformers(path)
    prompts = torch.tensor([render_prompt(tokenizer, problem.question) for problem in problems[: size.group]])
    rows = size.prompts * size.group // world.size
    experts, cache = fastest_generation(model, prompts.repeat(rows // size.group, 1), size.max_tokens, world)
    counted = {"tokens": 0}

    def reward(completions: list[str], completion_ids: list[list[int]], number: list[int], **_: Any) -> list[float]:
        counted["tokens"] += sum(map(len, completion_ids))
        totals = [score(task, problems[n], text, REWARD).total for n, text in zip(number, completions, strict=True)]
        return [0.0 if total is None else total for total in totals]

    class Turns(transformers.TrainerCallback):
        """Gives the word to the other side behind every turn of steps."""

        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            turn({"experts": experts, "cache": cache})

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step % size.steps == 0:
                control.should_training_stop = not turn(dict(counted))
                counted["tokens"] = 0

    form = f"{BOS}{USER}{{}}{ASSISTANT}{THINK}"
    lines = [{"prompt": form.format(problem.question), "number": number} for number, problem in enumerate(problems)]
    settings = trl.GRPOConfig(
        output_dir=str(path / "trl"),
        use_cpu=True,
        bf16=False,
        optim="adamw_torch_fused",
        learning_rate=LEARNING_RATE,
        adam_beta2=0.95,
        max_grad_norm=1.0,
        lr_scheduler_type="constant",
        max_steps=MANY_STEPS,
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=1,
        num_generations=size.group,
        max_completion_length=size.max_tokens,
        temperature=1.0,
        top_k=0,
        beta=0.0,
        num_iterations=1,
        cache_implementation=cache,
        shuffle_dataset=False,
        gradient_checkpointing=False,
        ddp_find_unused_parameters=False,
        dataloader_pin_memory=False,
        report_to=[],
        logging_strategy="no",
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = trl.GRPOTrainer(
        model=model,
        reward_funcs=reward,
        args=settings,
        train_dataset=datasets.Dataset.from_list(lines * 64),  # a step an epoch would start its loader each time
        processing_class=transformers.AutoTokenizer.from_pretrained(path, padding_side="left"),
        callbacks=[Turns()],
    )
    trainer.train()
