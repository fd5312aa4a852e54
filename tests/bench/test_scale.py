"""The table of weak scaling: every line is there, and what is sent is what the formula says."""

import pytest
import torch

from fathom.bench import scale
from fathom.config import ModelConfig


@pytest.mark.ranks
def test_what_is_sent_is_what_the_formula_says(tiny: ModelConfig) -> None:
    found = scale.main("none", tiny, ranks=(1, 2), rows=4, seq_len=32, steps=2)
    assert found["bench"] == "scale"
    alone, data, shard, expert = found["table"]
    assert (alone["kind"], alone["ranks"], alone["bytes_sent_per_rank"]) == ("alone", 1, 0)
    for line, kind in ((data, "data"), (shard, "shard")):
        assert (line["kind"], line["ranks"]) == (kind, 2)
        assert line["bytes_sent_per_rank"] == line["bytes_by_formula"] > 0
    assert expert["bytes_sent_per_rank"] == pytest.approx(expert["bytes_by_formula"], rel=0.15)  # routing is not even
    assert all(line["tokens_per_s_per_rank"] > 0 for line in found["table"])


def test_on_gpus_there_is_a_process_for_each_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert scale.sizes_here((1, 2, 4), on_gpus=False) == (1, 2, 4)
    assert scale.sizes_here((1, 2, 4), on_gpus=True) == (1, 2)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert scale.sizes_here((1, 2, 4), on_gpus=True) == (8,)
