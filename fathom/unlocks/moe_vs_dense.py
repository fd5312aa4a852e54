"""Experts against dense layers: loss at equal operations a token, and at equal parameters (V2 3.2; V3 2.1.2)."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from statistics import mean

from fathom.config.model import MoEConfig
from fathom.plan.count import main_parameters, train_flops_per_token
from fathom.unlocks.balance import EXPERTS
from fathom.unlocks.drawing import Bars, Curves
from fathom.unlocks.experiment import Claim, Context, Experiment, Figures, Result, Size
from fathom.unlocks.lesson import STREAM_TEXT, Lesson, baseline, final_loss, sized, steps_of, teach
from fathom.unlocks.verdict import below, over_seeds

ACTIVE, EXPERT, TOTAL = "dense, equal operations", "experts", "dense, equal parameters"
POINTS = 12  # of a curve
PRINTED = 1 - 172.8 / 300.6  # of the GPU-hours a token that V2 saves beside DeepSeek 67B; V2 3.2.3


def variants(size: Size) -> dict[str, Lesson]:
    """Experts balanced as V3's, a dense model of the weights that one token meets, and one of all their weights."""
    plain = baseline(size)
    experts, chosen, width = EXPERTS[size]
    moe = MoEConfig(n_routed_experts=experts, num_experts_per_tok=chosen, moe_intermediate_size=width)
    sparse = replace(plain.model, moe=moe)
    dense = replace(plain.model, moe=replace(moe, n_routed_experts=0))
    active = sized(dense, main_parameters(sparse, active=True))
    models = {
        ACTIVE: active,
        EXPERT: replace(active, moe=moe),
        TOTAL: sized(dense, main_parameters(sparse)),
    }
    return {name: replace(plain, model=model) for name, model in models.items()}


def measure(context: Context, seed: int) -> Figures:
    """Validation loss of every variant, and its training loss over the operations spent."""
    found: Figures = {}
    for name, lesson in variants(context.size).items():
        run = teach(context, lesson, seed)
        found[name] = {
            "loss": final_loss(run),
            "parameters": main_parameters(lesson.model),
            "flops_per_token": flops_per_token(lesson),
            "curve": curve([step["loss_main"] for step in steps_of(run)], flops_per_step(lesson)),
        }
    return found


def flops_per_token(lesson: Lesson) -> float:
    """Operations of training, forward and backward, for a token."""
    return train_flops_per_token(lesson.model, lesson.train.seq_len, mtp=False)


def flops_per_step(lesson: Lesson) -> float:
    """Operations of an optimizer step."""
    return flops_per_token(lesson) * lesson.train.batch_rows * lesson.train.seq_len


def curve(losses: Sequence[float], flops: float) -> list[tuple[float, float]]:
    """(operations spent, mean loss of the steps since the point before) at evenly spread steps, `flops` each."""
    points = min(POINTS, len(losses))
    ends = [len(losses) * (i + 1) // points for i in range(points)]
    return [(flops * end, mean(losses[start:end])) for start, end in zip([0, *ends], ends, strict=False)]


def conclude(seeds: Sequence[Figures]) -> Result:
    """Supported where experts end below the dense model that does as many operations a token."""
    losses = {name: over_seeds([seed[name]["loss"] for seed in seeds]) for name in seeds[0]}
    against = {
        name: over_seeds([seed[EXPERT]["loss"] / seed[name]["loss"] - 1 for seed in seeds]) for name in (ACTIVE, TOTAL)
    }
    first = seeds[0]
    share = first[EXPERT]["flops_per_token"] / first[TOTAL]["flops_per_token"]
    return Result(
        measured=f"validation loss {against[ACTIVE].text('+.2%')} beside the dense model of equal operations, "
        f"{against[TOTAL].text('+.2%')} beside that of equal parameters, at {share:.0%} of its operations",
        verdict=below(against[ACTIVE], 0.0),
        because="experts are to end with a smaller validation loss than the dense model that does as many operations "
        f"a token, on the same tokens (it is {against[ACTIVE].text('+.2%')}); {len(seeds)} seeds, 95 % interval of "
        "pairs; the model of equal parameters is shown as what experts could reach at best",
        headings=("model", "parameters", "MFLOP a token", "validation loss, nats"),
        rows=[
            (name, f"{first[name]['parameters']:,}", f"{first[name]['flops_per_token'] / 1e6:.2f}", loss.text(".3f"))
            for name, loss in losses.items()
        ],
        charts=[
            Curves(
                title="Loss against compute",
                caption="Training loss, mean over seeds and over the steps since the point before; the n-th points "
                "of all curves stand at equally many tokens.",
                x="operations spent, TFLOP",
                y="training loss, nats",
                curves={name: _mean_curve([seed[name]["curve"] for seed in seeds]) for name in first},
                log_x=True,
            ),
            Bars(
                title="Loss on kept documents at the end",
                caption="After equally many tokens.",
                axis="validation loss, nats",
                bars={name: loss.bar for name, loss in losses.items()},
            ),
        ],
        figures={"against": {name: asdict(interval) for name, interval in against.items()}, "operations": share},
    )


def _mean_curve(curves: Sequence[Sequence[Sequence[float]]]) -> list[tuple[float, float]]:
    return [(points[0][0] / 1e12, mean(loss for _, loss in points)) for points in zip(*curves, strict=True)]


EXPERIMENT = Experiment(
    name="moe-vs-dense",
    title="Experts learn more from the same compute",
    claim=Claim(
        says="A mixture of experts has more parameters than its operations a token pay for, and learns more from the "
        "same compute: DeepSeek-V2 outdoes the dense DeepSeek 67B at lower cost.",
        source="DeepSeek-V2 3.2.3",
        published=f"{PRINTED:.1%} of the training hours saved, with better scores",
        conditions="236B parameters, 21B of them active, against 67B dense; 172.8K against 300.6K H800 hours per "
        "trillion tokens; attention, data and amount of training differ too",
    ),
    variants=variants,
    changes=frozenset({"model.intermediate_size", "model.moe.n_routed_experts"}),
    minutes={"toy": 0.1, "cpu": 6, "gpu": 5},
    seeds=3,
    measure=measure,
    conclude=conclude,
    shows="the loss of experts beside dense layers where nothing else differs, at equal operations a token, router "
    f"counted, and at equal parameters; all see the same tokens, of {STREAM_TEXT}.",
    does_not_show="hours: operations are counted, and small experts use a machine worse than one wide layer. On so "
    "little text more parameters help less than over trillions of tokens, and no learning rate was tuned.",
)
