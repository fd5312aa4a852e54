"""Two passes that take turns."""

import pytest

from fathom.parallel.baton import Baton


def test_two_passes_take_turns_in_one_order_and_the_longer_one_ends_alone() -> None:
    baton, order = Baton(), []

    def steps(name: str, count: int) -> None:
        for step in range(count):
            order.append(f"{name}{step}")
            baton.pass_on()

    for _ in range(20):  # the helper thread is reused; a race would show in some turn
        order.clear()
        baton.together(lambda: steps("f", 2), lambda: steps("b", 4))
        assert order == ["f0", "b0", "f1", "b1", "b2", "b3"]
    steps("f", 1)  # nobody to pass to
    assert baton.pairs == 20


@pytest.mark.parametrize("failing", ["f", "b"])
def test_what_one_of_them_raises_is_raised_when_both_have_ended(failing: str) -> None:
    baton, ended = Baton(), []

    def work(name: str) -> None:
        baton.pass_on()
        if name == failing:
            raise ArithmeticError(name)
        baton.pass_on()
        ended.append(name)

    with pytest.raises(ArithmeticError, match=failing):
        baton.together(lambda: work("f"), lambda: work("b"))
    assert ended == (["b"] if failing == "f" else ["f"])
