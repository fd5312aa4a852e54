"""What the page says, gathered from the run's files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from fathom.config import Config
from fathom.plan.count import main_parameters
from fathom.report import figures, units
from fathom.report.alarms import alarms
from fathom.report.experts import expert_figures, placement_cards
from fathom.report.figures import Card
from fathom.report.findings import (
    Trend,
    describe_accuracy,
    describe_length,
    describe_result,
    describe_speculation,
    describe_task,
    judge_trend,
    list_findings,
)
from fathom.report.measured import measured_pipelines
from fathom.report.outcome import Evaluation, Outcome, Share, read_outcome
from fathom.report.processes import process_figures
from fathom.runs import Record, Run

TRANSCRIPTS = 6  # pairs of answers shown
EXAMPLE_STEPS = 12  # steps whose samples are shown
LEDGER_FIELDS = (  # what a line may hold; the page shows a dash for the rest
    *("seconds", "steps", "tokens", "flops", "peak_memory_gib", "dollars"),
    *("seed", "data_hash", "weights_hash", "commit", "machine", "score", "loss"),
)
STAGE_NAMES = {
    "pretrain": "Pretraining",
    "sft": "Cold-start SFT",
    "grpo": "GRPO",
    "eval_before": "Evaluation before GRPO",
    "eval_after": "Evaluation after GRPO",
    "sft_control": "Control: SFT alone",
    "eval_sft_control": "Evaluation of SFT alone",
    "control_random": "Control: random legal play",
    "mtp_check": "Speculative check",
}
TRAINED_BY = {
    "pretrain": "pretraining",
    "sft": "fine-tuning on worked solutions (SFT)",
    "grpo": "reinforcement from checked answers (GRPO)",
}


@dataclass(frozen=True, kw_only=True)
class Pair:
    """The answers to one problem, before and after reinforcement."""

    question: str
    before: Record | None
    after: Record | None


@dataclass(frozen=True, kw_only=True)
class Total:
    """What the stages cost together; None where none says."""

    seconds: float | None
    flops: float | None
    dollars: float | None
    peak_memory_gib: float | None


def gather_contents(run: Run) -> dict[str, Any]:
    """Everything the template names. Raises ValueError for a run without metrics."""
    metrics = {stage: run.read_metrics(stage) for stage in figures.STAGES}
    if not any(metrics.values()):
        raise ValueError(f"{run.path} holds no metrics to report; train a stage there first")
    config = run.config
    ledger = [dict.fromkeys(LEDGER_FIELDS) | line for line in run.read_ledger()]
    costs = list({line["stage"]: line for line in ledger}.values())  # a stage done anew counts once
    outcome = read_outcome(ledger)
    accuracy = judge_trend(figures.series(metrics["grpo"], "accuracy"))
    length = judge_trend(figures.series(metrics["grpo"], "length"))
    return {
        "name": run.path.resolve().name,
        "price": config.dollars_per_hour,
        "facts": _list_facts(config),
        "lead": [_describe_training(config, metrics), describe_result(outcome)],
        "cards": _cards(outcome),
        "outcome_figures": figures.outcome_figures(outcome),
        "loss_figures": figures.loss_figures(metrics),
        "pipelines": measured_pipelines(run.read_pipeline()),
        "alarms": alarms(metrics["grpo"]),
        "examples": _examples(run.read_samples("grpo")),
        "reward_figures": figures.reward_figures(metrics["grpo"]),
        "reward_sentences": _describe_reward(accuracy, length),
        "expert_figures": expert_figures(metrics, config.model),
        "placement_cards": placement_cards(metrics),
        "process_figures": process_figures(metrics),
        "mtp_figures": figures.mtp_figures(metrics),
        "speculation": outcome.speculation,
        "speculation_sentence": describe_speculation(outcome.speculation) if outcome.speculation else "",
        "pairs": pair_samples(run.read_samples("eval_before"), run.read_samples("eval_after")),
        "ledger": ledger,
        "costs": costs,
        "total": _add_up(costs),
        "machines": list(dict.fromkeys(_describe_machine(line["machine"]) for line in ledger if line["machine"])),
        "findings": list_findings(outcome, accuracy, length, config.task, config.seed),
    }


def _examples(samples: Sequence[Record]) -> list[Record]:
    """Samples of training, one a place: what a resume repeated counts once, and long runs show a dozen steps."""
    steps = sorted({sample["step"] for sample in samples})
    shown = steps[:: max(1, -(-len(steps) // EXAMPLE_STEPS))]
    newest = {(sample["step"], sample["question"]): sample for sample in samples if sample["step"] in shown}
    return [newest[place] for place in sorted(newest, key=lambda place: place[0])]


def name_stage(stage: str) -> str:
    """A stage's name in words."""
    return STAGE_NAMES.get(stage, stage.replace("_", " ").capitalize())


