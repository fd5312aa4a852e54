"""Devices that suit a model, and the layout that a plan takes."""

from dataclasses import replace

import pytest

from fathom.plan.cost import ORDINARY_MFU, v3_mfu
from fathom.plan.layout import Layout
from fathom.plan.question import Question
from fathom.plan.spread import V3_LAYOUT, choose_devices, spread_over
from fathom.presets import preset


@pytest.mark.parametrize(
    ("name", "devices"),
    [("laptop", "1 laptop"), ("v3", "2048 H800"), ("small", "8 H200"), ("llama-3.1-405b", "64 H200")],
)
def test_devices_suit_the_model(name: str, devices: str) -> None:
    chosen = choose_devices(preset(name), Question())
    assert f"{chosen.count} {chosen.hardware.name}" == devices


def test_devices_and_prices_can_be_given() -> None:
    chosen = choose_devices(preset("v3"), Question(gpus="2xH200", price=1.5))
    assert (chosen.count, chosen.hardware.name, chosen.hardware.dollars_per_hour) == (2, "H200", 1.5)
    mine = choose_devices(preset("small"), Question(gpus="rtx4090", price=0.0))
    assert mine.hardware.dollars_per_hour == 0
    machine = replace(preset("v3"), dollars_per_hour=5.0)
    assert choose_devices(machine, Question(gpus="2xH200")).hardware.dollars_per_hour == 2.5


def test_a_step_is_computed_in_the_precision_of_the_config() -> None:
    for dtype, precision in (("auto", "bf16"), ("float32", "fp32")):
        small, question = replace(preset("small"), dtype=dtype), Question(gpus="h200")
        spread = spread_over(small, question, choose_devices(small, question))
        assert {found.layout.precision for found in spread.found} == {precision}


def test_v3_is_spread_as_its_authors_spread_it() -> None:
    v3 = preset("v3")
    spread = spread_over(v3, Question(), choose_devices(v3, Question()))
    assert [found.layout for found in spread.found] == [V3_LAYOUT]
    assert V3_LAYOUT.devices == 2048 and V3_LAYOUT.rows == 15_360
    assert spread.mfu == v3_mfu()
    assert spread.found[0].throughput.step_seconds == pytest.approx(19.926, rel=2e-3)  # ISCA'25 Table 4


def test_a_layout_is_searched_for() -> None:
    small, question = preset("small"), Question(gpus="2xh200")
    spread = spread_over(small, question, choose_devices(small, question))
    assert all(found.layout.devices == 2 for found in spread.found)
    assert spread.mfu == spread.found[0].throughput.mfu and "predicted" in spread.mfu_source


def test_a_given_layout_and_a_given_share_are_taken() -> None:
    small = preset("small")
    question = Question(gpus="2xh200", mfu=0.25, layout=Layout(data=2, micro_batches=16, micro_batch_rows=16))
    spread = spread_over(small, question, choose_devices(small, question))
    assert [found.layout for found in spread.found] == [question.layout]
    assert (spread.mfu, spread.found[0].throughput.mfu, spread.mfu_source) == (0.25, 0.25, "given")


def test_an_impossible_layout_is_refused() -> None:
    small, question = preset("small"), Question(gpus="2xh200", layout=Layout(data=3))
    with pytest.raises(ValueError, match="the layout takes 3 devices"):
        spread_over(small, question, choose_devices(small, question))


def test_a_model_that_nothing_holds_keeps_its_reason() -> None:
    v3, question = preset("v3"), Question(gpus="8xH100")
    spread = spread_over(v3, question, choose_devices(v3, question))
    assert spread.found == [] and "no layout of 8" in spread.problem and spread.mfu == ORDINARY_MFU
