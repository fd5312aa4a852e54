"""Flags of a plan as people write them."""

from pathlib import Path

import pytest

from fathom.plan.question import Question, parse_times, parse_tokens
from fathom.plan.timeline import Times


@pytest.mark.parametrize(
    ("text", "tokens"),
    [("10B", 1e10), ("14.8T", 14.8e12), (".5m", 5e5), ("300_000", 3e5), ("2 k", 2e3), ("1e9", 1e9), ("1.5E3m", 1.5e9)],
)
def test_tokens(text: str, tokens: float) -> None:
    assert parse_tokens(text) == pytest.approx(tokens)


@pytest.mark.parametrize("text", ["", "0B", "ten", "10X", "-3B", "_", "1e-9", "1e999", "e9"])
def test_what_is_no_number_of_tokens(text: str) -> None:
    with pytest.raises(ValueError, match="no number of tokens"):
        parse_tokens(text)


def test_times() -> None:
    assert parse_times("1, 2,1") == Times(F=1, B=2, W=1)
    assert parse_times("1,1,1,2.5").overlapped == 2.5
    for text in ("1,1", "1,1,1,1,1", "1,0,1", "a,b,c"):
        with pytest.raises(ValueError, match="write 1,1,1"):
            parse_times(text)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ({"tokens": "10B", "budget": 30.0}, "--tokens and --budget exclude each other"),
        ({"budget": -1.0}, "--budget -1.0 is no amount"),
        ({"budget": float("inf")}, "--budget inf is no amount"),
        ({"hours": float("nan")}, "--hours nan is no amount"),
        ({"budget": 3.0, "price": 0.0}, "--budget buys any time at --price 0"),
        ({"compare": Path("run"), "html": Path("page.html")}, "leave --html and --schedule away"),
        ({"mfu": 40.0}, "no share of the peak"),
        ({"acceptance": 85.0}, "no share"),
        ({"context": -1}, "--context -1 is no amount"),
    ],
)
def test_flags_that_make_no_sense(flags: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Question(**flags)  # type: ignore[arg-type]
