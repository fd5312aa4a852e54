"""Experts balanced by a bias on their selection instead of a loss (V3 2.1.2; Wang et al. 2024)."""

from collections.abc import Sequence
from dataclasses import asdict, replace

from fathom.config.model import MoEConfig
from fathom.runs import Record
from fathom.unlocks.drawing import Bars
from fathom.unlocks.experiment import Claim, Context, Experiment, Figures, Result, Size
from fathom.unlocks.lesson import STREAM_TEXT, Lesson, baseline, final_loss, steps_of, teach
from fathom.unlocks.verdict import above, all_of, below, over_seeds

NOTHING, LOSS, BIAS, BOTH = "no balancing", "auxiliary loss", "selection bias", "both"
ALPHA = 1e-2  # of the loss alone: ten times the published 0.001, for a run thousands of times shorter
ALPHA_BESIDE_BIAS = 1e-4  # V3 4.2
SPEED = 1e-3  # V3 4.2
LATE = 0.75  # share of the steps after which loads are counted
CLOSE = 0.005  # by which share of its loss the bias may be worse than the auxiliary loss
EXPERTS: dict[Size, tuple[int, int, int]] = {"toy": (8, 2, 16), "cpu": (16, 2, 32), "gpu": (64, 6, 64)}


def variants(size: Size) -> dict[str, Lesson]:
    """One mixture of experts, balanced in four ways."""
    plain = baseline(size)
    experts, chosen, width = EXPERTS[size]

    def balanced(speed: float = 0.0, alpha: float = 0.0) -> Lesson:
        moe = MoEConfig(
            n_routed_experts=experts,
            num_experts_per_tok=chosen,
            moe_intermediate_size=width,
            bias_update_speed=speed,
            seq_aux_alpha=alpha,
        )
        return replace(plain, model=replace(plain.model, moe=moe))

    return {
        NOTHING: balanced(),
        LOSS: balanced(alpha=ALPHA),
        BIAS: balanced(speed=SPEED),
        BOTH: balanced(speed=SPEED, alpha=ALPHA_BESIDE_BIAS),
    }


def measure(context: Context, seed: int) -> Figures:
    """Imbalance of the worst layer and validation loss of every variant."""
    runs = {name: teach(context, lesson, seed) for name, lesson in variants(context.size).items()}
    return {name: {"max_vio": late_violation(steps_of(run)), "loss": final_loss(run)} for name, run in runs.items()}


def late_violation(steps: Sequence[Record]) -> float:
    """MaxVio of the worst layer: the largest load over the mean one, less 1, of the late steps' tokens together."""
    late = [step["expert_shares"] for step in steps[int(LATE * len(steps)) :]]
    layers = [[sum(shares) / len(late) for shares in zip(*layer, strict=True)] for layer in zip(*late, strict=True)]
    return max(max(loads) * len(loads) / sum(loads) - 1 for loads in layers)


def conclude(seeds: Sequence[Figures]) -> Result:
    """Supported where the bias balances better than the loss does, at no noticeable cost in validation loss."""
    violations = {name: over_seeds([seed[name]["max_vio"] for seed in seeds]) for name in seeds[0]}
    losses = {name: over_seeds([seed[name]["loss"] for seed in seeds]) for name in seeds[0]}
    gain = over_seeds([seed[LOSS]["max_vio"] - seed[BIAS]["max_vio"] for seed in seeds])
    price = over_seeds([seed[BIAS]["loss"] / seed[LOSS]["loss"] - 1 for seed in seeds])
    return Result(
        measured=f"MaxVio {violations[LOSS].text('.2f')} with the loss, {violations[BIAS].text('.2f')} with the bias; "
        f"validation loss {price.text('+.2%')} with the bias",
        verdict=all_of(above(gain), below(price, CLOSE)),
        because=f"the bias is to have the smaller MaxVio (it is {gain.text('.2f')} smaller), and a validation loss "
        f"less than {CLOSE:.1%} above that of the auxiliary loss; {len(seeds)} seeds, 95 % intervals of pairs",
        headings=("balanced by", "MaxVio", "validation loss, nats"),
        rows=[(name, violations[name].text(".2f"), losses[name].text(".3f")) for name in violations],
        charts=[
            Bars(
                title="How uneven the experts' loads are",
                caption="Largest load over the mean one, less 1, of the worst layer; the last quarter of the steps.",
                axis="MaxVio",
                bars={name: interval.bar for name, interval in violations.items()},
                published={LOSS: 0.72, BIAS: 0.04},
            )
        ],
        figures={"gain": asdict(gain), "price": asdict(price)},
    )


EXPERIMENT = Experiment(
    name="balance",
    title="Experts balanced without a loss",
    claim=Claim(
        says="A bias on the selection of experts balances their loads better than an auxiliary loss, and the model is "
        "no worse, for no gradient disturbs it.",
        source="DeepSeek-V3 2.1.2, Table 5; Wang et al. 2024 (arXiv 2408.15664)",
        published="MaxVio 0.04 against 0.72, perplexity 9.50 against 9.56",
        conditions="1B parameters, 100B tokens, auxiliary loss of weight 0.001; loads over a whole validation set",
    ),
    variants=variants,
    changes=frozenset({"model.moe.bias_update_speed", "model.moe.seq_aux_alpha"}),
    minutes={"toy": 0.1, "cpu": 8, "gpu": 6},
    seeds=3,
    measure=measure,
    conclude=conclude,
    shows=f"how evenly experts are used, and at what loss, when only the balancing differs; trained on {STREAM_TEXT}. "
    "The auxiliary loss is V3's sequence-wise one.",
    does_not_show="what happens over billions of tokens, where an auxiliary loss has long pulled on the weights; the "
    "model and its text are small, and the auxiliary loss was not tuned. MaxVio is taken on training "
    "tokens, not on a validation set as printed, and the auxiliary loss is sequence-wise: it asks evenness of "
    "every sequence, MaxVio of the batch.",
)
