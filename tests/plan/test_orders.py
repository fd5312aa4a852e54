"""The order of each rank, written out."""

from collections import Counter

import pytest

from fathom.plan.orders import dualpipe_order, dualpipe_v_order, one_forward_one_backward, zero_bubble
from fathom.plan.timeline import Step


def written(steps: list[Step]) -> str:
    return " ".join(
        f"{step.kind}{step.micro_batch}" + ("" if step.partner is None else f"&{step.partner}") for step in steps
    )


def test_1f1b_by_hand() -> None:
    assert written(one_forward_one_backward(3, 4, 0)) == "F0 F1 F2 BW0 F3 BW1 BW2 BW3"
    assert written(one_forward_one_backward(3, 4, 2)) == "F0 BW0 F1 BW1 F2 BW2 F3 BW3"


def test_zb1p_by_hand() -> None:
    assert written(zero_bubble(3, 4, 0)) == "F0 F1 F2 B0 W0 F3 B1 W1 B2 W2 B3 W3"
    assert written(zero_bubble(3, 4, 2)) == "F0 B0 F1 B1 F2 B2 W0 F3 B3 W1 W2 W3"


def test_dualpipe_by_hand() -> None:
    """Four ranks, eight micro-batches: 0-3 enter at rank 0, 4-7 at rank 3."""
    outer = "F0 F1 F2 F4 B4 W4 F5 FB3&5 FB6&0 BW6 FB7&1 BW7 B2 W2 B3 W3"
    inner = "F0 F4 F1 F5 F2 BW4 FB6&0 FB3&5 FB7&1 BW6 BW2 B7 B3 W7 W3"
    assert written(dualpipe_order(4, 8, 0)) == outer
    assert written(dualpipe_order(4, 8, 1)) == inner
    other_way = str.maketrans("01234567", "45670123")
    assert written(dualpipe_order(4, 8, 3)) == outer.translate(other_way)
    assert written(dualpipe_order(4, 8, 2)) == inner.translate(other_way)


@pytest.mark.parametrize(("ranks", "micro_batches"), [(8, 20), (4, 8), (16, 120)])
def test_the_eight_phases_of_dualpipe_have_the_published_lengths(ranks: int, micro_batches: int) -> None:
    half, n = ranks // 2, micro_batches // 2
    for rank in range(ranks):
        r = min(rank, ranks - 1 - rank)
        lengths = Counter(step.phase for step in dualpipe_order(ranks, micro_batches, rank))
        main = 2 * (n - ranks + r + 1) + (r == half - 1)  # the first pair of the middle ranks is not overlapped
        expected = [2 * (half - r - 1), 2 * (r + 1), 3 * (half - r - 1), main]
        expected += [2 * (half - r - 1), 2 * (r + 1), 2 * (half - r - 1), r + 1]
        assert [lengths[phase] for phase in range(1, 9)] == expected


def test_half_of_the_last_backwards_leave_their_weights_for_later() -> None:
    for rank in range(8):
        kinds = Counter(step.kind for step in dualpipe_order(8, 20, rank) if step.phase == 6)
        assert kinds["BW"] == kinds["B"] == min(rank, 7 - rank) + 1


def test_dualpipe_v_is_the_first_half_of_dualpipe_folded() -> None:
    for rank in range(4):
        folded, whole = dualpipe_v_order(4, 10, rank), dualpipe_order(8, 20, rank)
        assert [(step.kind, step.chunk, step.phase) for step in folded] == [
            (step.kind, step.chunk, step.phase) for step in whole
        ]
        assert [step.micro_batch for step in folded] == [step.micro_batch % 10 for step in whole]
