"""The bench of a GPU on a tiny model and a CPU: what it divides by, and what it calls the parts."""

import pytest
import torch

from fathom.bench import train_gpu
from fathom.bench.memory import Case
from fathom.bench.train_gpu import Setting
from fathom.config import ModelConfig
from fathom.model.precision import use_fp8
from fathom.plan.count import main_parameters, train_flops_per_token

CPU = torch.device("cpu")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_gpu, "TURN_SECONDS", 0.01)
    monkeypatch.setattr(train_gpu, "WARM_UP", 1)
    monkeypatch.setattr(train_gpu, "peak_flops", lambda _: 1e12)


def test_sides_begin_alike_and_figures_follow_from_the_time(tiny: ModelConfig, quick: None) -> None:
    case = Case("tiny", tiny, rows=2, seq_len=16)
    found = train_gpu.measure(Setting(case, ["v3", "fp8", "v3 forced"]), CPU, rounds=1)
    losses = found["first_loss"]
    assert losses["fp8"] == pytest.approx(losses["v3"], rel=1e-2)
    for side in found["sides"].values():
        seconds = 32 / side["tokens_per_s"]
        flops = 32 * train_flops_per_token(tiny, 16)
        assert side["mfu"]["causal, BF16 peak"] == pytest.approx(flops / seconds / 1e12, rel=0.02, abs=1e-4)
        assert side["mfu"]["full, BF16 peak"] >= side["mfu"]["causal, BF16 peak"]
        parts = side["parts_ms"]
        assert all(parts[name] > 0 for name in ("experts", "dense", "head and loss", "optimizer", "router"))


def test_forced_routing_gives_every_expert_as_many(tiny: ModelConfig) -> None:
    model = train_gpu.fresh_model(tiny, CPU)
    train_gpu.force_routing(model)
    router = next(m for m in model.modules() if type(m).__name__ == "Router")
    e = tiny.moe.n_routed_experts
    load = router(torch.randn(e, tiny.hidden_size)).load
    assert load.tolist() == [tiny.moe.num_experts_per_tok] * e


def test_the_peak_by_precision_lies_where_the_products_do(tiny: ModelConfig, quick: None) -> None:
    """Everything but head and router in FP8: the weights a token meets, once over."""
    case = Case("tiny", tiny, rows=2, seq_len=16)
    model = train_gpu.fresh_model(tiny, CPU)
    assert train_gpu.peak_by_precision(model, case, CPU) == pytest.approx(1e12)
    assert use_fp8(model)
    c, d = tiny.moe, tiny.hidden_size
    apart = tiny.vocab_size * d + sum(p.numel() for n, p in model.named_parameters() if "norm" in n or "router" in n)
    in_fp8 = 6 * (main_parameters(tiny, active=True, embedding=False) - apart)
    total = train_flops_per_token(tiny, 16)
    assert tiny.num_nextn_predict_layers == 0 and c.n_routed_experts
    assert train_gpu.peak_by_precision(model, case, CPU) == pytest.approx(1e12 * total / (total - in_fp8 / 2), rel=1e-3)
