"""Schedules at the marks of V3's run (V3 4.2), and what the other curves do."""

import pytest

from fathom.config import ScheduleConfig
from fathom.presets import preset
from fathom.train import schedule

V3 = preset("v3").pretrain
STEPS = 148_000  # a step of 100 M tokens, so that every mark of V3's is a whole step


@pytest.mark.parametrize(
    ("trillions", "rate"),
    [
        (1.0, 2.2e-4),
        (9.9999, 2.2e-4),
        (10.0, 2.2e-4),
        (12.15, 1.21e-4),  # the middle of the cosine: the mean of both ends
        (14.3, 2.2e-5),
        (14.5, 2.2e-5),
        (14.633, 7.3e-6),
        (14.7999, 7.3e-6),
        (14.8, 7.3e-6),
    ],
)
def test_learning_rate_of_v3(trillions: float, rate: float) -> None:
    assert 2.2e-4 * schedule.v3_decay(trillions) == pytest.approx(rate)
    step = round(trillions * 10_000)
    assert schedule.learning_rate(V3.schedule, 2.2e-4, step, STEPS) == pytest.approx(rate)


def test_warm_up_of_v3_is_linear_over_2000_steps() -> None:
    rates = [schedule.learning_rate(V3.schedule, 2.2e-4, step, STEPS) for step in (0, 999, 1999, 2000)]
    assert rates == pytest.approx([1.1e-7, 1.1e-4, 2.2e-4, 2.2e-4])


def test_batch_of_v3_grows_from_3072_to_15360_over_469_billion_tokens() -> None:
    rows = [schedule.batch_rows(V3.schedule, V3.batch_rows, step, STEPS) for step in (0, 2345, 4690, STEPS - 1)]
    assert rows == [3072, 9216, 15_360, 15_360]


def test_a_growing_batch_can_be_shared_out_at_every_step() -> None:
    ramp = ScheduleConfig(batch_ramp=1.0, batch_start=0.1)
    rows = [schedule.batch_rows(ramp, 8, step, 20, multiple=2) for step in range(21)]
    assert rows[0] == 2 and rows[-1] == 8
    assert all(count % 2 == 0 for count in rows)
    assert rows == sorted(rows)
    assert [schedule.batch_rows(ramp, 8, step, 20) for step in (0, 5, 19)] == [1, 3, 8]


def test_mtp_weight_and_bias_speed_of_v3_switch_at_10_and_14_3_trillion_tokens() -> None:
    weights = [schedule.mtp_weight(V3.schedule, step, STEPS) for step in (0, 99_999, 100_001, STEPS - 1)]
    assert weights == [0.3, 0.3, 0.1, 0.1]
    speeds = [schedule.bias_speed(V3.schedule, 1e-3, step, STEPS) for step in (0, 142_999, 143_001, STEPS - 1)]
    assert speeds == [1e-3, 1e-3, 0.0, 0.0]


@pytest.mark.parametrize(
    ("decay", "rates"),
    [
        ("constant", [0.25, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [0.25, 1.0, 1.0, 0.6, 0.28]),
        ("cosine", [0.25, 1.0, 1.0, 0.6, 0.2 + 0.8 * 0.0244717]),
    ],
)
def test_other_decays(decay: str, rates: list[float]) -> None:
    curve = ScheduleConfig(warmup_steps=4, decay=decay, decay_start=0.5, final_lr=0.2)  # pyright: ignore
    found = [schedule.learning_rate(curve, 1.0, step, 20) for step in (0, 4, 10, 15, 19)]
    assert found == pytest.approx(rates, rel=1e-5)


def test_decay_begins_when_the_warm_up_ends_if_that_is_later() -> None:
    curve = ScheduleConfig(warmup_steps=10, decay="linear", decay_start=0.0, final_lr=0.0)
    found = [schedule.learning_rate(curve, 1.0, step, 20) for step in (9, 10, 15)]
    assert found == pytest.approx([1.0, 1.0, 0.5])


def test_a_single_step_has_a_rate() -> None:
    assert schedule.learning_rate(ScheduleConfig(warmup_steps=0, decay="cosine"), 1.0, 0, 1) == 1.0
