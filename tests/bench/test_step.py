"""A step on paper against numbers worked out by hand, and experts counted against a count in the test."""

import pytest
import torch

from fathom.bench.step import Roof, StepBytes, describe_step, experts_met, narrowed, step_bytes, wall
from fathom.config import ModelConfig
from fathom.model import CacheSlots, LatentCache, RoutingTrace, Transformer

# attention 16*32 + 16*16 + 8*32 + 16*16 and the latent's norm 8; two norms of 16; router 4*16 and its bias 4
LAYER = 512 + 256 + 256 + 256 + 8 + 32 + 68
EXPERT = 3 * 16 * 8
DENSE = 1300 * 16 + 16 + 2 * (LAYER + EXPERT)  # the head, the last norm, and the shared expert of each layer


def test_bytes_of_one_row(tiny: ModelConfig) -> None:
    found = step_bytes(tiny, rows=1, context=100, weight_size=4, cache_size=4)
    assert found == StepBytes(4 * DENSE, 4 * 2 * 2 * EXPERT, 100 * 2 * (8 + 8) * 4)
    assert found.total == 4 * DENSE + 16 * EXPERT + 12_800


def test_bytes_of_more_rows_count_an_expert_once(tiny: ModelConfig) -> None:
    # of 4 experts a row leaves 2 out, so two rows miss one with probability 1/4
    found = step_bytes(tiny, rows=2, context=10, weight_size=1, cache_size=2)
    assert found.experts == pytest.approx(2 * 3 * EXPERT)
    assert found.cache == 2 * 10 * 2 * 16 * 2
    assert step_bytes(tiny, 2, 10, 1, 2, met=4.0).experts == 2 * 4 * EXPERT


def test_the_wall_is_what_takes_longest() -> None:
    moved = StepBytes(dense=2e9, experts=1e9, cache=4e9)
    found = wall(moved, flops=5e12, roof=Roof(bandwidth=1e12, flops=1e15, launch=1e-3))
    assert found == {"weights_ms": 3.0, "cache_ms": 4.0, "compute_ms": 5.0, "launch_ms": 1.0, "is": "compute"}
    assert wall(moved, 0.0, Roof(1e12, 1e15, 0.5))["is"] == "launch"


def test_a_step_beside_its_roof(tiny: ModelConfig) -> None:
    roof = Roof(bandwidth=1e9, flops=1e12, launch=1e-6)
    found = describe_step(tiny, 1, 100, seconds=1e-3, sizes=(4, 4), met=2.0, roof=roof)
    total = 4 * DENSE + 16 * EXPERT + 12_800
    assert found["bytes"]["total"] == found["bytes_expected"] == total
    assert found["bandwidth_gb_s"] == round(total / 1e6, 2)
    assert found["share_of_roof"] == round(total / 1e6, 4)
    assert found["experts_expected"] == 2.0


def test_experts_met_are_those_of_each_step(tiny: ModelConfig) -> None:
    model = Transformer(tiny)
    model.initialise(torch.Generator().manual_seed(0))
    texts = torch.randint(1300, (3, 9), generator=torch.Generator().manual_seed(1))
    counts = list[int]()
    cache = LatentCache(tiny, 3, 9)
    with torch.inference_mode():
        places = torch.arange(9).expand(3, 9)
        model(texts[:, :4], slots=CacheSlots.at(cache, 0, places[:, :4], 4, fresh=True))
        for step in range(4, 9):  # one token a row, as decoding does
            trace = RoutingTrace()
            now = slice(step, step + 1)
            model(texts[:, now], slots=CacheSlots.at(cache, 0, places[:, now], step + 1, fresh=False), trace=trace)
            counts += [int((load > 0).sum()) for load in trace.loads]
    assert experts_met(model, texts, prompt=4) == pytest.approx(sum(counts) / len(counts))


def test_a_narrow_model_makes_the_same_calls(tiny: ModelConfig) -> None:
    small = narrowed(tiny)
    assert (small.num_hidden_layers, small.moe.n_routed_experts) == (2, 4)
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in Transformer(small).parameters()) < 10_000
