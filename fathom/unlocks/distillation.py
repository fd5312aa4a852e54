"""A small model taught by a larger one's answers, against one that reinforcement alone has taught (R1 2.4, 4.1)."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from fathom.chain.r1 import kept_path, read_kept, write_dialogues
from fathom.config import TaskConfig, TrainConfig
from fathom.config.r1 import RejectConfig
from fathom.demo import RUN
from fathom.infer.engine import Engine
from fathom.plan.count import main_parameters, train_flops_per_token
from fathom.presets import PRESETS
from fathom.rl.reject import draw_and_sift
from fathom.runs import Run
from fathom.tasks import build, distinct_problems
from fathom.text.dialogues import encode_dialogue
from fathom.unlocks.drawing import Bars
from fathom.unlocks.experiment import Claim, Context, Experiment, Figures, Result, Size
from fathom.unlocks.reasoning import TASK_TEXT, Course, Stage, base, corpus, course, examine, reinforce, tune
from fathom.unlocks.verdict import above, over_seeds

BASE, REINFORCED, DISTILLED, TEACHER = "student's base", "reinforced", "distilled", "teacher"
R1 = PRESETS["laptop-r1"].r1
DEMO = Stage(Run(RUN), "grpo", Run(RUN).config.model)
DRAWN: dict[Size, int] = {"toy": 24, "cpu": 1000, "gpu": 1000}  # problems that the teacher answers
TUNING: dict[Size, tuple[int, int]] = {"toy": (3, 4), "cpu": (400, 32), "gpu": (400, 32)}  # steps and rows


@dataclass(frozen=True, kw_only=True)
class Pupil:
    """A student that learns from a teacher's answers, or from rewards."""

    course: Course
    teacher: str  # on whose right answers it is tuned; without one it is reinforced
    reject: RejectConfig  # which answers
    sft: TrainConfig


def variants(size: Size) -> dict[str, Pupil]:
    """The same student with either teaching; it is dense, and narrower than its teacher."""
    attention = replace(R1.student.attention, num_attention_heads=3, num_key_value_heads=3)
    student = replace(R1.student, hidden_size=48, intermediate_size=192, attention=attention)
    plain = replace(course(size), model=student)
    steps, rows = TUNING[size]
    sft = replace(R1.distill, steps=steps, batch_rows=rows, micro_batch_rows=rows, save_every=steps)
    alone = Pupil(course=plain, teacher="", reject=replace(R1.reject, problems=DRAWN[size]), sft=sft)
    return {REINFORCED: alone, DISTILLED: replace(alone, teacher="the demo model")}


def measure(context: Context, seed: int) -> Figures:
    """Scores of student and teacher, and the operations that each teaching took."""
    pupils = variants(context.size)
    plain = pupils[REINFORCED].course
    task, start = build(plain.task), base(context, plain, seed, corpus(context, plain))
    stages = {BASE: start, **{name: teach(context, pupil, start, seed) for name, pupil in pupils.items()}}
    stages[TEACHER] = DEMO
    found: Figures = {}
    for name, stage in stages.items():
        score, _ = examine(context, plain, task, stage, seed)
        flops = operations(stage, plain) if name in pupils else 0.0
        found[name] = {"accuracy": score.sampled, "parameters": main_parameters(stage.config), "flops": flops}
    return found


def teach(context: Context, pupil: Pupil, start: Stage, seed: int) -> Stage:
    """The student behind its teaching."""
    asked = pupil.course.task
    if not pupil.teacher:
        return reinforce(context, pupil.course.grpo, start, build(asked), asked, seed)
    answers = teachings(context, DEMO, asked, pupil.reject, seed)
    taught = [encode_dialogue(start.tokenizer, answer) for answer in read_kept(answers)]
    return tune(context, pupil.sft, start, taught, answers.path.name, seed)


