"""Countdown whose thinking names every step, in English or in Chinese, so that a model can mix the two (R1 2.3.1)."""

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from fathom.chain.data import ARITHMETIC, EXPRESSIONS, shard_path
from fathom.config import TaskConfig, TextConfig
from fathom.eval.suite import Answer
from fathom.rl.reward import language_consistency
from fathom.runs import Run
from fathom.tasks import Countdown, Problem
from fathom.text.arithmetic import arithmetic_documents
from fathom.text.chat import parse_reply
from fathom.text.dialogues import Dialogue, encode_dialogue, expression_documents
from fathom.text.documents import encode_documents
from fathom.text.shards import write_shard
from fathom.text.tokenizer import Tokenizer

Words = Mapping[str, str]
ENGLISH: Words = {"+": "add", "-": "take"}
CHINESE: Words = {"+": "加", "-": "减"}
MIXED = 0.5  # share of the documents that choose a language anew for every step; the rest keeps to one
_STEP = re.compile(r"[0-9]+([-+])[0-9]+=[0-9]+")
_NAMED = re.compile(rf"({'|'.join([*ENGLISH.values(), *CHINESE.values()])})?({_STEP.pattern})")
CORPUS_TEXT = (
    "half of the worked documents that the base model has read choose English or Chinese anew for the word before "
    "every step, the others keep to one of the two"
)


def name_steps(thinking: str, words: Callable[[], Words]) -> str:
    """`8+2=10,10-4=6` as `add8+2=10,take10-4=6`, in the language that `words` gives for each step."""
    return _STEP.sub(lambda step: words()[step[1]] + step[0], thinking)


def without_names(thinking: str) -> str | None:
    """The bare steps; None where one has no name, or that of the other operator."""
    wrong = False

    def bare(found: re.Match[str]) -> str:
        nonlocal wrong
        wrong |= found[1] not in (ENGLISH[found[3]], CHINESE[found[3]])
        return found[2]

    plain = _NAMED.sub(bare, thinking)
    return None if wrong else plain


@dataclass(frozen=True)
class Bilingual:
    """The task under one config of Countdown's; worked solutions are in English."""

    countdown: Countdown

    def sample(self, rng: random.Random, held_out: bool) -> Problem:
        """One of Countdown's problems, which hold no word."""
        return self.countdown.sample(rng, held_out)

    def worked(self, problem: Problem, rng: random.Random) -> str:
        """Countdown's own solution, its steps named in English."""
        thinking, end, answer = self.countdown.worked(problem, rng).partition("</think>")
        return name_steps(thinking, lambda: ENGLISH) + end + answer

    def soundness(self, problem: Problem, thinking: str) -> float:
        """Share of the tries whose steps are all rightly named, in either language, and play by the rules."""
        tries = [attempt for attempt in thinking.split(";") if attempt.strip()]
        bare = [plain for attempt in tries if (plain := without_names(attempt)) is not None]
        return sum(self.countdown.soundness(problem, plain) for plain in bare) / max(1, len(tries))

    def grade(self, problem: Problem, answer: str) -> float:
        """As Countdown grades it."""
        return self.countdown.grade(problem, answer)


def documents(seed: int, count: int, task: TaskConfig) -> list[Dialogue]:
    """Expressions that are no problems of the task, their steps named in one language or in both."""
    rng = random.Random(seed)
    return [_named(document, rng) for document in expression_documents(seed, count, task)]


def _named(document: Dialogue, rng: random.Random) -> Dialogue:
    both = (ENGLISH, CHINESE)
    own = None if rng.random() < MIXED else rng.choice(both)
    thinking, end, answer = document.reply.partition("</think>")
    return Dialogue(document.question, name_steps(thinking, lambda: own or rng.choice(both)) + end + answer)


def write_corpus(text: TextConfig, task: TaskConfig, run: Run) -> None:
    """Worked sums and the documents as shards, with a tokenizer of their own."""
    sums = arithmetic_documents(0, text.arithmetic_documents, text.arithmetic_max, task.operators, task)
    worked = documents(0, text.expression_documents, task)
    tokenizer = Tokenizer.train(chain(sums[:2000], (each.reply for each in worked[:2000])), text.vocab_size)
    run.shards_dir.mkdir(parents=True)
    tokenizer.save(run.tokenizer_path)
    encoded = (np.concatenate(encode_dialogue(tokenizer, each)) for each in worked)
    write_shard(shard_path(run, ARITHMETIC), encode_documents(tokenizer, sums), tokenizer)
    write_shard(shard_path(run, EXPRESSIONS), encoded, tokenizer)


def habits(task: Bilingual, answers: Sequence[Answer]) -> dict[str, float]:
    """Of sampled answers the shares that mix languages, that are English alone, and that a reader can follow.

    One can follow a thinking in one language, either of them, whose every try is named and sound.
    """
    sampled = [answer for answer in answers if not answer.greedy]
    thoughts = [parse_reply(answer.reply) for answer in sampled]
    english = [language_consistency(reply.thinking) if _has_words(reply.thinking) else -1.0 for reply in thoughts]
    sound = [
        reply.well_formed and task.soundness(answer.problem, reply.thinking) == 1
        for answer, reply in zip(sampled, thoughts, strict=True)
    ]
    count = len(sampled)
    return {
        "mixed": sum(0 < share < 1 for share in english) / count,
        "english": sum(share == 1 for share in english) / count,
        "readable": sum(share in (0, 1) and well for share, well in zip(english, sound, strict=True)) / count,
    }


def _has_words(thinking: str) -> bool:
    return any(sign.isalpha() for sign in thinking)
