"""Drafts change no text, and the figures hang together as the formula says."""

from pathlib import Path

import pytest
import torch

from fathom.unlocks import mtp_speculation
from fathom.unlocks.experiment import Context, Figures


def test_drafts_save_passes_and_change_no_text(tmp_path: Path) -> None:
    found = mtp_speculation.measure(Context(torch.device("cpu"), "toy", tmp_path), 0)
    for batch in found["batches"]:
        assert batch["equal"] and 0.5 < batch["acceptance"] < 1
        # every pass gives one token and, where its draft is kept, a second; the last of a text may cut one off
        assert 1 < batch["tokens_per_step"] == pytest.approx(1 + batch["acceptance"], abs=0.1)
        assert batch["formula"] < 1 + batch["acceptance"]  # checking and drafting read weights too


def seed(acceptance: float, faster: float, equal: bool = True) -> Figures:
    batch = {"rows": 1, "tokens": 9, "equal": equal, "acceptance": acceptance, "tokens_per_step": 1.9, "formula": 1.2}
    return {"batches": [batch], "timed": {"tokens_per_s": {"plain": [10.0], "drafted": [10.0 * faster]}}}


def test_verdicts() -> None:
    good, near = seed(0.9, 1.5), seed(0.91, 1.51)
    assert mtp_speculation.conclude([good]).verdict == "inconclusive"
    assert mtp_speculation.conclude([good, near, good]).verdict == "supported"
    slow = [seed(0.9, 0.8), seed(0.91, 0.81), seed(0.9, 0.79)]
    assert mtp_speculation.conclude(slow).verdict == "not supported"
    assert mtp_speculation.conclude([good, near, seed(0.9, 1.5, equal=False)]).verdict == "not supported"
