"""The verb from its words to what it prints, keeps and refuses."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fathom.chain.planning import config_of
from fathom.cli import main
from fathom.config.published import to_published
from fathom.presets import preset
from fathom.runs import Run


def planned(capsys: pytest.CaptureFixture[str], *flags: str) -> dict:
    assert main(["plan", *flags, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_v3_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    found = planned(capsys, "--preset", "v3")
    assert found["cost"]["total"]["dollars"] == pytest.approx(5.576e6)
    assert found["model"]["total"] == 671_026_419_200


def test_fields_of_the_config_are_flags(capsys: pytest.CaptureFixture[str]) -> None:
    found = planned(capsys, "--preset", "v3", "--model.num_hidden_layers", "60", "--gpus", "2048xH800", "--mfu", "0.4")
    assert found["model"]["total"] == 671_026_419_200 - 187_107_328 - 11_320_164_608 - 2 * 7168
    assert found["published"] == []


def test_text_in_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan"]) == 0
    out = capsys.readouterr().out
    assert "laptop" in out and "Where the parameters are" in out and "Not in that sum" in out


def test_a_pipeline(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--schedule", "dualpipe", "--ranks", "8", "--micro_batches", "20", "--times", "1,1,1"]
    assert main(["plan", *flags]) == 0
    assert "rank 7" in capsys.readouterr().out


def test_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "plan.html"
    assert main(["plan", "--preset", "v3", "--html", str(page)]) == 0
    assert str(page) in capsys.readouterr().out.replace("\n", "")
    assert "671" in page.read_text(encoding="utf-8")


def test_a_published_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = tmp_path / "Moonlight-16B-A3B"
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(to_published(preset("moonlight").model)))
    for path in (directory, directory / "config.json"):
        found = planned(capsys, "--model", str(path), "--gpus", "8xH200", "--mfu", "0.2")
        assert (found["model"]["name"], found["model"]["total"]) == ("Moonlight-16B-A3B", 15_960_110_208)
    assert main(["plan", "--model", str(directory), "--preset", "v3"]) == 2
    assert "exclude each other" in capsys.readouterr().err


def test_a_run_is_predicted_and_then_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Run(tmp_path / "run")
    assert main(["plan", "--out", str(run.path)]) == 0
    assert f"--out {run.path}" in capsys.readouterr().out.replace("\n", "")
    assert main(["plan", "--compare", str(run.path)]) == 2
    assert "planned and not yet begun" in capsys.readouterr().err
    run.write_config(preset("laptop"))
    for step in range(1, 11):
        run.append_metrics("pretrain", step, tokens=1024, tokens_per_s=10_000.0, seconds=0.1, mfu=0.2)
    run.append_ledger("pretrain", seconds=1.0, peak_memory_gib=1.0, processes=1, dollars=0.01)
    capsys.readouterr()
    assert main(["plan", "--compare", str(run.path)]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "pretrain: predicted and measured" in out and "tokens per s" in out and "10,000" in out
    figures = {figure["name"]: figure for figure in planned(capsys, "--compare", str(run.path))["pretrain"]}
    assert figures["tokens_per_s"]["measured"] == 10_000
    assert figures["tokens_per_s"]["error"] == pytest.approx(figures["tokens_per_s"]["predicted"] / 10_000 - 1)
    assert config_of(run.path) == preset("laptop")


def test_a_config_that_is_no_presets_is_kept_for_its_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--preset", "small", "--model.num_hidden_layers", "4", "--gpus", "2xH200"]
    assert planned(capsys, *flags)["command"].endswith("--out RUN")
    run = Run(tmp_path / "run")
    found = planned(capsys, *flags, "--out", str(run.path))["command"]
    assert "--preset" not in found and found.endswith(f"--out {run.path}")
    assert run.config.model.num_hidden_layers == 4
    assert main(["plan", *flags, "--seed", "3", "--out", str(run.path)]) == 2
    assert "holds another config" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--gpus", "2xH20"], "did you mean h200"),
        (["--budget", "30", "--hours", "2"], "exclude each other"),
        (["--tokens", "many"], "no number of tokens"),
        (["--model", "nowhere/config.json"], "does not exist"),
        (["--preset", "small", "--gpus", "2xH200", "--layout.data", "3"], "the layout takes 3 devices"),
        (["--preset", "v3", "--out", "nowhere"], "nothing to predict"),
        (["--schedule", "dualpipe", "--ranks", "7"], "even"),
    ],
)
def test_mistakes_are_named(flags: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *flags]) == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize("text", ["not json", "[1, 2]"])
def test_a_file_that_is_no_config(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match="no JSON object"):
        config_of(tmp_path)


def test_a_plan_loads_nothing_slow() -> None:
    code = (
        "import sys; from fathom.cli import main; main(['plan', '--preset', 'v3']); "
        "slow = {'torch', 'numpy', 'matplotlib', 'jinja2', 'pyarrow'} & set(sys.modules); assert not slow, slow"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
