"""The policy-gradient family from one start: GRPO, its corrections, and PPO with a critic (R1 2.2.1; TinyZero)."""

from collections.abc import Sequence
from dataclasses import asdict, replace

from fathom.config.objectives import named_objective
from fathom.tasks import build
from fathom.unlocks.drawing import Bars, Curves
from fathom.unlocks.experiment import Claim, Context, Experiment, Figures, Result, Size
from fathom.unlocks.reasoning import (
    BASE_TEXT,
    TASK_TEXT,
    Course,
    base,
    corpus,
    course,
    curve,
    examine,
    mean_curve,
    reinforce,
)
from fathom.unlocks.verdict import above, all_of, over_seeds

GRPO, DR, DAPO, GSPO, PPO = "GRPO", "Dr. GRPO", "DAPO", "GSPO", "PPO with a critic"
NAMED = {GRPO: "grpo_deepseekmath", DR: "dr_grpo", DAPO: "dapo", GSPO: "gspo", PPO: "ppo"}
UPDATES = 4  # of a rollout, as TinyZero's: with one alone every ratio is 1 and no clip differs
RATE = 2.5e-4  # half of what one update a rollout gets
CRITIC_RATE = 10  # times the policy's, as TinyZero's
CLOSE = 0.05  # of all problems, by which GRPO may stay behind PPO and still do without its critic


def variants(size: Size) -> dict[str, Course]:
    """Five published objectives on as many answers; PPO asks each question once, and so as many more questions."""
    plain = course(size)
    law = replace(
        plain.grpo,
        updates=UPDATES,
        refill_rounds=0,
        optimizer=replace(plain.grpo.optimizer, lr=RATE),
        critic=replace(
            plain.grpo.critic, optimizer=replace(plain.grpo.critic.optimizer, lr=CRITIC_RATE * RATE, beta2=0.99)
        ),
    )
    found: dict[str, Course] = {}
    for name, objective in NAMED.items():
        each = replace(law, objective=named_objective(objective))  # pyright: ignore[reportArgumentType]
        if name == PPO:
            each = replace(each, prompts=law.prompts * law.group, group=1)
        found[name] = replace(plain, grpo=each)
    return found


def measure(context: Context, seed: int) -> Figures:
    """Score before, and for every objective the score behind the same number of answers and the curve to it."""
    courses = variants(context.size)
    first = courses[GRPO]
    task, start = build(first.task), base(context, first, seed, corpus(context, first))
    before, _ = examine(context, first, task, start, seed)
    found: Figures = {"base": {"accuracy": before.sampled, "length": before.mean_length}}
    for name, taught in courses.items():
        end = reinforce(context, taught.grpo, start, task, taught.task, seed)
        after, _ = examine(context, taught, task, end, seed)
        found[name] = {
            "accuracy": after.sampled,
            "length": after.mean_length,
            "curve": curve(end.steps, "accuracy"),
        }
    return found


def conclude(seeds: Sequence[Figures]) -> Result:
    """Supported where GRPO learns as much as PPO without its critic, and DAPO's corrections learn more."""
    scores = {name: over_seeds([seed[name]["accuracy"] for seed in seeds]) for name in ("base", *NAMED)}
    gains = {name: over_seeds([seed[name]["accuracy"] - seed["base"]["accuracy"] for seed in seeds]) for name in NAMED}
    without = over_seeds([seed[GRPO]["accuracy"] - seed[PPO]["accuracy"] for seed in seeds])
    better = over_seeds([seed[DAPO]["accuracy"] - seed[GRPO]["accuracy"] for seed in seeds])
    return Result(
        measured="right answers, "
        + ", ".join(f"{name} {interval.mean:.1%}" for name, interval in scores.items() if name != "base")
        + f"; {scores['base'].mean:.1%} before",
        verdict=all_of(above(gains[GRPO]), above(without, -CLOSE), above(better)),
        because=f"GRPO is to gain (it gains {gains[GRPO].text('+.1%')}), to stay less than {CLOSE:.0%} of all problems "
        f"behind PPO (it is {without.text('+.1%')} from it), and DAPO to exceed it (by {better.text('+.1%')}); "
        f"{len(seeds)} seeds, 95 % intervals of pairs",
        headings=("objective", "right, held out", "gain", "tokens of an answer"),
        rows=[
            ("base model", scores["base"].text(".1%"), "-", _length(seeds, "base")),
            *((name, scores[name].text(".1%"), gains[name].text("+.1%"), _length(seeds, name)) for name in NAMED),
        ],
        charts=[
            Bars(
                title="Right answers behind the same number of sampled ones",
                caption="Held-out problems, as sampled; the lines are 95 % intervals over seeds.",
                axis="share of right answers",
                bars={name: interval.bar for name, interval in scores.items()},
            ),
            _chart(seeds, (GRPO, DR, DAPO, GSPO), "Objectives that compare an answer with its group"),
            _chart(seeds, (GRPO, PPO), "The group's mean against a critic's values"),
        ],
        figures={
            "scores": {name: interval.mean for name, interval in scores.items()},
            "grpo_over_ppo": asdict(without),
            "dapo_over_grpo": asdict(better),
        },
    )


def _length(seeds: Sequence[Figures], name: str) -> str:
    return over_seeds([seed[name]["length"] for seed in seeds]).text(".1f")


def _chart(seeds: Sequence[Figures], names: Sequence[str], title: str) -> Curves:
    return Curves(
        title=title,
        caption="Right answers to problems that it trains on, mean over seeds.",
        x="steps",
        y="share of right answers",
        curves={name: mean_curve([seed[name]["curve"] for seed in seeds]) for name in names},
    )


EXPERIMENT = Experiment(
    name="grpo-variants",
    title="GRPO, its corrections, and PPO",
    claim=Claim(
        says="GRPO learns without the critic that PPO needs; its corrections learn more from the same answers.",
        source="DeepSeekMath 4.1; R1 2.2.1; TinyZero; DAPO Table 1; Dr. GRPO 3; GSPO 5",
        published="PPO and GRPO both work (TinyZero); AIME 2024 50 % with DAPO, 30 % with GRPO",
        conditions="TinyZero: countdown, Qwen2.5 of 1.5B to 7B. DAPO: Qwen2.5-32B, mathematics, 512 questions x 16",
    ),
    variants=variants,
    changes=frozenset(
        {
            "grpo.group",
            "grpo.prompts",
            "grpo.objective.advantage",
            "grpo.objective.aggregation",
            "grpo.objective.clip_high",
            "grpo.objective.clip_low",
            "grpo.objective.drop_equal_groups",
            "grpo.objective.entropy_weight",
            "grpo.objective.kl_beta",
            "grpo.objective.kl_estimator",
            "grpo.objective.kl_in",
            "grpo.objective.mask_truncated",
            "grpo.objective.name",
            "grpo.objective.overlong_share",
            "grpo.objective.reference_reset_steps",
            "grpo.objective.surrogate",
        }
    ),
    minutes={"toy": 0.1, "cpu": 24, "gpu": 30},
    seeds=3,
    measure=measure,
    conclude=conclude,
    shows=f"how the published objectives compare from one start, with one rate, four updates a rollout and as many "
    f"answers. {TASK_TEXT}. {BASE_TEXT}. A part of the reward pays for tries that keep the rules, as in the laptop "
    "preset. Groups that DAPO drops are not refilled, so that it samples no more than others; PPO draws one answer to "
    "each question, and its critic begins as the base model.",
    does_not_show="their best: neither rate, clip nor KL was tuned for any of them here, and what was found for models "
    "of billions of parameters over thousands of steps need not hold for a few hundred steps of a small one.",
)
