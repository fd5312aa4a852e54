import pytest

from fathom.tasks.expression import Expression, Step, apply_step, join, number


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
