"""The card of the cold start: a corpus that mixes languages and gives nothing away, habits counted, a verdict."""

import random
from dataclasses import replace

from fathom.eval.suite import Answer
from fathom.rl.reward import language_consistency
from fathom.tasks import Countdown, Problem
from fathom.text.disjoint import given_away
from fathom.unlocks import cold_start
from fathom.unlocks.bilingual import Bilingual, documents, habits, without_names
from fathom.unlocks.cold_start import BASE, BOTH, COLD, REWARD, TUNED, ZERO
from fathom.unlocks.experiment import Figures

TASK = cold_start.variants("toy")[ZERO].course.task


def test_documents_are_in_one_language_or_both_and_give_no_problem_away() -> None:
    found = documents(0, 600, TASK)
    thoughts = [document.reply.partition("</think>")[0] for document in found]
    assert not given_away([f"{d.question}\n{without_names(t)}" for d, t in zip(found, thoughts, strict=True)], TASK)
    two = [language_consistency(thought) for thought in thoughts if thought.count("=") == 2]
    mixed, english = (sum(test) / len(two) for test in ([0 < x < 1 for x in two], [x == 1 for x in two]))
    assert abs(mixed - 1 / 4) < 0.08 and abs(english - 3 / 8) < 0.08  # half choose anew for each of two steps


def test_a_worked_solution_is_in_english_and_sound() -> None:
    task, plain = Bilingual(Countdown(TASK)), Countdown(TASK)
    for seed in range(20):
        problem = plain.sample(random.Random(seed), held_out=False)
        assert problem == task.sample(random.Random(seed), held_out=False)
        thinking, _, rest = task.worked(problem, random.Random(seed)).partition("</think>")
        bare = plain.worked(problem, random.Random(seed))
        assert f"{without_names(thinking)}</think>{rest}" == bare
        assert language_consistency(thinking) == 1 and task.soundness(problem, thinking) == 1


def test_a_step_needs_the_name_of_its_own_operator() -> None:
    task, problem = Bilingual(Countdown(TASK)), Problem("8,2,4:6", "", (8, 2, 4), 6)
    assert task.soundness(problem, "add8+2=10,减10-4=6") == 1
    assert task.soundness(problem, "add8+2=10,10-4=6") == 0
    assert task.soundness(problem, "add8+2=10,add10-4=6") == 0
    assert task.soundness(problem, "add8+2=11,take11-4=7;add8+2=10,take10-4=6") == 0.5
    assert task.grade(problem, "8+2-4") and not task.grade(problem, "8+2+4")


def test_habits_are_shares_of_the_sampled_answers() -> None:
    problem = Problem("8,2,4:6", "", (8, 2, 4), 6)
    thoughts = (
        "add8+2=10,take10-4=6",  # English
        "加8+2=10,减10-4=6",  # Chinese, readable as well
        "加8+2=10,take10-4=6",  # mixed
        "8+2=10,10-4=6",  # says nothing
        "add8+2=11,take11-4=7",  # false
    )
    answers = [Answer(problem, False, f"{t}</think><answer>8+2-4</answer>", True, 9) for t in thoughts]
    answers.append(replace(answers[2], greedy=True))
    assert habits(Bilingual(Countdown(TASK)), answers) == {"mixed": 1 / 5, "english": 2 / 5, "readable": 2 / 5}


def figures(mixed: float, cured: float, cold: float, both: float) -> Figures:
    def of(mixed: float, accuracy: float) -> Figures:
        shares = {"mixed": mixed, "english": 1 - mixed, "readable": 0.5, "accuracy": accuracy}
        return {**shares, "curve": [(1, 1 - mixed)]}

    rest = {BASE: of(0.3, 0.0), TUNED: of(0.0, 0.3), REWARD: of(cured, 0.5)}
    return rest | {ZERO: of(mixed, 0.5), COLD: of(0.0, cold), BOTH: of(cured, both)}


def test_there_must_be_mixing_that_is_cured_at_little_cost() -> None:
    noise = (0.0, 0.01, 0.02)
    good = [figures(0.3 + n, 0.01, 0.8 + n, 0.79) for n in noise]
    assert cold_start.conclude(good).verdict == "supported"
    assert cold_start.conclude(good[:1]).verdict == "inconclusive"
    assert cold_start.conclude([figures(0.01, n / 10, 0.8, 0.79) for n in noise]).verdict == "not supported"
    assert cold_start.conclude([figures(0.3, 0.5 + n, 0.8, 0.79) for n in noise]).verdict == "not supported"
    assert cold_start.conclude([figures(0.3 + n, 0.01, 0.9 + n, 0.79) for n in noise]).verdict == "not supported"
