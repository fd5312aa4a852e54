"""GRPO from end to end: sampling, grading and one update, on the same model, prompts and lengths."""

import logging
import os
import random
import time
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
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
from fathom.parallel.world import World, choose_device, keep_freed_memory
from fathom.presets import preset
from fathom.rl.loop import Reference, rollout_metrics, share, update
from fathom.rl.reward import score
from fathom.rl.rollout import open_engine, roll_out
from fathom.rl.sync import Sampler
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
TOKENS_LEARNED = 4096  # entries of the tokenizer at most: the sample of text holds few more


@dataclass(frozen=True)
class RolloutSize:
    """Answers and tokens of one step, and how many steps make a turn."""

    prompts: int
    group: int
    max_tokens: int
    steps: int
    words: int = 0  # that precede a question, so that its prompt is longer
    micro_batch_rows: int = GRPOConfig.micro_batch_rows

    @property
    def grpo(self) -> GRPOConfig:
        """One update a rollout, and no group is dropped: every sampled token is trained on."""
        return GRPOConfig(
            steps=MANY_STEPS,
            prompts=self.prompts,
            group=self.group,
            refill_rounds=0,
            micro_batch_rows=self.micro_batch_rows,
            objective=ObjectiveConfig(drop_equal_groups=False),
            reward=REWARD,
            sampling=SamplingConfig(max_tokens=self.max_tokens),
            optimizer=OptimizerConfig(lr=LEARNING_RATE, weight_decay=0.0),
            schedule=ScheduleConfig(warmup_steps=0, decay="constant"),
        )


@dataclass(frozen=True)
class Hardware:
    """Where a side works."""

    device: str

    @property
    def on_gpu(self) -> bool:
        return self.device == "cuda"

    @property
    def dtype(self) -> torch.dtype:
        """Of products; weights that are trained are float32."""
        return torch.bfloat16 if self.on_gpu else torch.float32

    @property
    def forms(self) -> list[tuple[int, int]]:
        """Processes and the threads of each: ours by the last, the peer by the fastest."""
        return [(1, 1)] if self.on_gpu else [(1, 2), (2, 1)]

    def settle(self, world: World) -> World:
        """The process's world; alone on a GPU, none that a peer would look for others in."""
        if self.on_gpu:
            for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
                os.environ.pop(name, None)
        return replace(world, device=torch.device(self.device))

    def peak_gib(self) -> float | None:
        """The most memory of the GPU that this process has held."""
        return round(torch.cuda.max_memory_allocated() / 2**30, 2) if self.on_gpu else None


SIZES = {
    "cpu": (RolloutSize(prompts=32, group=8, max_tokens=48, steps=2),),
    "cuda": (RolloutSize(prompts=32, group=8, max_tokens=256, steps=1, words=104, micro_batch_rows=32),),
}
ROUNDS = {"cpu": 7, "cuda": 3}
ON_GPU = "qwen2.5-0.5b"  # the preset whose shape is measured there


def main(
    peer: str,
    config: ModelConfig | None = None,
    sizes: Sequence[RolloutSize] = (),
    rounds: int = 0,
    device: str = "auto",
) -> dict[str, Any]:
    """Completion tokens per second of wall time, sampling and training together, beside TRL's GRPOTrainer if asked.

    The weights are fresh, so answers run to their full length but for the few that end by chance. On a CPU each side
    has both cores: as two processes, and the peer also as one process of two threads, of which the faster counts. What
    is left out takes what suits the device.
    """
    require_peer("rollout", peer, "trl")
    place = Hardware(choose_device(device).type)
    config = config or (preset(ON_GPU).model if place.on_gpu else SHAPE)
    conditions = describe_conditions()
    sizes, rounds = sizes or SIZES[place.device], rounds or ROUNDS[place.device]
    measured = [_measure(peer, config, size, rounds, place) for size in sizes]
    model = describe_shape(config)
    return {"bench": "rollout", "peer": peer, "device": place.device, "model": model, "sizes": measured, **conditions}


def _measure(peer: str, config: ModelConfig, size: RolloutSize, rounds: int, place: Hardware) -> dict[str, Any]:
    log.info("sampling and training on %d x %d answers of %d tokens", size.prompts, size.group, size.max_tokens)
    with ExitStack() as stack:
        path = stack.enter_context(published_with_tokenizer(config))
        teams = [stack.enter_context(Team("fathom", *place.forms[-1], roll_out_fathom, path, size, place))]
        if peer == "trl":
            teams += [stack.enter_context(Team("trl", *form, roll_out_trl, path, size, place)) for form in place.forms]
        speeds, last = play(teams, rounds)
        settings = {team.name: team.ready[0] for team in teams if team.ready[0]}
    answers = size.prompts * size.group * size.steps
    lengths = {name: sum(result["tokens"] for result in results) / answers for name, results in last.items()}
    seen = {
        name: {key: value for key, value in results[0].items() if key != "tokens"} for name, results in last.items()
    }
    return {
        **asdict(size),
        "steps": size.steps * rounds,
        "mean_length": {name: round(length, 2) for name, length in lengths.items()},
        "settings": settings,
        "last_turn": {name: found for name, found in seen.items() if found},
        **summarize(speeds, "fathom"),
    }


