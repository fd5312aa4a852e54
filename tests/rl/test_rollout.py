"""Rollouts: groups, what is dropped and refilled, what an answer earns."""

import random
from dataclasses import replace

import pytest
import torch

from fathom.config import GRPOConfig, ObjectiveConfig, SamplingConfig
from fathom.infer.engine import Engine
from fathom.infer.request import Piece, Request
from fathom.rl.rollout import Episode, Rollout, is_equal, judge, roll_out
from fathom.tasks import Countdown, GradingError, Problem, Task
from fathom.text.chat import render_prompt, render_reply

KEEP_ALL = ObjectiveConfig(drop_equal_groups=False)


class Broken(Countdown):
    """A task whose checker breaks on every answer."""

    def grade(self, problem: Problem, answer: str) -> bool:
        raise GradingError("the checker broke")


def sample(policy, questions: int = 3, seed: str = "0/0/0", task: Task | None = None, **changes) -> Rollout:
    config: GRPOConfig = replace(policy.config, **changes)
    engine = Engine(policy.model, rows=questions * config.group)
    return roll_out(engine, task or policy.task, policy.tokenizer, config, questions, 7, seed)


def grade(policy, tokens: list[int], task: Task | None = None) -> Episode:
    """What the answer `tokens` to one certain question earns."""
    problem = policy.task.sample(random.Random(0), held_out=False)
    prompt = render_prompt(policy.tokenizer, problem.question)
    request = Request(prompt, policy.config.sampling, seed=0, stop_ids=frozenset({policy.tokenizer.eos_id}))
    piece = Piece(0, 0, tokens, [0.0] * len(tokens), "stop")
    return judge(task or policy.task, policy.tokenizer, policy.config, problem, request, piece, 0, 0)


def solution(policy) -> list[int]:
    problem = policy.task.sample(random.Random(0), held_out=False)
    return render_reply(policy.tokenizer, policy.task.worked(problem, random.Random(0)))


def by_group(episodes: list[Episode]) -> dict[int, list[Episode]]:
    groups: dict[int, list[Episode]] = {}
    for episode in episodes:
        groups.setdefault(episode.group, []).append(episode)
    return groups


def test_the_tiny_policy_earns_different_rewards(policy) -> None:
    rewards = {episode.total for episode in sample(policy, 4).sampled}
    assert {0.0, policy.config.reward.format} <= rewards


def test_episodes_hold_what_was_sampled(policy) -> None:
    eos = policy.tokenizer.eos_id
    rollout = sample(policy, objective=KEEP_ALL)
    assert len(rollout.kept) == len(rollout.sampled) == 3 * 6
    assert rollout.tokens == sum(len(episode.completion) for episode in rollout.sampled)
    assert {episode.truncated for episode in rollout.sampled} == {True, False}
    for episode in rollout.sampled:
        assert len(episode.logprobs) == len(episode.completion) <= 14
        assert max(episode.logprobs) <= 0
        assert (episode.completion[-1] == eos) == (not episode.truncated)
        assert eos not in episode.completion[:-1]
        assert episode.prompt == render_prompt(policy.tokenizer, episode.problem.question)
        assert episode.policy_version == 7
    for episodes in by_group(rollout.sampled).values():
        assert len(episodes) == 6
        assert len({episode.problem.key for episode in episodes}) == 1


def test_training_problems_alone_are_asked(policy) -> None:
    keys = {episode.problem.key for episode in sample(policy, 8, group=2, objective=KEEP_ALL).sampled}
    held_out = {policy.task.sample(random.Random(seed), held_out=True).key for seed in range(200)}
    assert len(keys) > 4
    assert not keys & held_out


def test_a_question_drawn_twice_is_two_groups(policy) -> None:
    class Single(Countdown):
        def sample(self, rng: random.Random, held_out: bool) -> Problem:
            return super().sample(random.Random(0), held_out)

    rollout = sample(policy, 3, task=Single(policy.task.config), objective=KEEP_ALL)
    groups = by_group(rollout.sampled)
    assert len({episode.problem.question for episode in rollout.sampled}) == 1
    assert {number: len(episodes) for number, episodes in groups.items()} == {0: 6, 1: 6, 2: 6}
    texts = [[episode.completion for episode in episodes] for episodes in groups.values()]
    assert texts[0] != texts[1]  # each group has random numbers of its own


def test_rollouts_follow_from_their_seed(policy) -> None:
    first, again, other = (sample(policy, seed=seed) for seed in ("0/1/0", "0/1/0", "0/1/1"))
    assert first == again
    assert first != other