def teachings(context: Context, teacher: Stage, asked: TaskConfig, law: RejectConfig, seed: int) -> Run:
    """The teacher's right answers to training problems, as R1's rejection sampling keeps them."""
    sampling = Run(RUN).config.grpo.sampling

    def make(path: Path) -> None:
        engine, task = Engine(teacher.model(context.device), rows=256), build(asked)
        problems = distinct_problems(task, law.problems, seed, held_out=False)
        places = range(law.problems)
        kept = draw_and_sift(engine, task, teacher.tokenizer, problems, sampling, law, seed, places).dialogues
        write_dialogues(kept_path(Run(path)), kept)

    weights = teacher.run.read_ledger(teacher.name)[-1]["weights_hash"]
    key = {"taught": law, "task": asked, "sampling": sampling, "teacher": weights, "seed": seed}
    return Run(context.checkpoint({**key, "device": context.device.type}, make))


def operations(taught: Stage, course: Course) -> float:
    """Floating-point operations of a teaching; a token that is only sampled counts a third of a trained one."""
    each = train_flops_per_token(course.model, course.grpo.sampling.max_tokens, mtp=False)
    if taught.name == "grpo":
        return each * sum(line["rollout_tokens"] / 3 + line["trained_tokens"] for line in taught.steps)
    return each * sum(line["tokens"] for line in taught.steps)


def conclude(seeds: Sequence[Figures]) -> Result:
    """Supported where the distilled student exceeds the reinforced one."""
    scores = {name: over_seeds([seed[name]["accuracy"] for seed in seeds]) for name in NAMES}
    flops = {name: over_seeds([seed[name]["flops"] for seed in seeds]) for name in (REINFORCED, DISTILLED)}
    lead = over_seeds([seed[DISTILLED]["accuracy"] - seed[REINFORCED]["accuracy"] for seed in seeds])
    cheaper = flops[REINFORCED].mean / flops[DISTILLED].mean
    return Result(
        measured=f"{scores[DISTILLED].text('.1%')} right distilled, {scores[REINFORCED].text('.1%')} reinforced, at "
        f"{cheaper:.1f} times the operations",
        verdict=above(lead),
        because=f"the distilled student is to answer more held-out problems than the reinforced one (it does by "
        f"{lead.text('+.1%')}); {len(seeds)} seeds, 95 % interval of pairs",
        headings=("model", "parameters", "right, held out", "operations of the teaching"),
        rows=[
            (
                name,
                f"{seeds[0][name]['parameters']:,}",
                scores[name].text(".1%"),
                f"{flops[name].mean:.2e}" if name in flops else "-",
            )
            for name in NAMES
        ],
        charts=[
            Bars(
                title="Taught by answers, taught by rewards",
                caption="Right answers to held-out problems, as sampled; the lines are 95 % intervals over seeds.",
                axis="share of right answers",
                bars={name: interval.bar for name, interval in scores.items()},
            )
        ],
        figures={"lead": asdict(lead), "operations_ratio": cheaper},
    )


NAMES = (BASE, REINFORCED, DISTILLED, TEACHER)

EXPERIMENT = Experiment(
    name="distillation",
    title="A small model taught by a large one",
    claim=Claim(
        says="A small model learns more from the answers of a large reasoning model than from its own reinforcement.",
        source="DeepSeek-R1 4.1, Table 6",
        published="AIME 2024: 72.6 % distilled, 47.0 % reinforced",
        conditions="Qwen-32B: fine-tuned on 800 thousand samples of R1's, against 10,000 steps of RL from its base",
    ),
    variants=variants,
    changes=frozenset({"teacher"}),
    minutes={"toy": 0.1, "cpu": 6, "gpu": 10},
    seeds=3,
    measure=measure,
    conclude=conclude,
    shows=f"what one small base model makes of either teaching. {TASK_TEXT}. The teacher is the demo model, "
    "cold-started and reinforced on the same training problems; of its answers the right and well-formed are kept, as "
    "R1 does. What the student's base has read is what the other cards' has.",
    does_not_show="that the difference lasts: reinforcement could go on, and a distilled student can be reinforced in "
    "turn. What the teacher itself has cost is not counted, nor that it was once shown 2,000 solutions, which the "
    "reinforced student never saw; R1 and its students differ in the same way.",
)
