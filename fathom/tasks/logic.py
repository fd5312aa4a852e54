"""Knights, who say only what is true, and knaves, who say only what is false."""

import random
from collections.abc import Sequence
from itertools import permutations, product

from fathom.config import TaskConfig
from fathom.tasks.drawn import Drawn, is_listed
from fathom.tasks.task import Problem, draw_count, text_key

NAMES = "ABCDE"
Claim = tuple[int, str, int]  # speaker, what the other is said to be, the other; "same" compares with the speaker


def logic(config: TaskConfig) -> Drawn:
    """`numbers` people, one claim of each about another; exactly one reading fits."""
    return Drawn(config, draw, think, is_listed)


def draw(rng: random.Random, config: TaskConfig) -> Problem | None:
    """`A: B is a knave. B: A and B are the same.`, whose answer is `A knight,B knave`; None without one solution."""
    people = draw_count(rng, config)
    others = [[other for other in range(people) if other != speaker] for speaker in range(people)]
    claims = [
        (speaker, rng.choice(("knight", "knave", "same")), rng.choice(others[speaker])) for speaker in range(people)
    ]
    fits = solutions(claims)
    if len(fits) != 1:
        return None
    kinds = ",".join(f"{NAMES[k]} {'knight' if honest else 'knave'}" for k, honest in enumerate(fits[0]))
    return Problem(render(claims), text_key(canonical_claims(claims)), (), 0, kinds)


def solutions(claims: Sequence[Claim]) -> list[tuple[bool, ...]]:
    """Who may be a knight, for every reading in which the knights' claims hold and the knaves' do not."""
    readings = product((True, False), repeat=len(claims))
    return [honest for honest in readings if all(honest[c[0]] == is_true(c, honest) for c in claims)]


def is_true(claim: Claim, honest: Sequence[bool]) -> bool:
    speaker, kind, other = claim
    return honest[speaker] == honest[other] if kind == "same" else honest[other] == (kind == "knight")


def canonical_claims(claims: Sequence[Claim]) -> str:
    """The claims under the naming of the people that comes first in the alphabet: other names, same puzzle."""
    namings = permutations(range(len(claims)))
    return min(render(sorted((to[a], kind, to[b]) for a, kind, b in claims)) for to in namings)


def render(claims: Sequence[Claim]) -> str:
    said = [
        f"{NAMES[a]}: {NAMES[a]} and {NAMES[b]} are the same"
        if kind == "same"
        else f"{NAMES[a]}: {NAMES[b]} is a {kind}"
        for a, kind, b in claims
    ]
    return ". ".join(said) + "."


def think(problem: Problem) -> str:
    """Every reading in turn with the first claim that breaks it, up to the one that none does."""
    claims = [_read(said) for said in (problem.bare or problem.question).rstrip(".").split(". ")]
    tries: list[str] = []
    for honest in product((True, False), repeat=len(claims)):
        kinds = ",".join(f"{NAMES[k]} {'knight' if h else 'knave'}" for k, h in enumerate(honest))
        broken = next((c for c in claims if honest[c[0]] != is_true(c, honest)), None)
        if broken is None:
            return ";".join([*tries, f"{kinds}: fits"])
        tries.append(f"{kinds}: {NAMES[broken[0]]} no")
    raise ValueError(f"question {problem.question!r} has no reading that fits")


def _read(said: str) -> Claim:
    speaker = NAMES.index(said[0])
    if said.endswith("are the same"):
        return speaker, "same", NAMES.index(said.split(" ")[3])
    return speaker, said.rsplit(" ", 1)[1], NAMES.index(said[3])
