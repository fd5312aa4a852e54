"""Rollouts: questions in, graded answers out, through the same engine that chat and evaluation use."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Int16
from torch import Tensor

from fathom.config import GRPOConfig
from fathom.infer.engine import Engine
from fathom.infer.experts import replay_of
from fathom.infer.request import Piece, Request
from fathom.infer.tables import pages_that_fit
from fathom.model import Transformer
from fathom.rl.reward import Reward, score
from fathom.rl.sampling import Answer, sample_round
from fathom.tasks import Problem, Task
from fathom.text.chat import read_reply, render_prompt
from fathom.text.tokenizer import Tokenizer

PAGE = 64  # tokens
PROMPT = 1024  # tokens of a prompt for which every row has pages on a GPU; longer ones wait for those of others


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
    reply: str = ""  # the completion as text, as far as the first end of sequence
    # of prompt and completion, where training is to repeat the sampler's choices; tensors have no single truth
    experts: Int16[Tensor, "L T K"] | None = field(default=None, compare=False)

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
    cut: int = 0  # answers ended because nearly all others of their round were finished; they count as truncated
    unbegun: int = 0  # answers that had no token by then: they are nowhere
    draft_acceptance: float | None = None  # share of the drafts kept; None where none was checked
    drafted: float | None = None  # tokens a row gained by a decoding step; None where the engine makes no drafts


def open_engine(model: Transformer, config: GRPOConfig, questions: int) -> Engine:
    """An engine for the answers to so many questions at once; on a GPU it leaves memory to the trainer."""
    weight, rows = model.embedding.weight, questions * config.group
    drafts = "auto" if config.drafts == "auto" else 0
    if not weight.is_cuda:
        return Engine(model, rows, drafts=drafts)
    free_bytes, _ = torch.cuda.mem_get_info(weight.device)
    places = min(PROMPT + config.sampling.max_tokens, model.config.max_position_embeddings)
    pages = pages_that_fit(model.config, rows, places, PAGE, weight.dtype, free_bytes // 2)
    return Engine(model, rows, drafts=drafts, pages=pages, page_size=PAGE)


def roll_out(
    engine: Engine, task: Task, tokenizer: Tokenizer, config: GRPOConfig, questions: int, version: int, seed: str
) -> Rollout:
    """Sample `questions` groups; groups whose rewards are all equal are dropped and refilled (DAPO).

    Refilling stops after `refill_rounds` further rounds. All draws follow from `seed`.
    """
    engine.swap_weights()  # it samples from the tensors that were trained since the last rollout
    checked, accepted = engine.draft_counts
    rows, decoded = engine.row_steps, engine.decoded
    rng = random.Random(seed)
    kept: list[Episode] = []
    sampled: list[Episode] = []
    dropped, first, cut, unbegun = 0, 0, 0, 0
    for _ in range(1 + config.refill_rounds):
        missing = questions - (first - dropped)
        if missing == 0:
            break
        problems = [task.sample(rng, held_out=False) for _ in range(missing)]
        requests = [request_of(problem, tokenizer, config, rng.getrandbits(48)) for problem in problems]

        def graded(
            place: int,
            answer: Answer,
            problems: list[Problem] = problems,
            requests: list[Request] = requests,
            first: int = first,
        ) -> Episode:
            experts = replay_of(answer.pieces) if config.replay_routing else None
            about = (problems[place], requests[place], answer.whole, first + place, version, experts)
            return judge(task, tokenizer, config, *about)

        found = sample_round(engine, requests, graded, config.finish_share, config.graders)
        cut, unbegun = cut + found.cut, unbegun + found.unbegun
        for episodes in found.results:
            sampled += episodes
            if config.objective.drop_equal_groups and is_equal([e.total for e in episodes]):
                dropped += 1
            else:
                kept += episodes
        first += missing
    checked, accepted = (now - before for now, before in zip(engine.draft_counts, (checked, accepted), strict=True))
    return Rollout(
        kept,
        sampled,
        dropped,
        sum(len(e.completion) for e in sampled),
        cut,
        unbegun,
        accepted / checked if checked else None,
        (engine.decoded - decoded) / max(1, engine.row_steps - rows) if config.drafts == "auto" else None,
    )


def request_of(problem: Problem, tokenizer: Tokenizer, config: GRPOConfig, seed: int) -> Request:
    """A group of answers to one question."""
    return Request(
        prompt=render_prompt(tokenizer, problem.question),
        sampling=config.sampling,
        seed=seed,
        stop_ids=tokenizer.stop_ids,
        n=config.group,
        experts=config.replay_routing,
    )


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
    experts: Int16[Tensor, "L T K"] | None = None,
) -> Episode:
    """Grade one finished answer."""
    reply = read_reply(tokenizer, piece.tokens)
    reward = score(task, problem, reply, config.reward)
    cut = piece.finish != "stop"
    prompt = list(request.prompt)
    return Episode(problem, group, prompt, piece.tokens, piece.logprobs, cut, reward, version, reply, experts)
