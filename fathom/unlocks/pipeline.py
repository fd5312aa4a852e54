"""How long a pipeline's processes wait under each schedule, measured beside the formula (V3 3.2.1, Table 2)."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import median

import numpy as np
import torch

from fathom.config import AttentionConfig, ModelConfig, MoEConfig, OptimizerConfig, ParallelConfig
from fathom.model import Transformer
from fathom.model.parallelize import parallelize
from fathom.parallel.world import World, launch
from fathom.plan.measured import Measured, Note, from_record
from fathom.text.packing import Batch
from fathom.train.loss import Denominators
from fathom.train.pipeline import Pipeline, task_of
from fathom.train.pipeline_step import pipeline_step
from fathom.train.step import Rates, TrainState
from fathom.unlocks.drawing import Bars
from fathom.unlocks.experiment import Claim, Context, Experiment, Figures, Result, Size
from fathom.unlocks.verdict import above, all_of, over_seeds

PLAIN, ZERO, DUAL = "1F1B", "ZBV", "DualPipeV"
RATES = Rates(lr=1e-3, clip_norm=1.0, bias_speed=1e-3)
RANKS: dict[Size, int] = {"toy": 2, "cpu": 2, "gpu": 4}
STEPS: dict[Size, int] = {"toy": 2, "cpu": 7, "gpu": 9}  # the first of them does not count: connections are made in it
WORK: dict[Size, tuple[int, int]] = {"toy": (32, 16), "cpu": (256, 128), "gpu": (512, 256)}  # width, tokens of a row
ROWS = 2  # of a micro-batch


@dataclass(frozen=True, kw_only=True)
class Passing:
    """Steps of a model whose layers are spread over processes."""

    model: ModelConfig
    parallel: ParallelConfig
    micro_batches: int
    seq_len: int
    steps: int


def variants(size: Size) -> dict[str, Passing]:
    """The schedules that the trainer has, on the same model and the same micro-batches."""
    width, seq_len = WORK[size]
    ranks = RANKS[size]
    attention = AttentionConfig(
        num_attention_heads=width // 16,
        num_key_value_heads=width // 16,
        kv_lora_rank=width // 2,
        qk_nope_head_dim=16,
        qk_rope_head_dim=8,
        v_head_dim=16,
    )
    model = ModelConfig(
        vocab_size=64,  # so that the ends of the pipeline weigh no more than its middle
        hidden_size=width,
        num_hidden_layers=4 * ranks,
        num_nextn_predict_layers=0,
        attention=attention,
        moe=MoEConfig(n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=width),
    )
    plain = Passing(
        model=model,
        parallel=ParallelConfig(pipeline=ranks),
        micro_batches=4 * ranks,
        seq_len=seq_len,
        steps=STEPS[size],
    )
    return {
        PLAIN: plain,
        ZERO: replace(plain, parallel=replace(plain.parallel, schedule="zbv")),
        DUAL: replace(plain, parallel=replace(plain.parallel, schedule="dualpipev")),
    }


def measure(context: Context, seed: int) -> Figures:
    """Losses, which no schedule may change, and by the clocks of all processes the idle shares of the steps."""
    passings = variants(context.size)
    context.check_time()
    layout, threads = passings[PLAIN].parallel, torch.get_num_threads()
    try:
        found = launch(layout.pipeline, "cpu", pass_all, passings, seed, layout=layout)
    finally:
        torch.set_num_threads(threads)  # this process was one of them, and took one
    losses, records = found
    steps = {name: [from_record(record) for record in each[1:]] for name, each in records.items()}
    return {"loss": losses, "timed": {name: idle_shares(each) for name, each in steps.items()}}


def pass_all(
    world: World, passings: Mapping[str, Passing], seed: int
) -> tuple[dict[str, float], dict[str, list[dict[str, object]]]]:
    """Every variant in turn on the same processes: its last loss, and each step as measured."""
    losses: dict[str, float] = {}
    records: dict[str, list[dict[str, object]]] = {}
    for name, passing in passings.items():
        losses[name], records[name] = pass_steps(replace(world, layout=passing.parallel), passing, seed)
    return losses, records


def pass_steps(world: World, passing: Passing, seed: int) -> tuple[float, list[dict[str, object]]]:
    """Training steps of one variant."""
    model = Transformer(passing.model)
    model.initialise(torch.Generator().manual_seed(seed))
    pipeline = Pipeline(model, world)
    state = TrainState.start(parallelize(model, world), OptimizerConfig(lr=RATES.lr))
    loss, records = 0.0, list[dict[str, object]]()
    for step in range(passing.steps):
        batches, notes = _rows(passing, seed, step), list[Note]()
        denominators = Denominators.of(batches, 0, world)
        task = task_of(batches, passing.model, denominators, 0.0, world)
        loss = pipeline_step(state, pipeline, task, RATES, world, notes=notes).parts["loss"]
        records.append(pipeline.chart(notes, len(batches)))
    return round(loss, 5), records


def _rows(passing: Passing, seed: int, step: int) -> list[Batch]:
    """The micro-batches of a step, of random tokens: what is learned is of no matter."""
    shape = (ROWS * passing.micro_batches, passing.seq_len + 1)
    tokens = np.random.default_rng([seed, step]).integers(0, passing.model.vocab_size, shape)
    rows, length = shape[0], passing.seq_len
    whole = Batch(
        tokens=tokens[:, :-1],
        targets=tokens[:, 1:],
        weights=np.ones((rows, length), np.float32),
        positions=np.tile(np.arange(length), (rows, 1)),
        segments=np.zeros((rows, length), np.int64),
    )
    return [whole.rows(at, at + ROWS) for at in range(0, rows, ROWS)]


def idle_shares(steps: Sequence[Measured]) -> dict[str, float]:
    """Medians over steps of what was idle, what the planner plays out with the measured times, what the formula says.

    With them the milliseconds that a step's passes took.
    """
    return {
        "idle": median(step.timeline.bubble_share for step in steps),
        "played": median(step.ideal.bubble_share for step in steps),
        "formula": median(step.formula for step in steps),
        "ms": median(step.timeline.makespan for step in steps),
    }


def conclude(seeds: Sequence[Figures]) -> Result:
    """Supported where both later schedules leave processes idle for a smaller share of a step, at equal losses."""
    names = list(seeds[0]["loss"])
    shares = {
        name: {
            key: over_seeds([seed["timed"][name][key] for seed in seeds]) for key in ("idle", "played", "formula", "ms")
        }
        for name in names
    }
    less = {
        name: over_seeds([seed["timed"][PLAIN]["idle"] - seed["timed"][name]["idle"] for seed in seeds])
        for name in (ZERO, DUAL)
    }
    apart = max(abs(seed["loss"][name] / seed["loss"][PLAIN] - 1) for seed in seeds for name in names)
    return Result(
        measured="; ".join(
            f"{name} {shares[name]['idle'].text('.1%')} idle, {shares[name]['ms'].mean:.0f} ms" for name in names
        ),
        verdict=all_of(above(less[ZERO]), above(less[DUAL])),
        because=f"either later schedule is to leave its processes idle for a smaller share of the step than 1F1B (ZBV "
        f"by {less[ZERO].text('.1%')}, DualPipeV by {less[DUAL].text('.1%')}); losses of all lie within {apart:.0e}; "
        f"{len(seeds)} seeds, 95 % intervals of pairs",
        headings=("schedule", "idle, measured", "played out", "by formula", "passes of a step, ms"),
        rows=[
            (
                name,
                *(shares[name][key].text(".1%") for key in ("idle", "played", "formula")),
                shares[name]["ms"].text(".0f"),
            )
            for name in names
        ],
        charts=[
            Bars(
                title="Idle time of a pipeline's processes",
                caption="Share of all processes' time in the passes of a step; diamonds are the published formula with "
                "the measured times of forward and backward.",
                axis="share of time",
                bars={name: shares[name]["idle"].bar for name in names},
                published={name: shares[name]["formula"].mean for name in names},
            )
        ],
        figures={
            "idle": {name: shares[name]["idle"].mean for name in names},
            "less": {n: asdict(i) for n, i in less.items()},
        },
    )


EXPERIMENT = Experiment(
    name="pipeline",
    title="The bubble of a pipeline",
    claim=Claim(
        says="Schedules that put off the weights' gradients and pass both ways leave a pipeline's processes less idle "
        "than 1F1B does.",
        source="DeepSeek-V3 3.2.1, Table 2; the code of DualPipe",
        published="idle over PP stages: (PP - 1)(F + B) with 1F1B, (PP/2 - 1)(F&B + B - 3W) with DualPipe",
        conditions="a formula: all passes take equal times, and messages none; V3 ran 16 stages",
    ),
    variants=variants,
    changes=frozenset({"parallel.schedule"}),
    minutes={"toy": 0.3, "cpu": 1.5, "gpu": 3},
    seeds=3,
    measure=measure,
    conclude=conclude,
    shows="how long processes wait when a real training step passes through them, on processors, one process a core, "
    "with messages through memory; at every size, for one over GPUs has not been measured here. DualPipeV is the half "
    "of DualPipe that needs no second copy of the weights; its bubble is the same.",
    does_not_show="that a step gets shorter: gradients taken apart cost time of their own, which the table has. Nor "
    "what overlapping messages with computing is worth, for which DualPipe was made: processors exchange little and "
    "have no units to spare. A machine with fewer free cores than processes measures its own crowding.",
)
