"""The card of the objectives: the published ones on as many answers, a verdict that can go each way."""

from fathom.config.objectives import OBJECTIVES
from fathom.unlocks import grpo_variants
from fathom.unlocks.experiment import Figures
from fathom.unlocks.grpo_variants import DAPO, GRPO, NAMED, PPO


def test_every_variant_is_a_published_objective_on_as_many_answers() -> None:
    for size in ("toy", "cpu", "gpu"):
        courses = grpo_variants.variants(size)
        assert {name: c.grpo.objective for name, c in courses.items()} == {n: OBJECTIVES[o] for n, o in NAMED.items()}
        laws = [course.grpo for course in courses.values()]
        assert len({law.steps * law.prompts * law.group for law in laws}) == 1
        assert {law.refill_rounds for law in laws} == {0}  # which would sample more
        assert {law.updates for law in laws} == {4} and courses[PPO].grpo.group == 1
        assert courses[PPO].grpo.critic.optimizer.lr == 10 * courses[PPO].grpo.optimizer.lr


def figures(**accuracies: float) -> Figures:
    def of(accuracy: float) -> Figures:
        return {"accuracy": accuracy, "length": 20.0, "curve": [(1, accuracy)]}

    scores = dict.fromkeys(NAMED, 0.6) | {GRPO: accuracies["grpo"], DAPO: accuracies["dapo"], PPO: accuracies["ppo"]}
    return {"base": of(0.1), **{name: of(accuracy) for name, accuracy in scores.items()}}


def test_grpo_must_not_need_the_critic_and_dapo_must_be_better() -> None:
    noise = (0.0, 0.01, 0.02)
    good = [figures(grpo=0.6 + n, dapo=0.7 + 2 * n, ppo=0.6) for n in noise]
    assert grpo_variants.conclude(good).verdict == "supported"
    assert grpo_variants.conclude(good[:1]).verdict == "inconclusive"
    assert grpo_variants.conclude([figures(grpo=0.6, dapo=0.5 + n, ppo=0.6) for n in noise]).verdict == "not supported"
    assert grpo_variants.conclude([figures(grpo=0.5, dapo=0.7, ppo=0.7 + n) for n in noise]).verdict == "not supported"
    flat = [figures(grpo=0.05 - n, dapo=0.2, ppo=0.05) for n in noise]
    assert grpo_variants.conclude(flat).verdict == "not supported"
