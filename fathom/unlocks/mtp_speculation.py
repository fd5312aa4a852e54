"""What MTP drafts are worth at decoding: acceptance, and speed over the batch beside the formula (V3 5.4.3)."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from fathom.demo import RUN
from fathom.infer.speaker import Speaker, load_speaker
from fathom.infer.speculate import SpeculationReport, speculate_greedy
from fathom.plan.serving import relative_reads, tokens_per_step
from fathom.runs import Run
from fathom.tasks import build
from fathom.unlocks.drawing import Curves
from fathom.unlocks.experiment import Claim, Context, Experiment, Figures, Result, Size
from fathom.unlocks.verdict import above, all_of, exact, over_seeds

BATCHES: dict[Size, tuple[int, ...]] = {"toy": (1, 4), "cpu": (1, 4, 16, 64), "gpu": (1, 8, 64, 256)}
TOKENS: dict[Size, int] = {"toy": 16, "cpu": 96, "gpu": 96}
REPEATS: dict[Size, int] = {"toy": 1, "cpu": 4, "gpu": 4}  # texts of a row, one after the other
PRINTED = 0.85  # the lower end of the printed acceptance
NEAR = 0.05  # below it that still counts as the same
FASTER = 1.0  # times, at the smallest batch, for drafts to be worth having


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """Greedy decoding of the demo model."""

    drafts: int  # tokens a step that the MTP module proposes and the model checks


def variants(size: Size) -> dict[str, Decoding]:
    """One token a pass, and one more drafted."""
    return {"plain": Decoding(drafts=0), "drafted": Decoding(drafts=1)}


def measure(context: Context, seed: int) -> Figures:
    """For each batch: whether the texts are the same, the drafts kept, and both speeds; problems follow the seed."""
    speaker = load_speaker(RUN, context.device)
    drafts = variants(context.size)["drafted"].drafts
    found: list[Figures] = []
    speeds: dict[str, list[float]] = {name: [] for name in variants(context.size)}
    for rows in BATCHES[context.size]:
        context.check_time()
        report = _decode(speaker, seed, rows, context.size, drafts)
        tokens = sum(map(len, report.texts))
        speeds["plain"].append(tokens / report.plain_seconds)
        speeds["drafted"].append(tokens / report.seconds)
        found.append(
            {
                "rows": rows,
                "tokens": tokens,
                "equal": report.equal,
                "acceptance": report.acceptance,
                "tokens_per_step": report.tokens_per_step,
                # what reading the weights alone would make of it
                "formula": tokens_per_step([report.acceptance]) / relative_reads(speaker.model.config, rows, drafts),
            }
        )
    return {"batches": found, "timed": {"tokens_per_s": speeds}}


def _decode(speaker: Speaker, seed: int, rows: int, size: Size, drafts: int) -> SpeculationReport:
    """Both ways over the same held-out problems, behind a run that does not count."""
    task, draws = build(Run(RUN).config.task), random.Random(seed)
    problems = [task.sample(draws, held_out=True) for _ in range(rows * REPEATS[size])]
    prompts = [speaker.put(problem.question) for problem in problems]
    speculate_greedy(speaker.model, prompts[:rows], speaker.stop_ids, 4, rows, drafts)
    return speculate_greedy(speaker.model, prompts, speaker.stop_ids, TOKENS[size], rows, drafts)


def conclude(seeds: Sequence[Figures]) -> Result:
    """Supported where texts are the same, acceptance is near the printed one, and some batch gets faster."""
    batches = range(len(seeds[0]["batches"]))
    rows = [seeds[0]["batches"][i]["rows"] for i in batches]
    speeds = [seed["timed"]["tokens_per_s"] for seed in seeds]
    kept = [over_seeds([seed["batches"][i]["acceptance"] for seed in seeds]) for i in batches]
    formula = [over_seeds([seed["batches"][i]["formula"] for seed in seeds]).mean for i in batches]
    ratios = [over_seeds([s["drafted"][i] / s["plain"][i] for s in speeds]) for i in batches]
    same = all(batch["equal"] for seed in seeds for batch in seed["batches"])
    return Result(
        measured=f"{kept[-1].text('.0%')} of drafts kept; {ratios[0].text('.2f')} times the tokens/s at batch "
        f"{rows[0]}; texts {'the same' if same else 'DIFFER'}",
        verdict=all_of(above(kept[-1], PRINTED - NEAR), above(ratios[0], FASTER), above(exact(1.0 if same else -1.0))),
        because=f"acceptance at the largest batch, which has most texts, is to exceed {PRINTED - NEAR:.0%}, the texts "
        f"are to be those without drafts, and the smallest batch faster than without; {len(seeds)} seeds, 95 % "
        "intervals",
        headings=("batch", "drafts kept", "speed, measured", "1 + p", "1 + p over weights read"),
        rows=[
            (str(rows[i]), kept[i].text(".1%"), ratios[i].text(".2f"), f"{1 + kept[i].mean:.2f}", f"{formula[i]:.2f}")
            for i in batches
        ],
        charts=[
            Curves(
                title="Speed with drafts over that without",
                caption="Mean over seeds, prompts read included; 1 + p counts tokens alone, the other curve divides by "
                "the weights read.",
                x="rows decoded together",
                y="times as fast",
                curves={
                    "measured": [(rows[i], ratios[i].mean) for i in batches],
                    "1 + p": [(rows[i], 1 + kept[i].mean) for i in batches],
                    "1 + p over weights read": [(rows[i], formula[i]) for i in batches],
                },
                log_x=True,
            )
        ],
        figures={"acceptance": kept[-1].mean, "speed": [r.mean for r in ratios], "formula": formula, "same": same},
    )


EXPERIMENT = Experiment(
    name="mtp-speculation",
    title="Multi-token prediction drafts the next token",
    claim=Claim(
        says="The second token that the MTP module predicts is accepted 85 to 90 % of the time, which makes decoding "
        "1.8 times as fast.",
        source="DeepSeek-V3 5.4.3",
        published="85 to 90 % accepted; 1.8 times the tokens/s",
        conditions="V3 on several topics of generation; the batch, the hardware and the baseline are not stated",
    ),
    variants=variants,
    changes=frozenset({"drafts"}),
    minutes={"toy": 0.05, "cpu": 0.5, "gpu": 0.5},
    seeds=3,
    measure=measure,
    conclude=conclude,
    shows="how many drafts of a trained MTP module are kept, that no text changes by it, and what the machine makes of "
    "it at each batch, beside what reading the weights alone would.",
    does_not_show="V3's figures: the demo model has 449 thousand parameters and plays one game, whose texts are "
    "easy to guess. Its passes are so short that what they cost beside reading weights decides.",
)