def test_equal_groups_are_dropped_counted_and_refilled(policy) -> None:
    rollout = sample(policy, 4, group=2, refill_rounds=3)
    kept, sampled = by_group(rollout.kept), by_group(rollout.sampled)
    equal = [number for number, group in sampled.items() if len({episode.total for episode in group}) == 1]
    assert rollout.groups_dropped == len(equal) > 0
    assert kept.keys() == sampled.keys() - set(equal)
    assert sorted(sampled) == list(range(len(sampled)))  # numbers go on in later rounds
    assert len(sampled) > 4
    assert len(kept) == 4
    assert rollout.tokens == sum(len(episode.completion) for episode in rollout.sampled)


def test_refilling_stops_after_its_rounds_and_draws_no_more_than_is_missing(policy) -> None:
    none = sample(policy, 4, group=2, refill_rounds=0)
    assert len(by_group(none.sampled)) == 4
    assert len(by_group(none.kept)) == 4 - none.groups_dropped < 4
    one = sample(policy, 4, group=2, refill_rounds=1)
    assert len(by_group(one.sampled)) == 4 + none.groups_dropped
    assert one.sampled[:8] == none.sampled


def test_equal_groups_stay_where_the_objective_says_so(policy) -> None:
    rollout = sample(policy, 4, group=2, objective=KEEP_ALL)
    assert rollout.groups_dropped == 0
    assert rollout.kept == rollout.sampled
    assert any(is_equal([episode.total for episode in group]) for group in by_group(rollout.kept).values())


@pytest.mark.parametrize(
    ("rewards", "equal"),
    [
        ([0.1, 0.1], True),
        ([0.1, 0.1 + 1e-12], False),  # compared exactly
        ([0.1, float("nan")], True),  # one graded answer is better than none other
        ([float("nan"), float("nan")], True),
        ([0.0, float("nan"), 1.0], False),
    ],
)
def test_equal_rewards(rewards: list[float], equal: bool) -> None:
    assert is_equal(rewards) == equal


def test_a_right_answer_earns_all_of_its_parts(policy) -> None:
    episode = grade(policy, solution(policy))
    assert episode.reward.accuracy == 1.0
    assert episode.total == pytest.approx(1.1)


def test_text_behind_the_end_of_sequence_changes_no_reward(policy) -> None:
    tokens = solution(policy)
    more = [*tokens, *tokens[:5], policy.tokenizer.eos_id]
    assert grade(policy, more).reward == grade(policy, tokens).reward
    wrong = [policy.tokenizer.eos_id, *tokens]  # the answer came too late
    assert grade(policy, wrong).total == 0.0


def test_an_answer_that_nobody_could_grade_has_no_reward(policy) -> None:
    tokens = solution(policy)
    episode = grade(policy, tokens, Broken(policy.task.config))
    assert episode.reward.total is None and episode.reward.accuracy is None
    assert episode.total != episode.total
    assert episode.reward.format == 1.0


def test_temperature_reaches_the_sampler(policy) -> None:
    cold, hot = (
        sample(policy, 6, objective=KEEP_ALL, sampling=SamplingConfig(temperature=t, max_tokens=14)) for t in (0.1, 3.0)
    )
    means = [torch.tensor([e.logprobs[0] for e in rollout.sampled]).mean().item() for rollout in (cold, hot)]
    assert means[0] > -1.0 > -3.0 > means[1]


def test_every_stop_id_ends_an_answer_and_belongs_to_it(policy) -> None:
    """Two ends of sequence: whichever comes first is the answer's last token, and nothing follows it."""
    eos = policy.tokenizer.eos_id
    prompt = render_prompt(policy.tokenizer, policy.task.sample(random.Random(0), held_out=False).question)
    hot = SamplingConfig(temperature=1.5, max_tokens=30)
    free = Engine(policy.model, rows=16).generate([Request(prompt, hot, 3, frozenset(), n=16)])[0]
    other = next(token for piece in free for token in piece.tokens[3:] if token != eos)
    ends = frozenset({eos, other})
    pieces = Engine(policy.model, rows=16).generate([Request(prompt, hot, 3, ends, n=16)])[0]
    assert {piece.tokens[-1] for piece in pieces if piece.finish == "stop"} == ends
    for piece, uncut in zip(pieces, free, strict=True):
        assert not ends & set(piece.tokens[:-1])
        assert uncut.tokens[: len(piece.tokens)] == piece.tokens
        assert (piece.tokens[-1] in ends) == (piece.finish == "stop")
