"""Evaluation on held-out problems: sampled and greedy accuracy with 95 % intervals, tries and lengths."""

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from fathom.config import EvalConfig, SamplingConfig
from fathom.eval.passk import clustered_mean, wilson
from fathom.eval.scores import Tried
from fathom.infer.engine import Engine
from fathom.infer.request import Request
from fathom.model import Transformer
from fathom.parallel.world import World
from fathom.tasks import Countdown, GradingError, Problem, Task
from fathom.tasks.answer import canonical
from fathom.tasks.countdown import count_tries
from fathom.text.chat import parse_reply, read_reply, render_prompt
from fathom.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Answer:
    """One graded answer."""

    problem: Problem
    greedy: bool
    reply: str
    correct: bool
    length: int  # tokens, end of sequence included
    undecided: bool = False  # the checker failed or ran out of time; counted as wrong, and said


@dataclass(frozen=True)
class Score:
    """Accuracy over held-out problems; the bounds are 95 % intervals.

    The sampled one counts answers to one problem as dependent; the greedy one is Wilson's.
    """

    sampled: float
    sampled_low: float
    sampled_high: float
    greedy: float
    greedy_low: float
    greedy_high: float
    problems: int
    answers: int  # sampled ones
    mean_tries: float  # of the sampled answers
    mean_length: float  # tokens of the sampled answers
    undecided: int = 0  # answers, greedy ones too, on which the checker came to no verdict; they count as wrong

    def as_record(self) -> dict[str, float]:
        return {name: round(value, 6) for name, value in asdict(self).items()}


def evaluate(
    model: Transformer,
    task: Task,
    tokenizer: Tokenizer,
    problems: Sequence[Problem],
    config: EvalConfig,
    sampling: SamplingConfig,
    seed: int,
    world: World,
) -> tuple[Score, list[Answer]]:
    """`config.samples` sampled answers and one greedy answer to every problem, shared out over the processes."""
    engine = Engine(model, rows=config.rows)
    mine = list(range(world.rank, len(problems), world.size))
    local = answer_problems(engine, task, tokenizer, [problems[i] for i in mine], sampling, config.samples, seed, mine)
    local += answer_problems(
        engine, task, tokenizer, [problems[i] for i in mine], replace(sampling, temperature=0), 1, seed, mine
    )
    answers = [answer for part in world.gather(local) for answer in part]  # pyright: ignore
    return score_answers(answers), answers


def answer_problems(
    engine: Engine,
    task: Task,
    tokenizer: Tokenizer,
    problems: Sequence[Problem],
    sampling: SamplingConfig,
    samples: int,
    seed: int,
    places: Sequence[int],
) -> list[Answer]:
    """`samples` answers to each problem; `places` number the problems, so that a draw depends on its problem alone."""
    requests = [
        Request(
            prompt=render_prompt(tokenizer, problem.question),
            sampling=sampling,
            seed=random.Random(f"{seed}/{place}").getrandbits(48),
            stop_ids=tokenizer.stop_ids,
            n=samples,
        )
        for problem, place in zip(problems, places, strict=True)
    ]
    answers: list[Answer] = []
    for problem, pieces in zip(problems, engine.generate(requests), strict=True):
        for piece in pieces:
            reply = read_reply(tokenizer, piece.tokens)
            verdict = judge(task, problem, reply)
            greedy = sampling.temperature == 0
            answers.append(Answer(problem, greedy, reply, verdict is True, len(piece.tokens), verdict is None))
    return answers


def judge(task: Task, problem: Problem, reply: str) -> bool | None:
    """Whether the reply's one answer solves the problem; None where the checker cannot say."""
    answer = parse_reply(reply).answer
    try:
        return answer is not None and task.grade(problem, answer) == 1
    except (GradingError, TimeoutError):
        return None


def score_answers(answers: Sequence[Answer]) -> Score:
    """Sum up; sampled answers are clustered by problem."""
    greedy = [a.correct for a in answers if a.greedy]
    sampled = [a for a in answers if not a.greedy]
    clusters: dict[str, list[float]] = defaultdict(list)
    for answer in sampled:
        clusters[answer.problem.key].append(float(answer.correct))
    estimate = clustered_mean(list(clusters.values()))
    low, high = estimate.interval
    greedy_low, greedy_high = wilson(sum(greedy), len(greedy))
    return Score(
        sampled=estimate.mean,
        sampled_low=low,
        sampled_high=high,
        greedy=sum(greedy) / len(greedy),
        greedy_low=greedy_low,
        greedy_high=greedy_high,
        problems=len(greedy),
        answers=len(sampled),
        mean_tries=sum(count_tries(parse_reply(a.reply).thinking) for a in sampled) / len(sampled),
        mean_length=sum(a.length for a in sampled) / len(sampled),
        undecided=sum(a.undecided for a in answers),
    )


def tried(answers: Sequence[Answer]) -> list[Tried]:
    """The sampled answers by problem, for votes and pass@k; the same expression in other spacing is the same answer."""
    clusters: dict[str, list[Answer]] = defaultdict(list)
    for answer in answers:
        if not answer.greedy:
            clusters[answer.problem.key].append(answer)
    return [
        Tried([_vote(each.reply) for each in cluster], [each.correct for each in cluster])
        for cluster in clusters.values()
    ]


def _vote(reply: str) -> str | None:
    answer = parse_reply(reply).answer
    return None if answer is None else canonical(answer)


def random_play(
    task: Countdown, problems: Sequence[Problem], tries: float, seed: int, rounds: int = 4
) -> dict[str, float]:
    """The control: how often random legal play solves the problems in `tries` tries on average.

    A fractional mean mixes the two whole numbers around it.
    """
    rng = random.Random(seed)
    outcomes: list[list[float]] = []
    for problem in problems:
        whole = [int(tries) + (rng.random() < tries % 1) for _ in range(rounds)]
        outcomes.append([float(task.random_solver(problem, max(1, n), rng)) for n in whole])
    estimate = clustered_mean(outcomes)
    low, high = estimate.interval
    return {"solved": estimate.mean, "low": low, "high": high, "tries": tries}
