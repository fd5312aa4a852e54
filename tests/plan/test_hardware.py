"""Devices by name, and the figures that other arithmetic leans on."""

import pytest

from fathom.plan.hardware import HARDWARE, hardware_named, parse_devices


def test_the_table_holds_what_people_rent_and_own() -> None:
    assert list(HARDWARE) == [
        *("a100", "h100", "h200", "h800", "b200", "gb200", "l40s", "rtx4090", "rtx5090", "laptop"),
    ]


@pytest.mark.parametrize("key", HARDWARE)
def test_every_device_names_its_source_and_has_figures_that_fit_together(key: str) -> None:
    device = HARDWARE[key]
    assert device.sources and hardware_named(device.name) is device
    assert device.fp8_flops in (0, pytest.approx(2 * device.bf16_flops, rel=0.02))
    assert device.peak_flops >= device.fp32_flops > 0
    assert device.memory_bytes > 0 and device.memory_bandwidth > device.nvlink_bandwidth
    assert device.watts > 0 and device.dollars_per_hour > 0


def test_the_published_h800() -> None:
    h800 = HARDWARE["h800"]
    assert h800.dollars_per_hour == 2  # V3 Table 1
    assert (h800.nvlink_bandwidth, h800.network_bandwidth) == (200e9, 50e9)  # ISCA'25 4
    assert h800.peak_flops / 1e12 == pytest.approx(989, abs=1)


def test_a_laptop_computes_in_fp32() -> None:
    assert HARDWARE["laptop"].peak_flops == HARDWARE["laptop"].fp32_flops


@pytest.mark.parametrize(
    ("text", "count", "key"),
    [("2xH200", 2, "h200"), ("2048 x h800", 2048, "h800"), ("laptop", 1, "laptop"), ("4\u00d7RTX 4090", 4, "rtx4090")],
)
def test_devices_as_people_write_them(text: str, count: int, key: str) -> None:
    devices = parse_devices(text)
    assert (devices.count, devices.hardware) == (count, HARDWARE[key])


def test_devices_read_back() -> None:
    assert str(parse_devices("2048xH800")) == "2,048 \u00d7 H800"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("2xH20", "did you mean h200"),
        ("0xH100", "no devices"),
        ("", "no devices"),
        ("abacus", "there are"),
    ],
)
def test_what_is_no_device_is_refused(text: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        parse_devices(text)
