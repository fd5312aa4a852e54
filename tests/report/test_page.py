"""The page shows what the run recorded, fetches nothing and executes nothing that a model wrote."""

import re
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from fathom.config import Config
from fathom.plan.count import main_parameters
from fathom.plan.measured import Note, to_record
from fathom.report import units
from fathom.report.page import write
from fathom.report.units import MISSING, SPACE, TIMES
from fathom.runs import Run

MakeRun = Callable[..., Run]
ASCII = str.maketrans({SPACE: " ", MISSING: "-", TIMES: "x"})  # as one can type it
VOID = {"meta", "br", "img", "link", "input", "hr"}


def plain(text: str) -> str:
    return text.translate(ASCII)


class Page(HTMLParser):
    """The text of each section, every attribute, and whether tags close in order."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sections: dict[str, str] = {}
        self.section = "header"
        self.attributes: list[tuple[str, str, str]] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag == "section":
            self.section = dict(attrs)["id"] or ""
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & set(self.open):
            known = self.sections.get(self.section, "")
            self.sections[self.section] = " ".join(plain(f"{known} {data}").split())


def test_figures_shown_are_the_figures_recorded(report: Path) -> None:
    page = Page(report)
    assert page.open == []
    assert list(page.sections) == [
        *("header", "result", "training", "reinforcement", "transcripts"),
        *("experts", "processes", "mtp", "limits", "cost", "ledger"),
    ]
    result, cost, ledger = (page.sections[name] for name in ("result", "cost", "ledger"))
    assert "On 500 held-out problems its sampled accuracy went from 26.3 % to 83.0 %" in page.sections["header"]
    assert "After GRPO 83.0 % 95 % interval 80.5-85.2 greedy 87.0 %, 83.8-89.7" in result
    assert "Random legal play 37.1 % 95 % interval 34.2-40.1 1.4 tries a problem" in result
    assert "SFT alone, same compute, greedy 60.4 % 56.0 % 64.6 %" in result
    assert "Time 3 min 57 s Price $0.0064 at $0.10 an hour Operations 6.0 x 10¹² Peak memory 1.25 GiB" in cost
    assert "GRPO 1 min 44 s 60 1,234,567 11,842 2.0 x 10¹² 1.25 GiB $0.0029" in cost
    assert "Example CPU, 2 cores, 23.5 GiB of memory, Python 3.11.9, Linux" in cost
    assert "Pretraining 0 dddddddddd aaaaaaaaaa cccccccccc-dirty loss 1.500" in ledger
    assert "Speculative check 0 - - - equal text" in ledger
    assert "all 64 greedy answers are the same, token for token" in page.sections["mtp"]
    assert "plain 1.00 4,000 MTP drafts 1.71 3,600" in page.sections["mtp"]
    last = Run(report.parent).read_metrics("grpo")[-1]
    assert f"60 {last['accuracy']:.4g} {last['reward']:.4g} 0.97" in page.sections["reinforcement"]


def test_nothing_is_fetched(report: Path) -> None:
    for tag, name, value in Page(report).attributes:
        if name in {"src", "href", "xlink:href", "srcset", "data", "action", "poster"}:
            assert value.startswith("#"), (tag, name, value)
        assert not re.search(r"url\((?!#)", value)
    styles = re.findall(r"<style>(.*?)</style>", report.read_text(), re.DOTALL)
    assert len(styles) == 1 and "url(" not in styles[0] and "@import" not in styles[0]


def test_ids_are_unique(report: Path) -> None:
    ids = [value for _, name, value in Page(report).attributes if name == "id"]
    assert len(ids) == len(set(ids))


def test_every_chart_has_a_name_and_a_table(report: Path) -> None:
    charts = re.findall(r'<figure class="chart">.*?</figure>', report.read_text(), re.DOTALL)
    assert len(charts) == 13
    for chart in charts:
        title = re.search(r'role="img" aria-labelledby="([^"]+)"><title id="\1">([^<]+)</title>', chart)
        assert title and f"<h3>{title.group(2)}</h3>" in chart
        assert "<table>" in chart and '<th scope="col">' in chart


def test_what_a_model_wrote_is_text(report: Path) -> None:
    text = report.read_text()
    assert "<img" not in text and "<b>20" not in text
    assert "&lt;img src=x onerror=alert(1)&gt; 13+7=20" in text
    transcripts = Page(report).sections["transcripts"]
    assert "problem 8,2,4:10 Before GRPO thinking 8+2=10,10-4=6;8-2=6,6+4=10 answer 8-2+4 ✓ verified" in transcripts
    assert "answer - ✗ wrong The reply as written" in transcripts


def rising(step: int) -> float:
    return 0.3 + 0.5 * step / 60


def falling(step: int) -> float:
    return 0.7 - 0.5 * step / 60


def flat(step: int) -> float:
    return 0.3


@pytest.mark.parametrize(
    ("curve", "accuracy", "length"),
    [
        (rising, "the accuracy of sampled answers rose from 32.", "Answers got longer"),
        (falling, "the accuracy of sampled answers fell from 67.", "does not show a model that thinks longer"),
        (flat, "The accuracy curve of GRPO is flat: from 29.9 % (mean of the first 6 steps) to 30.0 %", "measurably"),
    ],
)
def test_curves_are_called_what_they_are(
    make_run: MakeRun, curve: Callable[[int], float], accuracy: str, length: str
) -> None:
    sections = Page(write(make_run(accuracy=curve, length=curve))).sections
    for name in ("reinforcement", "limits"):
        assert accuracy in sections[name] and length in sections[name]


def test_missing_stages_leave_their_sections_out(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    run.write_config(Config())
    run.append_metrics("pretrain", 1, loss_main=7.0)
    run.append_metrics("pretrain", 2, loss_main=6.0)
    page = Page(write(run))
    assert list(page.sections) == ["header", "training", "limits"]
    size, active = (plain(units.size(main_parameters(Config().model, active=active))) for active in (False, True))
    lead = f"trained a language model of {size} parameters ({active} of them used for a token): pretraining."
    assert lead in page.sections["header"]
    assert "not evaluated on held-out problems" in page.sections["header"]
    assert "What the model can solve was not measured" in page.sections["limits"]


def test_a_ledger_line_may_lack_anything(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    run.write_config(Config())
    run.append_metrics("pretrain", 1, loss_main=7.0)
    run.append_ledger("tokenizer")
    assert "Tokenizer - - - - - - -" in Page(write(run)).sections["cost"]


def test_a_stage_done_anew_counts_once(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    run.write_config(Config())
    run.append_metrics("pretrain", 1, loss_main=7.0)
    for seconds in (30.0, 40.0):
        run.append_ledger("pretrain", seconds=seconds, dollars=0.25)
    sections = Page(write(run)).sections
    assert "Time 40.0 s Price $0.25" in sections["cost"]
    assert sections["ledger"].count("Pretraining") == 2


def test_a_run_without_metrics_is_refused(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    with pytest.raises(ValueError, match="holds no metrics to report; train a stage there first"):
        write(run)
    assert not run.path.exists()


def test_the_same_run_makes_the_same_page(report: Path) -> None:
    first = report.read_bytes()
    assert write(Run(report.parent)) == report
    assert report.read_bytes() == first


def test_the_report_needs_no_torch() -> None:
    check = "import sys, fathom.report.page; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], cwd=Path(__file__).parents[2]).returncode == 0


def test_a_measured_pipeline_stands_above_the_planners(make_run: MakeRun) -> None:
    run = make_run()
    for step, late in ((2, 0.5), (7, 1.0)):
        notes = [
            [Note("F", rank, m, rank + 2 * m, rank + 2 * m + 1) for m in (0, 1)]
            + [Note("BW", rank, m, 5 + late - rank + 2 * m, 6 + late - rank + 2 * m) for m in (0, 1)]
            for rank in (0, 1)
        ]
        run.append_pipeline("pretrain", step, to_record("1f1b", 2, notes))
    page = Page(write(run))
    text = page.sections["pipeline"]
    assert "Step 7 of Pretraining, 1f1b" in text and "Step 2" not in text
    assert text.count("rank 1") >= 2  # in both charts
    idle = [1 - 4 / 9 for _ in (0, 1)]
    assert f"{100 * sum(idle) / 2:.1f} % of the processes' time was idle" in text
