"""A model's answers to questions with known answers, drawn and graded."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fathom.config import SamplingConfig
from fathom.eval.questions import Question
from fathom.eval.scores import Tried, require_samples, score_accuracy, score_at
from fathom.infer.offline import Completion, Engine, seed_of
from fathom.infer.request import Request


@dataclass(frozen=True)
class Attempt:
    """One question and what the model made of it."""

    question: Question
    completions: list[Completion]
    tried: Tried  # the answers in the form in which they are compared, and which are right


Grade = Callable[[Question, Sequence[Completion]], Tried]


def match_answers(question: Question, completions: Sequence[Completion]) -> Tried:
    """Answers that equal the known one are right."""
    found = [completion.answer for completion in completions]
    forms = [None if answer is None else question.matching_form(answer) for answer in found]
    return Tried(forms, [form == question.answer for form in forms])


def encode_question(engine: Engine, question: Question) -> list[int]:
    """The prompt: the question alone for a model of Fathom's, trained to answer so; others are told the form.

    All are told what a program is to do.
    """
    told = (
        question.text
        if engine.speaker.uses_template and not question.tests
        else f"{question.text}\n\n{question.instruction}"
    )
    return engine.speaker.put(told)


def attempt_all(
    engine: Engine,
    questions: Sequence[Question],
    sampling: SamplingConfig,
    samples: int,
    seed: int,
    notify: Callable[[int], object] = lambda done: None,
    grade: Grade = match_answers,
) -> list[Attempt]:
    """`samples` answers to every question, in the order of the questions; `notify` is told how many are done.

    Raises ValueError, naming the question, for one that the model's context cannot hold.
    """
    requests = [
        Request(encode_question(engine, question), sampling, seed_of(seed, place), engine.speaker.stop_ids, samples)
        for place, question in enumerate(questions)
    ]
    limit = engine.model.config.max_position_embeddings
    for question, request in zip(questions, requests, strict=True):
        if request.places > limit:
            raise ValueError(
                f"question {question.id} has {len(request.prompt)} tokens and max_tokens is {sampling.max_tokens}, "
                f"but the model's context holds {limit}; lower --max_tokens or leave the question out"
            )
    found: dict[int, Attempt] = {}
    for place, outcome in engine.complete(requests):
        if isinstance(outcome, ValueError):
            raise ValueError(f"question {questions[place].id}: {outcome}")
        found[place] = Attempt(questions[place], outcome, grade(questions[place], outcome))
        notify(len(found))
    return [found[place] for place in range(len(questions))]


def score_attempts(attempts: Sequence[Attempt], ks: Sequence[int]) -> dict[str, Any]:
    """Accuracy, pass@k and maj@k with intervals; lengths, and what was cut or held no answer, as means."""
    tried = [attempt.tried for attempt in attempts]
    samples = min(len(attempt.completions) for attempt in attempts)
    require_samples(ks, samples)
    programs = any(attempt.question.tests for attempt in attempts)  # of which no two are alike: nothing to vote on
    at = {name: value for name, value in score_at(tried, ks).items() if not (programs and name.startswith("maj@"))}
    replies = [completion for attempt in attempts for completion in attempt.completions]
    return {
        "questions": len(attempts),
        "samples": samples,
        **score_accuracy(tried),
        **at,
        "mean_length": round(sum(len(reply.tokens) for reply in replies) / len(replies), 3),
        "cut": round(sum(reply.finish == "length" for reply in replies) / len(replies), 6),
        "no_answer": round(sum(answer is None for each in tried for answer in each.answers) / len(replies), 6),
        **({"undecided": sum(each.undecided for each in tried)} if programs else {}),
    }


def attempt_record(attempt: Attempt) -> dict[str, Any]:
    """A question's answers as a results file keeps them."""
    tried = attempt.tried
    return {
        "id": attempt.question.id,
        "expected": attempt.question.answer,
        "answers": list(tried.answers),
        "correct": list(tried.correct),
        "tokens": [len(completion.tokens) for completion in attempt.completions],
    }
