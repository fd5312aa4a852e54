"""The bench of memory on a CPU, where it measures speed alone."""

import json
from dataclasses import replace

import pytest
import torch

from fathom.bench import memory
from fathom.bench.memory import Case, cases
from fathom.config import ModelConfig
from fathom.plan.hardware import HARDWARE
from fathom.plan.memory import capacity
from fathom.plan.memory import memory as needed


def test_a_case_that_fails_leaves_the_others(tiny: ModelConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "CASE_SECONDS", 0.1)
    torch.set_num_threads(1)
    with_mtp = replace(tiny, num_nextn_predict_layers=1)
    broken = Case("broken", tiny, rows=0, seq_len=16)
    found = memory.main(chosen=[Case("first", tiny, 2, 16), broken, Case("last", with_mtp, 2, 16)], device="cpu")
    assert json.loads(json.dumps(found)) == found
    first, failed, last = found["cases"]
    for case in (first, last):
        assert case["measured"]["tokens_per_s"] > 0
        assert case["measured"]["steps"] >= memory.LEAST_STEPS
        assert case["measured"]["peak_gib"] is None
        assert list(case["error_of_prediction"]) == ["tokens_per_s"]
        assert case["predicted"]["peak_gib"] > 0
    assert "error" in failed
    assert "measured" not in failed


def test_late_cases_are_not_begun(tiny: ModelConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "ALL_SECONDS", -1.0)
    (only,) = memory.main(chosen=[Case("late", tiny, 2, 16)], device="cpu")["cases"]
    assert "not begun" in only["error"]


def test_every_case_fits_on_the_gpu_that_it_is_for() -> None:
    h200 = HARDWARE["h200"]
    for case in cases():
        total = needed(case.model, memory.layout_of(case, h200), case.seq_len).total
        assert 10 * 2**30 < total < capacity(h200.memory_bytes)


def test_it_has_no_peer() -> None:
    with pytest.raises(ValueError, match="has no peer"):
        memory.main("transformers")
