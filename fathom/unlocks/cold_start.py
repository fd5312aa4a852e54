"""Languages mixed in the thinking, and what a cold start and a reward for one language do about it (R1 2.3)."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from fathom.config import TrainConfig
from fathom.presets import LAPTOP
from fathom.runs import Run
from fathom.tasks import Countdown
from fathom.text.dialogues import worked_dialogues
from fathom.unlocks.bilingual import CORPUS_TEXT, Bilingual, habits, write_corpus
from fathom.unlocks.drawing import Bars, Curves
from fathom.unlocks.experiment import Claim, Context, Experiment, Figures, Result, Size
from fathom.unlocks.reasoning import Course, Stage, base, course, curve, examine, mean_curve, reinforce, tune
from fathom.unlocks.verdict import above, all_of, below, over_seeds

ZERO, REWARD, COLD, BOTH = "neither", "language reward", "cold start", "both"
BASE, TUNED = "base model", "after the cold start"
PRESENT = 0.05  # share of answers that must mix languages for there to be something to cure
PRICE = 0.05  # of all problems, by which the language reward may lower accuracy and still cost little
LANGUAGE = 1.0  # weight of the language reward; R1 adds it to the others as it is
TUNING: dict[Size, tuple[int, int]] = {"toy": (3, 4), "cpu": (200, 32), "gpu": (200, 32)}  # steps and rows
SHOWN: dict[Size, int] = {"toy": 50, "cpu": 2000, "gpu": 2000}  # worked solutions of a cold start


@dataclass(frozen=True, kw_only=True)
class Start:
    """Reinforcement of a base model that knows two languages."""

    course: Course
    cold_start: bool  # whether it is first tuned on worked solutions in English
    sft: TrainConfig


def variants(size: Size) -> dict[str, Start]:
    """With and without a cold start, with and without a reward for English."""
    plain = course(size)
    text = replace(plain.text, arithmetic_share=0.25, expression_share=0.75)  # no other text
    plain = replace(plain, text=text, task=replace(plain.task, demonstrations=SHOWN[size]))
    steps, rows = TUNING[size]
    sft = replace(LAPTOP.sft, steps=steps, batch_rows=rows, micro_batch_rows=rows, save_every=steps)

    def start(cold_start: bool, language: float) -> Start:
        grpo = replace(plain.grpo, reward=replace(plain.grpo.reward, language=language))
        return Start(course=replace(plain, grpo=grpo), cold_start=cold_start, sft=sft)

    return {
        ZERO: start(False, 0.0),
        REWARD: start(False, LANGUAGE),
        COLD: start(True, 0.0),
        BOTH: start(True, LANGUAGE),
    }


def measure(context: Context, seed: int) -> Figures:
    """Accuracy and habits of speech of both beginnings, and of every variant behind its reinforcement."""
    starts = variants(context.size)
    plain = starts[ZERO].course
    task = Bilingual(Countdown(plain.task))
    asked = {"bilingual": plain.task}
    key = {"corpus": {"bilingual": plain.text, "task": plain.task}}
    read = Run(context.checkpoint(key, lambda path: write_corpus(plain.text, plain.task, Run(path))))
    begun = {False: base(context, plain, seed, read)}
    shown = worked_dialogues(begun[False].tokenizer, task, seed, plain.task.demonstrations)
    begun[True] = tune(context, starts[COLD].sft, begun[False], shown, asked, seed)

    def judged(stage: Stage) -> dict[str, Any]:
        score, answers = examine(context, plain, task, stage, seed)
        return {"accuracy": score.sampled, **habits(task, answers)}

    found: Figures = {BASE: judged(begun[False]), TUNED: judged(begun[True])}
    for name, start in starts.items():
        end = reinforce(context, start.course.grpo, begun[start.cold_start], task, asked, seed)
        found[name] = {**judged(end), "curve": curve(end.steps, "language")}
    return found


def conclude(seeds: Sequence[Figures]) -> Result:
    """Supported where languages mix without a cure, the cure lessens it, and it costs little accuracy."""
    mixed = {name: over_seeds([seed[name]["mixed"] for seed in seeds]) for name in seeds[0]}
    cured = over_seeds([seed[ZERO]["mixed"] - seed[BOTH]["mixed"] for seed in seeds])
    price = over_seeds([seed[COLD]["accuracy"] - seed[BOTH]["accuracy"] for seed in seeds])
    return Result(
        measured=f"{mixed[ZERO].text('.1%')} of answers mix languages with neither, {mixed[BOTH].text('.1%')} with "
        f"both; the reward costs {price.text('+.1%')} of all problems",
        verdict=all_of(above(mixed[ZERO], PRESENT), above(cured), below(price, PRICE)),
        because=f"more than {PRESENT:.0%} of answers are to mix languages with neither, fewer with both (by "
        f"{cured.text('.1%')}), and the reward for one language is to cost less than {PRICE:.0%} of all problems; "
        f"{len(seeds)} seeds, 95 % intervals of pairs",
        headings=("reinforced with", "mixes languages", "in English alone", "readable", "right, held out"),
        rows=[
            (name, *(over_seeds([seed[name][key] for seed in seeds]).text(".1%") for key in KEYS)) for name in seeds[0]
        ],
        charts=[
            Bars(
                title="Answers whose thinking mixes languages",
                caption="Sampled answers to held-out problems; the lines are 95 % intervals over seeds.",
                axis="share of answers",
                bars={name: interval.bar for name, interval in mixed.items()},
            ),
            Curves(
                title="English in the thinking while it learns",
                caption="Share of English among the words of a thinking, mean over answers and seeds; without a reward "
                "for it nothing pulls at it.",
                x="steps",
                y="share of words in English",
                curves={
                    name: mean_curve([seed[name]["curve"] for seed in seeds]) for name in (ZERO, REWARD, COLD, BOTH)
                },
            ),
        ],
        figures={"cured": asdict(cured), "price": asdict(price)},
    )


KEYS = ("mixed", "english", "readable", "accuracy")

EXPERIMENT = Experiment(
    name="cold-start",
    title="A cold start against mixed languages",
    claim=Claim(
        says="Reinforced from the base model, R1-Zero mixes languages and is hard to read; a cold start on a few "
        "readable solutions and a reward for one language cure that, at a slight cost in accuracy.",
        source="DeepSeek-R1 2.2.4, 2.3.1, 2.3.2",
        published="no figure for the mixing; the language reward costs slightly in accuracy",
        conditions="V3-Base; thousands of long solutions; the share of words in the target language, added to the "
        "reward for accuracy",
    ),
    variants=variants,
    changes=frozenset({"cold_start", "course.grpo.reward.language"}),
    minutes={"toy": 0.1, "cpu": 17, "gpu": 25},
    seeds=3,
    measure=measure,
    conclude=conclude,
    shows=f"how often a thinking mixes languages where the text before has taught two: {CORPUS_TEXT}. Every step of a "
    "thinking is named, and one whose steps lack their names counts as unreadable. All are reinforced for as many "
    "steps, paid for right answers, form, and sound tries in whatever language.",
    does_not_show="how real text makes a model mix languages: here the corpus was made to, with four words. The cold "
    "start is more training on top, and its solutions show the task itself, as R1's do.",
)
