"""Signs that reinforcement learning collapses or is cheated, read off its metrics: pure functions on the history.

Every rule holds the mean of a stage's first tenth against that of its last, or its best stretch against the last, and
rings only where the difference exceeds what the curve's own noise explains.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, variance
from typing import Any

from fathom.report.findings import Trend, judge_trend

History = Sequence[Mapping[str, Any]]
LEAST_STEPS = 20  # of a history that is judged at all
COLLAPSED = 0.1  # share of its first entropy below which a policy tries nothing new
SOLVED = 0.8  # accuracy from which little entropy is no fault
EXPLODED, SHRUNK = 1.5, 0.5  # lengths over the first ones
TRUNCATED = 0.3  # share of answers cut by length
FELL = 0.1  # accuracy lost since its best stretch
MIXED = 0.1  # share of words in the target language lost
WELL_FORMED = 0.8
DEAD = 0.9  # share of groups that teach nothing
WIDE_GAP = 0.01  # nats: mean k3 between sampler and trainer
STANDARD_ERRORS = 3.0  # by which the last stretch must lie below the best, which was picked for being high


@dataclass(frozen=True)
class Alarm:
    """What is wrong, and one sentence on what to do."""

    name: str
    sign: str  # with its figures
    remedy: str


def alarms(history: History) -> list[Alarm]:
    """All that ring on the metrics of one stage so far, in a fixed order; none before `LEAST_STEPS` steps."""
    if len(history) < LEAST_STEPS:
        return []
    trends = {name: judge_trend(values) for name in FIELDS if (values := _series(history, name))}
    known = {name: trend for name, trend in trends.items() if trend}
    found = [rule(known) for rule in RULES]
    return [alarm for alarm in (*found, _accuracy_fell(history)) if alarm]


def _series(history: History, name: str) -> list[float]:
    if name == "dead":
        groups = [(line.get("groups_dropped") or 0, line.get("groups_kept") or 0) for line in history]
        return [dropped / (dropped + kept) for dropped, kept in groups if dropped + kept]
    values = [line[name] for line in history if line.get(name) is not None]
    return [float(value) for value in values if math.isfinite(value)]


Trends = Mapping[str, Trend]


def _rose(trends: Trends, name: str) -> bool:
    return name in trends and trends[name].direction == "rose"


def _fell(trends: Trends, name: str) -> bool:
    return name in trends and trends[name].direction == "fell"


def _entropy(trends: Trends) -> Alarm | None:
    entropy, accuracy = trends.get("entropy"), trends.get("accuracy")
    if not entropy or entropy.last > COLLAPSED * entropy.first or (accuracy and accuracy.last >= SOLVED):
        return None
    sign = f"entropy fell from {entropy.first:.3g} to {entropy.last:.3g} nats a token"
    remedy = "raise objective.clip_high or objective.entropy_weight, lower the rate, and go back to an earlier step"
    return Alarm("entropy collapse", sign, remedy)


def _longer(trends: Trends) -> Alarm | None:
    """Answers that grow without getting better; those of R1-Zero grew and got better."""
    length, cut = trends.get("length"), trends.get("truncated")
    if _rose(trends, "accuracy") or not length or not _rose(trends, "length"):
        return None
    if length.last < EXPLODED * length.first and not (cut and cut.direction == "rose" and cut.last > TRUNCATED):
        return None
    sign = f"answers grew from {length.first:.0f} to {length.last:.0f} tokens while accuracy did not rise"
    return Alarm("length explosion", sign, "penalise with objective.overlong_share, or use aggregation=constant")


def _shorter(trends: Trends) -> Alarm | None:
    length = trends.get("length")
    if _rose(trends, "accuracy") or not length or length.last > SHRUNK * length.first or not _fell(trends, "length"):
        return None
    sign = f"answers shrank from {length.first:.0f} to {length.last:.0f} tokens while accuracy did not rise"
    return Alarm("length collapse", sign, "look at the samples: lower reward.format or the rate, or weigh soundness")


def _languages(trends: Trends) -> Alarm | None:
    language = trends.get("language")
    if not language or not _fell(trends, "language") or language.first - language.last < MIXED:
        return None
    sign = f"words in the target language fell from {language.first:.0%} to {language.last:.0%}"
    return Alarm("language mixing", sign, "give reward.language a weight, as R1 does (2.3.2)")


def _hacked(trends: Trends) -> Alarm | None:
    """The reward rises while what it stands for falls."""
    for name in ("held_out_accuracy", "soundness"):
        if _rose(trends, "reward") and _fell(trends, name):
            trend, words = trends[name], name.replace("_", " ")
            sign = f"the reward rose while {words} fell from {trend.first:.2f} to {trend.last:.2f}"
            remedy = "read the samples and run `fathom reward lint` on the checker; weigh reward.soundness if that fell"
            return Alarm("reward hacking", sign, remedy)
    return None


def _form_only(trends: Trends) -> Alarm | None:
    form = trends.get("format")
    if not form or not _rose(trends, "format") or form.last < WELL_FORMED or "accuracy" not in trends:
        return None
    if _rose(trends, "accuracy"):
        return None
    sign = f"well-formed answers rose to {form.last:.0%}, right ones did not"
    return Alarm(
        "form without accuracy", sign, "lower reward.format, start from easier problems, or train a cold start"
    )


def _dead(trends: Trends) -> Alarm | None:
    dead, accuracy = trends.get("dead"), trends.get("accuracy")
    if not dead or dead.last < DEAD or (accuracy and accuracy.last >= SOLVED):
        return None
    sign = f"{dead.last:.0%} of the groups earn the same and teach nothing"
    return Alarm("dead groups", sign, "enlarge grpo.group or choose problems that are sometimes solved")


def _gap(trends: Trends) -> Alarm | None:
    gap = trends.get("gap_k3")
    if not gap or gap.last < WIDE_GAP:
        return None
    sign = f"sampler and trainer differ by a mean k3 of {gap.last:.3g} nats a token"
    return Alarm("sampler apart", sign, "use grpo.replay_routing, objective.correction=truncate or grpo.exact_sampling")


def _accuracy_fell(history: History) -> Alarm | None:
    """The last stretch against the best one before it."""
    values = _series(history, "accuracy")
    steps = max(len(values) // 10, 5)
    if len(values) < 4 * steps:
        return None
    stretches = [values[at : at + steps] for at in range(0, len(values) - 2 * steps + 1, steps)]
    best, last = max(stretches, key=fmean), values[-steps:]
    lost = fmean(best) - fmean(last)
    error = math.sqrt((variance(best) + variance(last)) / steps)
    if lost < FELL or lost <= STANDARD_ERRORS * error:
        return None
    sign = f"accuracy fell from {fmean(best):.0%} at its best to {fmean(last):.0%}"
    return Alarm("accuracy collapse", sign, "go back to the checkpoint of the best steps and lower the rate")


FIELDS = (
    *("entropy", "accuracy", "length", "truncated", "language", "reward", "held_out_accuracy", "soundness", "format"),
    *("dead", "gap_k3"),
)
RULES: Sequence[Callable[[Trends], Alarm | None]] = (
    *(_entropy, _longer, _shorter, _languages, _hacked, _form_only, _dead, _gap),
)
