"""Generators of reasoning-gym (extra rl), whose scorers run in a child: several of them execute an answer as code.

Seeds are drawn at random over 31 bits: items of neighbouring seeds of the library are copies of one another.
"""

import json
import random
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from fathom.config import TaskConfig
from fathom.tasks.child import ask
from fathom.tasks.task import Problem, draw_from_split, render_worked, text_key, worded

# what their scorers pay for nonsense, or not even for the answer that they store
REFUSED = {
    "game_of_life_halting": "pays any text in full",
    "complex_arithmetic": "pays the answer nan in full",
    "boxnet": "stores no answer",
    "graph_color": "stores no answer that it pays",
    "rubiks_cube": "stores no answer",
    "rush_hour": "stores no answer",
    "propositional_logic": "stores no answer and pays gibberish",
}
MEMORY = 4 << 30  # the library imports matplotlib and sympy

_MODULE = """
import reasoning_gym

def answer(asked):
    score = reasoning_gym.get_score_answer_fn(asked["name"])
    return float(score(asked["answer"], asked["entry"]))
"""


@dataclass(frozen=True)
class Gym:
    """One generator of the library under one config."""

    config: TaskConfig
    library: Any

    def sample(self, rng: random.Random, held_out: bool) -> Problem:
        """Draw items until the split fits; the question alone is the key."""
        problem = draw_from_split(lambda: self._draw(rng), held_out, self.config.held_out_share)
        return worded(problem, self.config.prompt)

    def worked(self, problem: Problem, rng: random.Random) -> str:
        """The stored answer, without thinking: the library shows none."""
        return render_worked("", problem.answer)

    def soundness(self, problem: Problem, thinking: str) -> float:
        """0: nothing here says what a sound try is."""
        return 0.0

    def grade(self, problem: Problem, answer: str) -> float:
        """1 for the stored answer or another that the library pays in full; it pays shares for form, we do not."""
        if answer.strip(" ") == problem.answer:
            return 1.0
        asked = {"name": self.config.name, "answer": answer, "entry": json.loads(problem.truth)}
        return float(ask(_MODULE, asked, self.config, packages=True, memory_bytes=MEMORY) >= 1.0)

    def _draw(self, rng: random.Random) -> Problem:
        (item,) = self.library.create_dataset(self.config.name, size=1, seed=rng.getrandbits(31))
        entry = json.dumps(item, default=str)
        return Problem(item["question"], text_key(item["question"]), answer=str(item["answer"]), truth=entry)


def gym(config: TaskConfig) -> Gym:
    """The generator `config.name`. Raises ValueError where the package or the generator is missing or refused."""
    if config.name in REFUSED:
        raise ValueError(f"task.name={config.name!r} cannot be trained on: its scorer {REFUSED[config.name]}")
    if find_spec("reasoning_gym") is None:
        raise ValueError("task.kind=gym needs the package reasoning-gym; pip install 'fathomlm[rl]'")
    library = import_module("reasoning_gym")
    if config.name not in import_module("reasoning_gym.factory").DATASETS:
        raise ValueError(f"task.name={config.name!r} is no generator of reasoning-gym; chain_sum is one")
    return Gym(config, library)
