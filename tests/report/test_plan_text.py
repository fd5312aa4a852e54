"""What a person reads in the terminal."""

import io

import pytest
from rich.console import Console

from fathom.plan.prediction import Compared
from fathom.plan.question import Question
from fathom.plan.summary import make_plan
from fathom.presets import preset
from fathom.report.plan_text import clock, money, show_comparison, show_pipeline, show_plan, si


def console(width: int = 80) -> Console:
    return Console(file=io.StringIO(), width=width)


def text_of(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().replace("\N{NO-BREAK SPACE}", " ")


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize(
    ("name", "question"), [("v3", Question()), ("laptop", Question()), ("moonlight", Question(gpus="8xH200"))]
)
def test_every_number_is_whole_at_every_width(name: str, question: Question, width: int) -> None:
    out = console(width)
    show_plan(make_plan(preset(name), question), out)
    assert "\N{HORIZONTAL ELLIPSIS}" not in text_of(out)  # nothing is cut
    lines = text_of(out).splitlines()
    assert all(len(line) <= width for line in lines if "torchrun" not in line)


def test_the_bill_of_v3_says_what_it_leaves_out() -> None:
    out = console()
    show_plan(make_plan(preset("v3"), Question()), out)
    words = " ".join(text_of(out).split())
    assert "Cost on 2,048 \N{MULTIPLICATION SIGN} H800 at $2.00 an hour each" in words
    assert "total 56.7 days 2,788,000 $5,576,000" in words
    assert "Not in that sum: the lines below it; research, ablations and failed runs" in words
    assert "R1-Zero, R1's fine-tuning data, R1: as published" in words
    assert "671,026,419,200" in words and "70,272" in words and "250.5 GFLOP" in words


def test_what_does_not_fit_is_said() -> None:
    out = console()
    show_plan(make_plan(preset("v3"), Question(gpus="8xH100")), out)
    assert "no layout of 8" in text_of(out)


def test_the_command_is_one_line_to_copy() -> None:
    out = console()
    show_plan(make_plan(preset("small"), Question(gpus="2xH200", tokens="10B")), out)
    (line,) = (line for line in text_of(out).splitlines() if "torchrun" in line)
    assert "--pretrain.steps" in line


def test_a_pipeline_is_drawn_with_its_rivals(capsys: pytest.CaptureFixture[str]) -> None:
    out = console()
    show_pipeline(make_plan(preset("laptop"), Question(schedule="dualpipe"))["schedule"], out)
    drawn = capsys.readouterr().out
    assert drawn.count("rank ") >= 8 and "dualpipe, 8 ranks, 20 micro-batches" in drawn
    assert "1f1b 8 21" in " ".join(text_of(out).split())


def test_a_prediction_beside_its_measurement() -> None:
    out = console()
    show_comparison({"pretrain": [Compared(name="tokens_per_s", predicted=110.0, measured=100.0)]}, out)
    assert "tokens per s 110 100 +10.0%" in " ".join(text_of(out).split())


def test_units() -> None:
    assert [si(amount, "B") for amount in (12, 1536, 70_272, 688_574_839_360)] == [
        "12 B",
        "1.536 kB",
        "70.27 kB",
        "688.6 GB",
    ]
    assert si(999.96, "B") == "1 kB" and si(3.7e24, "FLOP").endswith("PFLOP")
    assert (clock(47), clock(1301)) == ("47\u00a0h 00\u00a0min", "54.2 days")
    assert (money(30), money(5_576_000)) == ("$30.00", "$5,576,000")
