"""Rewards by rule, no learned judge: accuracy, format and language consistency (R1 2.2, 2.3), and soundness.

Soundness is Fathom's own: without it a small policy soon learns to guess the answer and to fill its thinking with
false sums, which earns the same.
"""

import re
from dataclasses import dataclass
from typing import Literal

from fathom.config import RewardConfig
from fathom.tasks import GradingError, Problem, Task
from fathom.text.chat import parse_reply

# a word is a run of letters, or one sign of the scripts that put no space between words (kana, Chinese)
_UNSPACED = r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W\d_{_UNSPACED}]+")
_LATIN = re.compile(r"[A-Za-z\u00aa\u00ba\u00c0-\u024f\u1e00-\u1eff]+")


@dataclass(frozen=True)
class Reward:
    """What one answer earned, and its parts before weighting.

    `total` and `accuracy` are None when the checker failed or ran out of time. Such an answer is neither
    right nor wrong: count it apart, and give NaN in its place to `grpo.advantages`, which leaves it out.
    """

    total: float | None
    accuracy: float | None  # 1.0 right, 0.0 wrong or without an answer
    format: float  # 1.0 when the reply is thinking, then answer, and nothing else
    language: float  # share of the thinking's words in the target language
    soundness: float = 0.0  # share of the thinking's tries that keep the rules and add up
    failure: Literal["", "timeout", "crash"] = ""  # why there is no accuracy


def score(task: Task, problem: Problem, completion: str, config: RewardConfig) -> Reward:
    """Judge a decoded completion (all that follows the prompt); text after the end of sequence never counts."""
    reply = parse_reply(completion)
    accuracy, failure = (0.0, "") if reply.answer is None else _accuracy(task, problem, reply.answer)
    well_formed = float(reply.well_formed)
    language = language_consistency(reply.thinking)
    soundness = task.soundness(problem, reply.thinking) if well_formed else 0.0
    if accuracy is None:
        return Reward(None, None, well_formed, language, soundness, failure)
    total = config.accuracy * accuracy + config.format * well_formed + config.language * language
    return Reward(total + config.soundness * soundness, accuracy, well_formed, language, soundness)


def language_consistency(thinking: str) -> float:
    """Share of words written in Latin letters, the target here being English (R1 2.3's rule).

    Numbers and signs are words of no language; a thinking without words is wholly consistent.
    """
    words: list[str] = _WORD.findall(thinking)
    if not words:
        return 1.0
    return sum(1 for word in words if _LATIN.fullmatch(word)) / len(words)


def _accuracy(task: Task, problem: Problem, answer: str) -> tuple[float | None, Literal["", "timeout", "crash"]]:
    try:
        return float(task.grade(problem, answer)), ""
    except TimeoutError:
        return None, "timeout"
    except GradingError:
        return None, "crash"
