"""A prediction beside what the run measured."""

import json
from pathlib import Path

import pytest

from fathom.plan.hardware import parse_devices
from fathom.plan.layout import Layout
from fathom.plan.memory import memory
from fathom.plan.prediction import compare, keep, prediction
from fathom.plan.throughput import throughput
from fathom.presets import preset
from fathom.runs import Record, Run


def _predicted(stage: str = "pretrain") -> Record:
    model, layout, devices = preset("small").model, Layout(data=2, micro_batch_rows=8), parse_devices("2xH200")
    speed = throughput(model, layout, devices, 4096)
    return prediction(layout, devices, memory(model, layout, 4096), speed, 1e9, stage)


def test_a_prediction_is_plain_values() -> None:
    predicted = _predicted()
    assert json.loads(json.dumps(predicted)) == predicted
    assert predicted["devices"] == "2xH200"
    assert predicted["hours"] == pytest.approx(1e9 / predicted["tokens_per_s"] / 3600)
    assert predicted["dollars"] == pytest.approx(predicted["hours"] * 2 * 3.0)
    of_one = memory(preset("small").model, Layout(data=2, micro_batch_rows=8), 4096)
    assert predicted["peak_memory_gib"] == pytest.approx(of_one.total / 2**30)


def test_a_finished_run_is_compared(tmp_path: Path) -> None:
    run, predicted = Run(tmp_path), _predicted()
    keep(run, predicted)
    for step in range(1, 11):
        speed = 1.0 if step == 1 else 100_000.0  # the first step is slow and does not count
        run.append_metrics("pretrain", step, tokens=65_536, tokens_per_s=speed, seconds=0.65536, mfu=0.15)
    run.append_ledger("pretrain", seconds=36.0, processes=2, peak_memory_gib=90.0, dollars=0.06)
    figures = {figure.name: figure for figure in compare(run)["pretrain"]}
    assert figures["tokens_per_s"].measured == 100_000
    assert figures["tokens_per_s"].error == pytest.approx(predicted["tokens_per_s"] / 100_000 - 1)
    assert figures["tokens"].measured == 655_360
    assert figures["peak_memory_gib"].measured == 45.0
    assert figures["hours"].measured == 0.01
    assert figures["dollars"].measured == 0.06
    assert figures["step_seconds"].measured == pytest.approx(0.65536)


def test_stages_are_kept_apart(tmp_path: Path) -> None:
    run = Run(tmp_path)
    keep(run, _predicted())
    keep(run, _predicted("sft"))
    run.append_metrics("sft", 1, tokens=10, tokens_per_s=5.0, seconds=2.0)
    assert list(compare(run)) == ["sft"]
    assert {figure.name for figure in compare(run)["sft"]} == {"tokens", "tokens_per_s", "step_seconds"}


def test_nothing_to_compare(tmp_path: Path) -> None:
    run = Run(tmp_path)
    with pytest.raises(ValueError, match="holds no prediction"):
        compare(run)
    keep(run, _predicted())
    with pytest.raises(ValueError, match="has trained no step of pretrain"):
        compare(run)
    (tmp_path / "prediction.json").write_text("{")
    with pytest.raises(ValueError, match="delete it and predict again"):
        compare(run)