def summarize_score(score: Any) -> str:
    """A ledger line's score in a few words."""
    match score:
        case {"sampled": sampled, "greedy": greedy}:
            return f"sampled {units.percent(sampled)}, greedy {units.percent(greedy)}"
        case {"solved": solved}:
            return f"solved {units.percent(solved)}"
        case {"equal": bool(equal)}:
            return "equal text" if equal else "unequal text"
        case dict():
            parts = cast(dict[str, Any], score).items()
            return ", ".join(f"{name} {summarize_score(value)}" for name, value in parts)
        case float():
            return f"{score:.4g}"
        case _:
            return str(score)


def pair_samples(before: Sequence[Record], after: Sequence[Record]) -> list[Pair]:
    """The first problems kept, each with its last answer of either time where there is one."""
    earlier, later = ({sample["question"]: sample for sample in samples} for samples in (before, after))
    shared = [question for question in earlier if question in later]
    questions = shared or list(later or earlier)
    return [
        Pair(question=question, before=earlier.get(question), after=later.get(question))
        for question in questions[:TRANSCRIPTS]
    ]


def _describe_training(config: Config, metrics: Mapping[str, Sequence[Record]]) -> str:
    path = ", then ".join(words for stage, words in TRAINED_BY.items() if metrics[stage])
    task = f" to solve {describe_task(config.task)}" if metrics["sft"] or metrics["grpo"] else ""
    size, active = (units.size(main_parameters(config.model, active=active)) for active in (False, True))
    used = f" ({active} of them used for a token)" if active != size else ""
    return f"This run trained a language model of {size} parameters{used}{task}: {path}."


def _describe_reward(accuracy: Trend | None, length: Trend | None) -> list[str]:
    sentences = [describe_accuracy(accuracy)] if accuracy else []
    return [*sentences, describe_length(length)] if length else sentences


def _list_facts(config: Config) -> list[str]:
    """The run's shape, a phrase each."""
    model = config.model
    attention, moe = model.attention, model.moe
    facts = [f"preset {config.preset}", f"seed {config.seed}"]
    facts.append(f"{model.num_hidden_layers} layers of width {model.hidden_size}")
    if attention.kind == "mla":
        facts.append(f"MLA, {attention.cache_width} numbers cached a token and layer")
    else:
        facts.append(f"GQA, {attention.num_attention_heads} heads over {attention.num_key_value_heads}")
    if moe.n_routed_experts:
        facts.append(
            f"{moe.n_shared_experts} shared + {moe.n_routed_experts} routed experts, {moe.num_experts_per_tok} a token"
        )
    if model.num_nextn_predict_layers:
        facts.append(f"MTP depth {model.num_nextn_predict_layers}")
    return [*facts, f"vocabulary {model.vocab_size:,}"]


def _cards(outcome: Outcome) -> list[Card]:
    """The headline figures: the result between what it started from and what it must beat."""
    cards: list[Card] = []
    if outcome.before:
        cards.append(_evaluation_card("Before GRPO", outcome.before))
    if outcome.after:
        cards.append(_evaluation_card("After GRPO", outcome.after, is_result=True))
    if outcome.random_play:
        play = outcome.random_play
        cards.append(
            Card(
                label="Random legal play",
                value=units.percent(play.solved.value),
                lines=(
                    f"95 % interval {_interval(play.solved)}",
                    f"{play.tries:.1f} tries a problem, the model's own mean",
                ),
            )
        )
    if outcome.sft_control:
        cards.append(_evaluation_card("SFT alone, same compute", outcome.sft_control))
    return cards


def _evaluation_card(label: str, evaluation: Evaluation, is_result: bool = False) -> Card:
    greedy = evaluation.greedy
    return Card(
        label=label,
        value=units.percent(evaluation.sampled.value),
        lines=(
            f"95 % interval {_interval(evaluation.sampled)}",
            f"greedy {units.percent(greedy.value)}, {_interval(greedy)}",
        ),
        is_result=is_result,
    )


def _interval(share: Share) -> str:
    return f"{100 * share.low:.1f}\N{EN DASH}{100 * share.high:.1f}"


def _add_up(ledger: Sequence[Record]) -> Total:
    def known(field: str) -> list[float]:
        return [line[field] for line in ledger if line[field] is not None]

    return Total(
        seconds=sum(known("seconds")) or None,
        flops=sum(known("flops")) or None,
        dollars=sum(known("dollars")) if known("dollars") else None,
        peak_memory_gib=max(known("peak_memory_gib"), default=None),
    )


def _describe_machine(machine: Mapping[str, Any] | str) -> str:
    if isinstance(machine, str):
        return machine
    gpus = cast(Sequence[str], machine.get("gpus", ()))
    parts = [
        machine["cpu"],
        f"{machine['cores']} cores",
        f"{machine['memory_gib']:g} GiB of memory",
        *([f"{len(gpus)} {units.TIMES} {gpus[0]}"] if gpus else []),
        f"Python {machine['python']}",
        machine["platform"],
    ]
    return ", ".join(str(part) for part in parts)
