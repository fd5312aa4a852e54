"""What is allocated is what the planner counts, and as much of it as fits."""

import pytest
import torch

from fathom.kernels.latents import latent_bytes
from fathom.unlocks import kv_throughput
from fathom.unlocks.experiment import Figures

LAYERS, MEMORY = kv_throughput.LAYERS["toy"], kv_throughput.MEMORY["toy"]
ELEMENTS = {"MHA": 2 * 16 * 32, "GQA, 8 groups": 2 * 8 * 32, "MLA": 128 + 16}  # of a token and layer


@pytest.mark.parametrize("name", kv_throughput.variants("toy"))
def test_the_largest_batch_fills_the_memory(name: str) -> None:
    way = kv_throughput.variants("toy")[name]
    rows, token_bytes, step = kv_throughput.largest_batch(way, "toy", 0, torch.device("cpu"))
    assert token_bytes == LAYERS * (latent_bytes(128, 16) if way.fp8 else 4 * ELEMENTS[name])
    row_bytes = 64 * token_bytes  # 63 cached tokens and a new one: a page
    assert rows * row_bytes <= MEMORY < (rows + 1) * row_bytes
    logits = step()
    assert logits.shape == (rows, 1, 512) and bool(logits.isfinite().all())


def test_on_paper_the_ratio_is_made_of_both() -> None:
    short, long = kv_throughput.planned(512), kv_throughput.planned(32768)
    for plan in (short, long):
        assert 1 < plan["BF16 weights and cache"] < plan["FP8 weights, 6-bit cache"]
    assert long["FP8 weights, 6-bit cache"] > kv_throughput.PRINTED


def seed(latent: float) -> Figures:
    names = kv_throughput.variants("toy")
    speeds = dict.fromkeys(names, 100.0) | {"MLA": 100.0 * latent}
    return {
        "caches": {name: {"rows": 4, "token_bytes": 8.0} for name in names},
        "timed": {"tokens_per_s": speeds},
    }


def test_slower_latents_fail_the_claim() -> None:
    assert kv_throughput.conclude([seed(0.9), seed(0.8), seed(0.85)]).verdict == "not supported"
    assert kv_throughput.conclude([seed(0.9)]).verdict != "supported"
