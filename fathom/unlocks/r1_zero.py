"""Reasoning from rewards by rule alone: accuracy and length over GRPO's steps from a base model (R1 2.2)."""

from collections.abc import Sequence
from dataclasses import asdict, replace

from fathom.tasks import build
from fathom.unlocks.drawing import Curves
from fathom.unlocks.experiment import Claim, Context, Experiment, Figures, Result, Size
from fathom.unlocks.reasoning import (
    BASE_TEXT,
    TASK_TEXT,
    Course,
    Stage,
    base,
    corpus,
    course,
    curve,
    examine,
    mean_curve,
    reinforce,
)
from fathom.unlocks.verdict import above, all_of, over_seeds

CONTROL, ZERO = "format alone", "accuracy and format"
GAIN = 0.1  # by which accuracy is to exceed the base model's, and the control's
CURVES = ("reward", "accuracy", "length")


def variants(size: Size) -> dict[str, Course]:
    """The same reinforcement, paid for the form of an answer, or also for its being right."""
    plain = course(size)

    def paid(accuracy: float) -> Course:
        reward = replace(plain.grpo.reward, accuracy=accuracy, format=0.1, soundness=0.0)
        return replace(plain, grpo=replace(plain.grpo, reward=reward))

    return {CONTROL: paid(0.0), ZERO: paid(1.0)}


def measure(context: Context, seed: int) -> Figures:
    """Score and length of the base model and behind either reinforcement, and the curves between."""
    courses = variants(context.size)
    first = courses[CONTROL]
    task, start = build(first.task), base(context, first, seed, corpus(context, first))
    found: Figures = {"base": score(context, first, start, seed)}
    for name, taught in courses.items():
        end = reinforce(context, taught.grpo, start, task, taught.task, seed)
        curves = {metric: curve(end.steps, metric) for metric in CURVES}
        found[name] = {**score(context, taught, end, seed), "curves": curves}
    return found


def score(context: Context, course: Course, stage: Stage, seed: int) -> dict[str, float]:
    """Share of right answers and their mean length in tokens, as sampled on held-out problems."""
    got, _ = examine(context, course, build(course.task), stage, seed)
    return {"accuracy": got.sampled, "length": got.mean_length}


def conclude(seeds: Sequence[Figures]) -> Result:
    """Supported where accuracy rises, the reward for it is why, and answers grow longer."""
    gain = over_seeds([seed[ZERO]["accuracy"] - seed["base"]["accuracy"] for seed in seeds])
    lead = over_seeds([seed[ZERO]["accuracy"] - seed[CONTROL]["accuracy"] for seed in seeds])
    growth = over_seeds([seed[ZERO]["length"] / seed["base"]["length"] for seed in seeds])
    start, end = (over_seeds([seed[name]["accuracy"] for seed in seeds]) for name in ("base", ZERO))
    return Result(
        measured=f"{start.text('.1%')} right before, {end.text('.1%')} after; answers {growth.text('.2f')} times as "
        "long",
        verdict=all_of(above(gain, GAIN), above(lead, GAIN), above(growth, 1.0)),
        because=f"accuracy is to rise by more than {GAIN:.0%} of all problems (it rose by {gain.text('.1%')}) and to "
        f"exceed by as much that of the control (by {lead.text('.1%')}), and answers are to grow longer; "
        f"{len(seeds)} seeds, 95 % intervals",
        headings=("model", "right, held out", "tokens of an answer"),
        rows=[(name, *_cells(seeds, name)) for name in ("base", CONTROL, ZERO)],
        charts=[
            _chart(seeds, "accuracy", "Right answers while it learns", "share of right answers"),
            _chart(seeds, "length", "Length of its answers", "tokens"),
            _chart(seeds, "reward", "The reward, of which each has its own", "mean reward"),
        ],
        figures={"gain": asdict(gain), "lead": asdict(lead), "growth": asdict(growth)},
    )


def _cells(seeds: Sequence[Figures], name: str) -> tuple[str, str]:
    accuracy, length = (over_seeds([seed[name][key] for seed in seeds]) for key in ("accuracy", "length"))
    return accuracy.text(".1%"), length.text(".1f")


def _chart(seeds: Sequence[Figures], metric: str, title: str, y: str) -> Curves:
    return Curves(
        title=title,
        caption="Mean over seeds, of answers to problems that it trains on, each drawn before the step learns from it.",
        x="steps",
        y=y,
        curves={name: mean_curve([seed[name]["curves"][metric] for seed in seeds]) for name in (CONTROL, ZERO)},
    )


EXPERIMENT = Experiment(
    name="r1-zero",
    title="Reasoning from rewards by rule alone",
    claim=Claim(
        says="Paid by rule for right answers and their form, shown no solution, a base model learns to reason, and "
        "takes longer to think all by itself.",
        source="DeepSeek-R1 2.2, Table 2, Figures 2 and 3",
        published="AIME 2024 from 15.6 % to 71.0 %; answers from hundreds to some ten thousand tokens",
        conditions="V3-Base, 10,400 steps of 32 questions x 16 answers, mathematics, code and logic, no fine-tuning",
    ),
    variants=variants,
    changes=frozenset({"grpo.reward.accuracy"}),
    minutes={"toy": 0.05, "cpu": 8, "gpu": 12},
    seeds=3,
    measure=measure,
    conclude=conclude,
    shows=f"what the reward for right answers does to a base model, beside a reward for form alone. {TASK_TEXT}. "
    f"{BASE_TEXT}: that much a small model needs to begin at all. GRPO is Fathom's default: no spread of the group, no "
    "KL, one update a rollout.",
    does_not_show="reasoning in words, or what a large model does with thousands of steps: a countdown thinking is a "
    "few sums, and more tokens than two tries take help nobody. No one reads what it thinks here: a thinking "
    "may hold false sums beside a right answer.",
)
