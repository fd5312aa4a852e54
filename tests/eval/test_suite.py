"""Scores by hand numbers, and what an evaluation may not depend on."""

import random
from dataclasses import replace

import pytest
import torch

from fathom.config import AttentionConfig, EvalConfig, ModelConfig, MoEConfig, SamplingConfig, TaskConfig
from fathom.eval.passk import wilson
from fathom.eval.suite import Answer, Score, evaluate, judge, random_play, score_answers
from fathom.model import Transformer
from fathom.parallel.world import World
from fathom.tasks import Countdown, GradingError, Problem, distinct_problems
from fathom.text.tokenizer import MINIMUM_VOCABULARY, Tokenizer

WORLD = World(0, 1, torch.device("cpu"))
TASK = Countdown(TaskConfig(numbers=2, max_number=20, max_target=40))
SAMPLING = SamplingConfig(max_tokens=8)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["1+2=3"], MINIMUM_VOCABULARY)


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> Transformer:
    """Untrained: its texts are noise, which is what tells one draw from another."""
    attention = AttentionConfig(
        num_attention_heads=2,
        num_key_value_heads=2,
        kv_lora_rank=8,
        qk_nope_head_dim=4,
        qk_rope_head_dim=4,
        v_head_dim=4,
    )
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=16,
        num_hidden_layers=1,
        initializer_range=0.2,
        attention=attention,
        moe=MoEConfig(moe_intermediate_size=8),
    )
    model = Transformer(config)
    model.initialise(torch.Generator().manual_seed(0))
    return model


def run(
    model: Transformer,
    tokenizer: Tokenizer,
    seed: int = 0,
    rows: int = 64,
    samples: int = 2,
    rank: int = 0,
    size: int = 1,
) -> list[Answer]:
    class Alone(World):  # one process of several, whose answers are wanted apart
        def gather(self, value: object) -> list[object]:
            return [value]

    config = EvalConfig(problems=6, samples=2, rows=rows)
    problems = distinct_problems(TASK, 6, seed=1)
    world = Alone(rank, size, torch.device("cpu"))
    return evaluate(model, TASK, tokenizer, problems, config, SAMPLING, seed, world)[1]


def answer(key: str, correct: bool, greedy: bool = False, thinking: str = "1+2=3", length: int = 5) -> Answer:
    problem = Problem("1,2:3", key, (1, 2), 3)
    return Answer(problem, greedy, f"{thinking}</think><answer>1+2</answer>", correct, length)


def test_scores_by_hand() -> None:
    answers = [
        answer("a", True, length=4),
        answer("a", True, thinking="1+2=3;2-1=1", length=6),
        answer("b", False, length=8),
        answer("b", True, thinking="2-1=1;1+2=3;1+2=3", length=10),
        answer("a", True, greedy=True, thinking="1;1;1;1", length=99),
        answer("b", False, greedy=True, length=99),
    ]
    score = score_answers(answers)
    assert (score.problems, score.answers) == (2, 4)
    assert score.sampled == 0.75
    # deviations summed per problem are +1/2 and -1/2: sqrt(2 * (1/4 + 1/4)) / 4 = 1/4
    assert (score.sampled_low, score.sampled_high) == pytest.approx((0.75 - 1.959964 * 0.25, 1.0))
    assert score.greedy == 0.5
    assert (score.greedy_low, score.greedy_high) == pytest.approx(wilson(1, 2))
    assert score.mean_tries == (1 + 2 + 1 + 3) / 4
    assert score.mean_length == 7.0
    assert score.as_record()["sampled_low"] == round(score.sampled_low, 6)


def test_equal_answers_to_a_problem_prove_no_more_than_one() -> None:
    once = [answer(str(n), n < 6) for n in range(10)]
    twice = [each for each in once for _ in range(2)]
    greedy = [answer(str(n), n < 6, greedy=True) for n in range(10)]
    bounds = [(s.sampled_low, s.sampled_high) for s in (score_answers(once + greedy), score_answers(twice + greedy))]
    assert bounds[0] == pytest.approx(bounds[1])


