"""Sudoku of four by four: every row, column and quarter holds 1 to 4."""

import random
from functools import cache
from itertools import permutations

from fathom.config import TaskConfig
from fathom.tasks.drawn import Drawn
from fathom.tasks.task import Problem, draw_count, text_key

SIZE, BOX = 4, 2
Cells = tuple[int, ...]  # row by row, 0 where empty


def grid(config: TaskConfig) -> Drawn:
    """Grids with `numbers` empty cells and one solution."""
    return Drawn(config, draw, think, accepts)


def draw(rng: random.Random, config: TaskConfig) -> Problem | None:
    """`12.4/34../2.43/4321` with its answer written alike; None where the givens allow two grids."""
    full = rng.choice(all_grids())
    empty = set(rng.sample(range(SIZE * SIZE), draw_count(rng, config)))
    cells = tuple(0 if place in empty else digit for place, digit in enumerate(full))
    if len(solutions(cells)) != 1:
        return None
    return Problem(f"fill {render(cells)}", text_key(render(relabelled(cells))), (), 0, render(full))


def relabelled(cells: Cells) -> Cells:
    """The digits renamed in the order in which they appear: another naming is the same puzzle."""
    names: dict[int, int] = {0: 0}
    return tuple(names.setdefault(digit, len(names)) for digit in cells)


def options(cells: Cells, place: int) -> list[int]:
    """The digits that no row, column or quarter of an empty cell forbids."""
    row, column = divmod(place, SIZE)
    seen = set[int]()
    for other, digit in enumerate(cells):
        r, c = divmod(other, SIZE)
        if r == row or c == column or (r // BOX, c // BOX) == (row // BOX, column // BOX):
            seen.add(digit)
    return [digit for digit in range(1, SIZE + 1) if digit not in seen]


def solutions(cells: Cells, limit: int = 2) -> list[Cells]:
    """Up to `limit` full grids that keep the givens."""
    if 0 not in cells:
        return [cells]
    place = cells.index(0)
    found: list[Cells] = []
    for digit in options(cells, place):
        found += solutions((*cells[:place], digit, *cells[place + 1 :]), limit - len(found))
        if len(found) >= limit:
            break
    return found


def render(cells: Cells) -> str:
    text = "".join(str(digit or ".") for digit in cells)
    return "/".join(text[at : at + SIZE] for at in range(0, len(text), SIZE))


def think(problem: Problem) -> str:
    """Cells that allow one digit only, `a3=4` for row a and column 3; where none does, the next one as known."""
    bare = (problem.bare or problem.question).removeprefix("fill ").replace("/", "")
    full = [int(digit) for digit in problem.answer.replace("/", "")]
    cells = tuple(0 if digit == "." else int(digit) for digit in bare)
    steps: list[str] = []
    while 0 in cells:
        empty = [place for place, digit in enumerate(cells) if not digit]
        place = next((p for p in empty if len(options(cells, p)) == 1), empty[0])
        cells = (*cells[:place], full[place], *cells[place + 1 :])
        steps.append(f"{'abcd'[place // SIZE]}{place % SIZE + 1}={full[place]}")
    return ",".join(steps)


def accepts(problem: Problem, answer: str) -> bool:
    """The full grid, rows parted by `/` or by line ends."""
    return answer.strip().replace("\n", "/").replace(" ", "") == problem.answer


@cache
def all_grids() -> tuple[Cells, ...]:
    """The 288 full grids."""
    rows = permutations(range(1, SIZE + 1))
    firsts = [solutions((*row, *[0] * (SIZE * SIZE - SIZE)), limit=1000) for row in rows]
    return tuple(full for grids in firsts for full in grids)
