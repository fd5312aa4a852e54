"""Rejection sampling: of a model's own answers the right, readable and different ones, to tune on (R1 2.3.3)."""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from fathom.config import SamplingConfig
from fathom.config.r1 import RejectConfig
from fathom.eval.suite import Answer, answer_problems
from fathom.infer.engine import Engine
from fathom.rl.reward import language_consistency
from fathom.tasks import Problem, Task
from fathom.text.chat import parse_reply
from fathom.text.dialogues import Dialogue
from fathom.text.tokenizer import Tokenizer

REPEATED = 4  # times that a stretch of so many words may occur before an answer counts as running in circles
STRETCH = 8  # words


@dataclass(frozen=True)
class Sifted:
    """What was kept, and how many answers fell to which test first."""

    dialogues: list[Dialogue]
    counts: Counter[str]  # "kept" among them


def sift(answers: Sequence[Answer], config: RejectConfig) -> Sifted:
    """The first `config.keep` different good answers to each problem, in the order they were drawn."""
    kept: dict[str, list[str]] = {}
    dialogues: list[Dialogue] = []
    counts: Counter[str] = Counter()
    for answer in answers:
        own = kept.setdefault(answer.problem.key, [])
        why = fault(answer, config) or ("repeated" if answer.reply in own else "")
        why = why or ("surplus" if len(own) == config.keep else "kept")
        counts[why] += 1
        if why == "kept":
            own.append(answer.reply)
            dialogues.append(Dialogue(answer.problem.question, answer.reply))
    return Sifted(dialogues, counts)


def fault(answer: Answer, config: RejectConfig) -> str:
    """Why an answer is not to be learned from; empty where nothing is wrong with it."""
    reply = parse_reply(answer.reply)
    if answer.undecided:
        return "undecided"
    if not answer.correct:
        return "wrong"
    if not reply.well_formed:
        return "malformed"
    if language_consistency(reply.thinking) < config.least_language:
        return "mixed languages"
    return "circular" if runs_in_circles(reply.thinking) else ""


def runs_in_circles(thinking: str) -> bool:
    """Whether one stretch of words comes again and again."""
    words = thinking.split()
    stretches = Counter(tuple(words[at : at + STRETCH]) for at in range(len(words) - STRETCH + 1))
    return any(count >= REPEATED for count in stretches.values())


def draw_and_sift(
    engine: Engine,
    task: Task,
    tokenizer: Tokenizer,
    problems: Sequence[Problem],
    sampling: SamplingConfig,
    config: RejectConfig,
    seed: int,
    places: Sequence[int],
) -> Sifted:
    """Answers of the engine's model to `problems`, sifted; `places` number the problems."""
    warm = replace(sampling, temperature=config.temperature)
    return sift(answer_problems(engine, task, tokenizer, problems, warm, config.samples, seed, places), config)


def mixed(dialogues: Sequence[Dialogue], general: Sequence[Dialogue], share: float, seed: int) -> list[Dialogue]:
    """All of `dialogues` and so many general ones, again from the first if need be, that they make up `share`."""
    wanted = round(len(dialogues) * share / (1 - share)) if share < 1 else len(general)
    both = [*dialogues, *(general[at % len(general)] for at in range(wanted if general else 0))]
    random.Random(seed).shuffle(both)
    return both