@contextmanager
def published_with_tokenizer(config: ModelConfig) -> Generator[Path]:
    """A directory with fresh weights and a tokenizer; of a larger vocabulary it has no names for the rest."""
    tokenizer = Tokenizer.train(read_documents(["sample"]), min(config.vocab_size, TOKENS_LEARNED))
    with published(replace(config, bos_token_id=tokenizer.bos_id, eos_token_id=tokenizer.eos_id)) as path:
        tokenizer.save(path / "tokenizer.json")
        write_tokenizer_config(path, BOS, EOS, PAD, CHAT_TEMPLATE)
        yield path


def problems_of(size: RolloutSize) -> list[Problem]:
    """The prompts of both sides."""
    problems = distinct_problems(build(TaskConfig()), size.prompts, seed=0, held_out=False)
    before = " ".join(str(n % 10) for n in range(size.words // 2))  # a digit and a space are a token each
    return [replace(problem, question=f"{before} {problem.question}".lstrip()) for problem in problems]


class SameProblems:
    """A task whose problems come in a fixed order."""

    def __init__(self, task: Task, problems: Sequence[Problem]) -> None:
        self._problems = cycle(problems)
        self.worked, self.grade, self.soundness = task.worked, task.grade, task.soundness

    def sample(self, rng: random.Random, held_out: bool) -> Problem:
        return next(self._problems)


def roll_out_fathom(world: World, turn: Turn, path: Path, size: RolloutSize, place: Hardware) -> None:
    """A team's job: the steps of Fathom's GRPO loop, without what it writes to disk."""
    keep_freed_memory()
    world = place.settle(world)
    config, tokenizer, model = size.grpo, Tokenizer.load(path / "tokenizer.json"), load_published(path)
    model = model.to(world.device)
    task = SameProblems(build(TaskConfig()), problems_of(size)[world.rank :: world.size])
    here = Place(Run(path), "grpo", world, dtype=place.dtype)
    state = TrainState.start(model, config.optimizer)
    reference = Reference(state, config)
    questions = share(size.prompts, world.rank, world.size)
    sampler = Sampler(model, world, place.dtype)
    engine = open_engine(sampler.model, config, questions)
    result: dict[str, Any] = {}
    while turn(result):
        tokens, prompt, sampled_s, gaps = 0, 0, 0.0, dict[str, Any]()
        for _ in range(size.steps):
            began = time.perf_counter()
            sampler.refresh()
            draw = f"0/{state.step}/{world.rank}"
            rollout = roll_out(engine, task, tokenizer, config, questions, state.step, draw)
            sampled_s += time.perf_counter() - began
            updated = update(here, config, state, reference, rollout)
            gaps = {name: updated[name] for name in ("gap", "gap_k3")}
            rollout_metrics(here, rollout)
            tokens, prompt = tokens + rollout.tokens, len(rollout.sampled[0].prompt)
        speed = {"rollout_tokens_per_s": round(tokens / sampled_s), "peak_gib": place.peak_gib()}
        result = {"tokens": tokens, "prompt": prompt, **speed, **gaps}


def roll_out_trl(world: World, turn: Turn, path: Path, size: RolloutSize, place: Hardware) -> None:
    """A team's job: TRL's trainer, which takes its turns between steps. On a GPU its weights are BF16."""
    world = place.settle(world)
    trl, transformers, datasets = map(import_module, ("trl", "transformers", "datasets"))
    problems, task, tokenizer = problems_of(size), build(TaskConfig()), Tokenizer.load(path / "tokenizer.json")
    model = load_transformers(path, place.dtype, world.device)
    rows = size.prompts * size.group // world.size
    experts, cache = "", "dynamic"  # on a GPU a static cache, compiled, made its steps longer
    if not place.on_gpu:
        prompts = torch.tensor([render_prompt(tokenizer, problem.question) for problem in problems[: size.group]])
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
                peak = {"peak_gib": place.peak_gib()} if place.on_gpu else {}
                control.should_training_stop = not turn(counted | peak)
                counted["tokens"] = 0

    form = f"{BOS}{USER}{{}}{ASSISTANT}{THINK}"
    lines = [{"prompt": form.format(problem.question), "number": number} for number, problem in enumerate(problems)]
    settings = trl.GRPOConfig(
        output_dir=str(path / "trl"),
        use_cpu=not place.on_gpu,
        bf16=place.on_gpu,
        optim="adamw_torch_fused",
        learning_rate=LEARNING_RATE,
        adam_beta2=0.95,
        max_grad_norm=1.0,
        lr_scheduler_type="constant",
        max_steps=MANY_STEPS,
        per_device_train_batch_size=min(rows, size.micro_batch_rows),  # all rows are sampled together
        gradient_accumulation_steps=max(1, rows // size.micro_batch_rows),
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
