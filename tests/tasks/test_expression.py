import pytest

from fathom.tasks.expression import Expression, Step, apply_step, join, number, read_steps, uses_up


def test_steps_stay_in_the_whole_numbers() -> None:
    assert apply_step(8, "+", 2) == 10
    assert apply_step(8, "*", 2) == 16
    assert apply_step(8, "-", 8) == 0
    assert apply_step(2, "-", 8) is None
    assert apply_step(8, "/", 2) == 4
    assert apply_step(8, "/", 3) is None
    assert apply_step(8, "/", 0) is None
    with pytest.raises(ValueError, match="none of"):
        apply_step(8, "**", 2)


def test_a_step_is_written_as_an_equation() -> None:
    assert str(Step(8, "+", 2, 10)) == "8+2=10"


def write(tree: object) -> Expression:
    if isinstance(tree, tuple):
        left, operator, right = tree
        return join(write(left), operator, write(right))
    assert isinstance(tree, int)
    return number(tree)


@pytest.mark.parametrize(
    ("tree", "text"),
    [
        (((8, "+", 4), "-", 2), "8+4-2"),
        ((10, "-", (8, "-", 4)), "10-8+4"),
        ((10, "-", (8, "+", 4)), "10-8-4"),
        ((20, "-", (9, "-", (5, "-", 2))), "20-9+5-2"),
        ((2, "*", (3, "*", 4)), "2*3*4"),
        ((8, "/", (4, "/", 2)), "8/4*2"),
        ((8, "/", (4, "*", 2)), "8/4/2"),
        ((2, "*", (3, "+", 4)), "2*(3+4)"),
        (((3, "+", 4), "*", 2), "(3+4)*2"),
        ((24, "/", (3, "+", 5)), "24/(3+5)"),
        ((3, "+", (4, "*", 5)), "3+4*5"),
        ((30, "-", (4, "*", (2, "+", 3))), "30-4*(2+3)"),
        (((9, "-", 3), "/", (4, "-", 2)), "(9-3)/(4-2)"),
        (((16, "/", 4), "*", (3, "-", 1)), "16/4*(3-1)"),
    ],
)
def test_only_a_sum_inside_a_product_is_bracketed(tree: object, text: str) -> None:
    assert str(write(tree)) == text


@pytest.mark.parametrize(
    "text", ["", "8+4", "8+4=13", "8-9=1", "7/2=3", "8+4=12,", "8+4=12;12-2=10", "8**4=12", "-1+9=8", "8+4=12,12-2=9"]
)
def test_what_is_no_chain_of_true_steps_reads_as_none(text: str) -> None:
    assert read_steps(text) is None


def test_a_chain_is_read_back() -> None:
    steps = [Step(8, "+", 4, 12), Step(12, "-", 2, 10)]
    assert read_steps(",".join(map(str, steps))) == steps


@pytest.mark.parametrize(
    ("chain", "numbers", "used"),
    [
        ("8+4=12,12-2=10", (8, 2, 4), True),
        ("8+4=12,12-2=10", (8, 2, 4, 1), False),  # a number is left
        ("8+4=12,8-2=6", (8, 2, 4), False),  # a number is taken twice
        ("8+4=12", (8, 4, 12), False),
        ("9+4=13,13-2=11", (8, 2, 4), False),  # a number that was not given
        ("8-2=6,9-1=8,8-6=2", (8, 2, 9, 1), True),  # two results taken up later
    ],
)
def test_a_chain_uses_every_number_and_result_once(chain: str, numbers: tuple[int, ...], used: bool) -> None:
    steps = read_steps(chain)
    assert steps is not None
    assert uses_up(steps, numbers) == used