@pytest.mark.parametrize(
    ("reply", "correct"),
    [
        ("1+2=3</think><answer>1+2</answer>", True),
        ("</think><answer>2+1</answer>", True),
        ("1+2=3</think><answer>1+2</answer><|eos|>", True),
        ("1+2=3</think><answer>3</answer>", False),
        ("1+2=3<answer>1+2</answer>", False),
        ("1+2=3</think>", False),
        ("</think><answer>1+2</answer><answer>1+2</answer>", False),
    ],
)
def test_a_reply_is_right_when_its_one_answer_is(reply: str, correct: bool) -> None:
    assert judge(TASK, Problem("1,2:3", "a", (1, 2), 3), reply) == correct


@pytest.mark.parametrize("error", [GradingError("broke"), TimeoutError()])
def test_an_answer_that_breaks_the_checker_is_not_right(error: Exception) -> None:
    class Broken(Countdown):
        def grade(self, problem: Problem, answer: str) -> bool:
            raise error

    assert judge(Broken(TASK.config), Problem("1,2:3", "a", (1, 2), 3), "</think><answer>1+2</answer>") is None


def test_every_problem_gets_its_samples_and_one_greedy_answer(model: Transformer, tokenizer: Tokenizer) -> None:
    answers = run(model, tokenizer)
    keys = [problem.key for problem in distinct_problems(TASK, 6, seed=1)]
    assert [a.problem.key for a in answers if a.greedy] == keys
    assert sorted(a.problem.key for a in answers if not a.greedy) == sorted(keys * 2)
    assert len({a.reply for a in answers if not a.greedy}) == 12  # no two draws share their random numbers
    assert all(0 < a.length <= 8 for a in answers)


def test_the_same_seed_gives_the_same_answers_whatever_is_decoded_beside_them(
    model: Transformer, tokenizer: Tokenizer
) -> None:
    first = run(model, tokenizer, rows=64)
    assert run(model, tokenizer, rows=64) == first
    assert run(model, tokenizer, rows=3) == first
    assert run(model, tokenizer, seed=1) != first
    greedy = [[a.reply for a in answers if a.greedy] for answers in (first, run(model, tokenizer, seed=1))]
    assert greedy[0] == greedy[1]


def test_processes_share_out_the_very_answers_of_one(model: Transformer, tokenizer: Tokenizer) -> None:
    whole = run(model, tokenizer)
    parts = [a for rank in range(2) for a in run(model, tokenizer, rank=rank, size=2)]
    assert len({a.problem.key for a in run(model, tokenizer, rank=1, size=2)}) == 3
    assert sorted(parts, key=repr) == sorted(whole, key=repr)
    assert replace_order(score_answers(parts)) == replace_order(score_answers(whole))


def replace_order(score: Score) -> Score:
    """Sums in another order end in other digits."""
    return replace(score, **{name: round(value, 9) for name, value in vars(score).items()})


def test_random_play_in_whole_tries_is_the_solver_of_the_task() -> None:
    problems = distinct_problems(TASK, 40, seed=1)
    rng = random.Random(5)
    shares: list[float] = []
    for problem in problems:
        for _ in range(4):
            rng.random()  # the draw that a fraction would need
        shares += [float(TASK.random_solver(problem, 2, rng)) for _ in range(4)]
    assert random_play(TASK, problems, 2.0, seed=5)["solved"] == pytest.approx(sum(shares) / len(shares))


def test_random_play_mixes_the_whole_numbers_around_a_fraction() -> None:
    class Counting(Countdown):
        def random_solver(self, problem: Problem, tries: int, rng: random.Random) -> bool:
            seen.append(tries)
            return tries > 1

    seen: list[int] = []
    problems = distinct_problems(TASK, 50, seed=1)
    result = random_play(Counting(TASK.config), problems, 1.25, seed=0, rounds=20)
    assert set(seen) == {1, 2}
    assert sum(seen) / len(seen) == pytest.approx(1.25, abs=0.05)
    assert result["solved"] == pytest.approx(sum(n > 1 for n in seen) / len(seen))
    assert result["low"] < result["solved"] < result["high"]
    seen.clear()
    random_play(Counting(TASK.config), problems[:2], 3.0, seed=0)
    assert seen == [3] * 8


def test_more_tries_solve_more() -> None:
    problems = distinct_problems(Countdown(TaskConfig()), 60, seed=1)
    shares = [random_play(Countdown(TaskConfig()), problems, tries, seed=0)["solved"] for tries in (1, 2, 8)]
    assert 0.05 < shares[0] < shares[1] < shares[2] < 1.0
