"""Layouts that cannot be are refused with the rule and the nearest one that can."""

import re
from dataclasses import replace

import pytest

from fathom.plan.hardware import parse_devices
from fathom.plan.layout import Layout, check
from fathom.presets import preset

V3 = preset("v3").model
MOONLIGHT = preset("moonlight").model


def test_the_layout_of_v3_is_possible() -> None:
    layout = Layout(shard=128, expert=64, pipeline=16, schedule="dualpipe", micro_batches=120, precision="fp8")
    assert (layout.devices, layout.rows, layout.chunks) == (2048, 15_360, 16)
    assert layout.chunks_of(3) == [3, 12]
    check(layout, V3, parse_devices("2048xH800"), rows=15_360, seq_len=4096)


def test_v_schedules_cut_twice_as_often() -> None:
    layout = Layout(pipeline=4, schedule="dualpipev", micro_batches=8)
    assert (layout.chunks, layout.chunks_of(1)) == (8, [1, 6])
    assert replace(layout, schedule="1f1b").chunks_of(1) == [1]


@pytest.mark.parametrize(
    ("layout", "devices", "rows", "message"),
    [
        (Layout(data=2), "3xH200", 2, "takes 2 devices .*but there are 3; choose data=3"),
        (Layout(shard=4), "6xH200", 4, "a number of devices that 4 divides, the nearest is 8"),
        (Layout(shard=8, expert=5), "8xH200", 8, "expert=5 must divide the 64 routed experts and the 8 .*expert=4"),
        (Layout(data=2, expert=4), "2xH200", 2, "expert=4 must divide .*the 2 devices.*expert=2"),
        (Layout(pipeline=32, micro_batches=32), "32xH200", 32, "into 32 pieces .* has 27; choose pipeline=27"),
        (
            Layout(pipeline=16, schedule="dualpipev", micro_batches=32),
            "16xH200",
            32,
            "into 32 pieces .* has 27; choose pipeline=13",
        ),
        (Layout(pipeline=4, micro_batches=2), "4xH200", 2, "at least 4 micro-batches .*choose 4"),
        (Layout(pipeline=4, schedule="dualpipe", micro_batches=9), "4xH200", 9, "an even number of micro-batches"),
        (Layout(context=3), "3xH200", 1, "seq_len=4096 does not divide so; choose context=2"),
        (Layout(data=4), "4xH200", 12, "a step of 12 rows .* = 4; choose micro_batches=3"),
        (Layout(data=4), "4xH200", 13, "a step of 13 rows .* = 4; the nearest is 12 rows, micro_batches=3"),
        (Layout(precision="fp8"), "1xA100", 1, "A100 has no units for precision=fp8; choose bf16"),
    ],
)
def test_what_cannot_be(layout: Layout, devices: str, rows: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check(layout, MOONLIGHT, parse_devices(devices), rows, 4096)


def test_advice_is_valid() -> None:
    """Following the advice until nothing is refused ends in a possible layout."""
    layout, devices = Layout(shard=8, expert=6, micro_batches=3), parse_devices("16xH200")
    for _ in range(5):
        try:
            check(layout, MOONLIGHT, devices, 64, 4096)
        except ValueError as error:
            name, value = re.findall(r"choose (\w+)=(\d+)", str(error))[-1]
            layout = replace(layout, **{name: int(value)})
    check(layout, MOONLIGHT, devices, 64, 4096)
    assert layout == Layout(data=2, shard=8, expert=4, micro_batches=4)  # 6 lies as near to 8, the smaller is taken


def test_experts_need_experts() -> None:
    with pytest.raises(ValueError, match="the model has none; choose expert=1"):
        check(Layout(data=2, expert=2), preset("llama-3.2-1b").model, parse_devices("2xH200"), 2, 4096)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"data": 0}, "layout.data=0 is not above zero"),
        ({"zero": 2}, "none of 0, 1, 3"),
        ({"schedule": "gpipe"}, "choose one of 1f1b"),
        ({"shard": 4, "zero": 0}, "choose zero=1, or data=4 with shard=1"),
    ],
)
def test_fields_are_checked_where_they_are_born(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Layout(**fields)  # pyright: ignore[reportArgumentType]
