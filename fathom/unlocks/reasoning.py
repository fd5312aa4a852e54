"""What cards about reasoning share: a base model that has seen no problem of its task, and what it is then taught."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from fathom.chain.data import open_text, prepare_text
from fathom.chain.stages import EVALUATION_SEED
from fathom.checkpoint.files import list_checkpoints
from fathom.checkpoint.state import load_weights
from fathom.config import Config, EvalConfig, GRPOConfig, ModelConfig, TaskConfig, TextConfig, TrainConfig
from fathom.eval.suite import Answer, Score, evaluate
from fathom.model import Transformer
from fathom.parallel.world import World
from fathom.presets import LAPTOP
from fathom.rl.loop import train_grpo
from fathom.runs import Record, Run
from fathom.tasks import Task, distinct_problems
from fathom.text.dialogues import DialogueIds
from fathom.text.packing import PackedLoader
from fathom.text.padding import DialogueLoader
from fathom.text.tokenizer import Tokenizer
from fathom.train.loop import Place, train_language
from fathom.unlocks.experiment import Context, Size

Make = Callable[[Path], None]
POINTS = 12  # of a curve over steps
TASK_TEXT = (
    "Countdown with three numbers up to 20, + and -; scores are over held-out problems, two sampled answers to each"
)
BASE_TEXT = (
    "The base model has read text, worked sums, and expressions in the form of the task, but none of its problems, "
    "which is checked"
)


@dataclass(frozen=True, kw_only=True)
class Course:
    """A base model, and how it is reinforced on a task; courses of one seed meet the same questions."""

    model: ModelConfig
    text: TextConfig  # what the base model reads
    pretrain: TrainConfig
    task: TaskConfig
    grpo: GRPOConfig
    eval: EvalConfig


@dataclass(frozen=True)
class Stage:
    """A model as a stage of training left it, kept in a directory of its own that is named by all it follows from."""

    run: Run
    name: str
    config: ModelConfig

    @property
    def tokenizer(self) -> Tokenizer:
        return Tokenizer.load(self.run.tokenizer_path)

    @property
    def steps(self) -> list[Record]:
        """The metrics of every step."""
        return self.run.read_metrics(self.name)

    def model(self, device: torch.device) -> Transformer:
        model = Transformer(self.config)
        load_weights(list_checkpoints(self.run.checkpoint_dir(self.name))[-1], model)
        return model.to(device)


MODEL: dict[Size, ModelConfig] = {
    "toy": LAPTOP.model,
    "cpu": LAPTOP.model,
    "gpu": replace(LAPTOP.model, hidden_size=128, num_hidden_layers=4, intermediate_size=352),
}
DOCUMENTS: dict[Size, int] = {"toy": 200, "cpu": 20_000, "gpu": 40_000}
READ: dict[Size, tuple[int, int, int]] = {"toy": (4, 4, 64), "cpu": (2700, 8, 128), "gpu": (3000, 32, 128)}
ROLLOUTS: dict[Size, tuple[int, int, int]] = {"toy": (2, 2, 4), "cpu": (200, 16, 16), "gpu": (300, 32, 16)}
LONGEST: dict[Size, int] = {"toy": 16, "cpu": 48, "gpu": 48}  # tokens of an answer
PROBLEMS: dict[Size, int] = {"toy": 8, "cpu": 400, "gpu": 600}


def course(size: Size) -> Course:
    """The laptop preset without its cold start: R1-Zero in small. No MTP, which none of this is about."""
    steps, rows, length = READ[size]
    rollouts, prompts, group = ROLLOUTS[size]
    documents = {"arithmetic_documents": DOCUMENTS[size], "expression_documents": DOCUMENTS[size]}
    return Course(
        model=replace(MODEL[size], num_nextn_predict_layers=0),
        text=replace(LAPTOP.text, **documents),
        pretrain=replace(
            LAPTOP.pretrain,
            steps=steps,
            batch_rows=rows,
            micro_batch_rows=rows,
            seq_len=length,
            save_every=steps,
            validate_every=0,
        ),
        task=LAPTOP.task,
        grpo=replace(
            LAPTOP.grpo,
            steps=rollouts,
            prompts=prompts,
            group=group,
            save_every=rollouts,
            sampling=replace(LAPTOP.grpo.sampling, max_tokens=LONGEST[size]),
        ),
        eval=EvalConfig(problems=PROBLEMS[size], samples=2),
    )


def corpus(context: Context, course: Course) -> Run:
    """The base model's text as shards, with a tokenizer; the same for every seed."""

    def make(path: Path) -> None:
        prepare_text(_as_config(course), Run(path))

    return Run(context.checkpoint({"corpus": {"text": course.text, "task": course.task}}, make))


