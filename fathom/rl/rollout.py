"""Rollouts: questions in, graded answers out, through the same engine that chat and evaluation use."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from fathom.config import GRPOConfig
from fathom.infer.engine import Engine
from fathom.infer.request import Piece, Request
from fathom.rl.reward import Reward, score
from fathom.tasks import Problem, Task
from fathom.text.chat import read_reply, render_prompt
from fathom.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Episode:
    """One answer and everything training needs to know of it."""

    problem: Problem
    group: int  # one id per sampled question: a question drawn twice is two groups
    prompt: list[int]
    completion: list[int]  # up to and including the end of sequence, unless cut by length
    logprobs: list[float]  # of every completion token when it was sampled
    truncated: bool
    reward: Reward
    policy_version: int  # optimizer steps of this stage behind the weights that sampled it

    @property
    def total(self) -> float:
        """The reward, NaN where the checker failed."""
        return float("nan") if self.reward.total is None else self.reward.total


@dataclass(frozen=True)
class Rollout:
    """The groups that teach, and every sampled group for the statistics."""

    kept: list[Episode]
    sampled: list[Episode]
    groups_dropped: int
    tokens: int  # sampled, dropped groups included


def roll_out(
    engine: Engine, task: Task, tokenizer: Tokenizer, config: GRPOConfig, questions: int, version: int, seed: str
) -> Rollout:
    """Sample `questions` groups; groups whose rewards are all equal are dropped and refilled (DAPO).

    Refilling stops after `refill_rounds` further rounds. All draws follow from `seed`.
    """
    engine.swap_weights()  # it samples from the tensors that were trained since the last rollout
    rng = random.Random(seed)
    kept: list[Episode] = []
    sampled: list[Episode] = []
    dropped, first = 0, 0
    for _ in range(1 + config.refill_rounds):
        missing = questions - len(kept) // config.group
        if missing == 0:
            break
        problems = [task.sample(rng, held_out=False) for _ in range(missing)]
        requests = [
            Request(
                prompt=render_prompt(tokenizer, problem.question),
                sampling=config.sampling,
                seed=rng.getrandbits(48),
                stop_ids=tokenizer.stop_ids,
                n=config.group,
            )
            for problem in problems
        ]
        answers = engine.generate(requests)
        for group, (problem, request, pieces) in enumerate(zip(problems, requests, answers, strict=True), first):
            episodes = [judge(task, tokenizer, config, problem, request, p, group, version) for p in pieces]
            sampled += episodes
            if config.objective.drop_equal_groups and is_equal([e.total for e in episodes]):
                dropped += 1
            else:
                kept += episodes
        first += missing
    return Rollout(kept, sampled, dropped, sum(len(e.completion) for e in sampled))


def is_equal(rewards: Sequence[float]) -> bool:
    """Whether the graded rewards (not NaN) are exactly equal, so that no answer is better than another."""
    return len({reward for reward in rewards if reward == reward}) < 2


def judge(
    task: Task,
    tokenizer: Tokenizer,
    config: GRPOConfig,
    problem: Problem,
    request: Request,
    piece: Piece,
    group: int,
    version: int,
) -> Episode:
    """Grade one finished answer."""
    reward = score(task, problem, read_reply(tokenizer, piece.tokens), config.reward)
    cut = piece.finish != "stop"
    return Episode(problem, group, list(request.prompt), piece.tokens, piece.logprobs, cut, reward, version)
