"""Numbers read as a person would write them."""

import pytest

from fathom.report import units
from fathom.report.units import MISSING, SPACE, TIMES

ASCII = str.maketrans({SPACE: " ", MISSING: "-", TIMES: "x"})  # as one can type it


def plain(text: str) -> str:
    return text.translate(ASCII)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"),
        (0.04, "0.0 s"),
        (59.94, "59.9 s"),
        (62.5, "1 min 02 s"),
        (3599, "59 min 59 s"),
        (7500, "2 h 05 min"),
    ],
)
def test_duration(seconds: float | None, text: str) -> None:
    assert plain(units.duration(seconds)) == text


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        (None, "-"),
        (0.0, "$0.00"),
        (0.00064, "$0.00064"),
        (0.0123, "$0.012"),
        (0.1, "$0.10"),
        (5_576_000, "$5,576,000.00"),
    ],
)
def test_dollars(amount: float | None, text: str) -> None:
    assert plain(units.dollars(amount)) == text


@pytest.mark.parametrize(
    ("amount", "text"), [(None, "-"), (0, "-"), (3.28e24, "3.3 x 10²⁴"), (9.99e12, "1.0 x 10¹³"), (7.0, "7.0 x 10⁰")]
)
def test_power_of_ten(amount: float | None, text: str) -> None:
    assert plain(units.power_of_ten(amount)) == text


@pytest.mark.parametrize(
    ("parameters", "text"),
    [(7, "7.00"), (266_384, "266 k"), (999_600, "1.00 M"), (16.9e6, "16.9 M"), (671e9, "671 B"), (1.04e12, "1.04 T")],
)
def test_size(parameters: float, text: str) -> None:
    assert plain(units.size(parameters)) == text


def test_shares_and_sizes() -> None:
    assert plain(units.percent(0.8304)) == "83.0 %"
    assert plain(units.points(-0.1)) == "10.0 points"
    assert units.count(1234567.0) == "1,234,567"
    assert plain(units.gibibytes(1.25)) == "1.25 GiB"
    assert (units.count(None), units.gibibytes(None)) == (MISSING, MISSING)