def base(context: Context, course: Course, seed: int, read: Run) -> Stage:
    """The base model of this seed, which has read what `corpus` wrote."""
    tokenizer, train = Tokenizer.load(read.tokenizer_path), course.pretrain

    def make(path: Path) -> None:
        shards = open_text(_as_config(course), read, tokenizer)
        loader = PackedLoader(
            shards.training, shards.shares, seq_len=train.seq_len, batch_rows=train.batch_rows, seed=seed
        )
        model = Transformer(course.model)
        model.initialise(torch.Generator().manual_seed(seed))
        model.to(context.device)
        train_language(_place(context, path, "pretrain"), train, model, loader.batch, seed=seed)

    made_from = {"pretrain": train, "model": course.model, "read": read.path.name, "shares": course.text, "seed": seed}
    return _stage(context, made_from, "pretrain", course.model, tokenizer, make)


def tune(
    context: Context, train: TrainConfig, start: Stage, taught: Sequence[DialogueIds], why: Any, seed: int
) -> Stage:
    """Supervised training from `start` on dialogues, which follow from `why`, as JSON can hold it."""
    tokenizer = start.tokenizer

    def make(path: Path) -> None:
        loader = DialogueLoader(
            taught, pad_id=tokenizer.pad_id, seq_len=train.seq_len, batch_rows=train.batch_rows, seed=seed
        )
        place = _place(context, path, "sft")
        train_language(place, train, start.model(context.device), loader.batch, seed=seed)

    made_from = {"sft": train, "start": start.run.path.name, "dialogues": why, "seed": seed}
    return _stage(context, made_from, "sft", start.config, tokenizer, make)


def reinforce(context: Context, law: GRPOConfig, start: Stage, task: Task, asked: Any, seed: int) -> Stage:
    """Reinforcement from `start` on a task, which follows from `asked`, as JSON can hold it."""
    tokenizer = start.tokenizer

    def make(path: Path) -> None:
        train_grpo(_place(context, path, "grpo"), law, start.model(context.device), task, tokenizer, seed)

    made_from = {"grpo": law, "start": start.run.path.name, "task": asked, "seed": seed}
    return _stage(context, made_from, "grpo", start.config, tokenizer, make)


def examine(context: Context, course: Course, task: Task, stage: Stage, seed: int) -> tuple[Score, list[Answer]]:
    """Score and answers on held-out problems, which are the same for every seed and model."""
    problems = distinct_problems(task, course.eval.problems, EVALUATION_SEED)
    model, world = stage.model(context.device), World(0, 1, context.device)
    context.check_time()
    return evaluate(model, task, stage.tokenizer, problems, course.eval, course.grpo.sampling, seed, world)


def curve(steps: Sequence[Record], name: str) -> list[tuple[float, float]]:
    """A metric over steps in at most `POINTS` means of neighbouring steps, each at the last of them."""
    width = max(1, len(steps) // POINTS)
    stretches = [steps[at : at + width] for at in range(0, len(steps) - width + 1, width)]
    return [(each[-1]["step"], sum(line[name] for line in each) / width) for each in stretches]


def mean_curve(curves: Sequence[Sequence[Sequence[float]]]) -> list[tuple[float, float]]:
    """The mean of several seeds' curves over the same steps."""
    return [(points[0][0], sum(y for _, y in points) / len(points)) for points in zip(*curves, strict=True)]


def _as_config(course: Course) -> Config:
    return replace(LAPTOP, text=course.text, task=course.task, model=course.model, seed=0)


def _place(context: Context, path: Path, stage: str) -> Place:
    def notify(step: int, metrics: dict[str, object]) -> None:
        context.check_time()

    dtype = torch.bfloat16 if context.device.type == "cuda" else torch.float32
    return Place(Run(path), stage, World(0, 1, context.device), dtype, notify)


def _stage(
    context: Context, made_from: dict[str, Any], name: str, config: ModelConfig, tokenizer: Tokenizer, make: Make
) -> Stage:
    def make_with_tokenizer(path: Path) -> None:
        make(path)
        tokenizer.save(Run(path).tokenizer_path)

    key = {**made_from, "device": context.device.type}
    return Stage(Run(context.checkpoint(key, make_with_tokenizer)), name, config)
