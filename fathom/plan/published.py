"""What the papers print, beside what the same arithmetic gives here."""

from dataclasses import dataclass, replace

from fathom.config import ModelConfig
from fathom.plan.cache import cache_bytes, cache_savings
from fathom.plan.cost import R1_GPU_HOURS, V3_GPU_HOURS, fitted_mfu
from fathom.plan.count import checkpoint_elements, main_parameters, mtp_parameters, train_flops_per_token
from fathom.plan.hardware import HARDWARE
from fathom.plan.serving import DEEPSEEK_DAY
from fathom.presets import PRESETS

V3_TOKENS_A_DAY = 272.8e9  # on 2,048 H800; ISCA table 4


@dataclass(frozen=True)
class Figure:
    """One published figure, as printed, and the same figure computed."""

    name: str
    computed: str
    printed: str
    source: str


def deepseek_67b() -> ModelConfig:
    """The dense model that V2 is compared with, as far as its cache goes: 95 layers, 8 groups of heads of 128."""
    llama = PRESETS["llama-3.1-70b"].model
    return replace(llama, num_hidden_layers=95)


def published_figures(model: ModelConfig) -> list[Figure]:
    """The figures known for `model`; none for most models."""
    if model == PRESETS["v3"].model:
        return _v3(model)
    return _v2(model) if model == PRESETS["v2"].model else []


def _v3(model: ModelConfig) -> list[Figure]:
    active = main_parameters(model, active=True, embedding=False)
    llama = main_parameters(PRESETS["llama-3.1-405b"].model)
    causal, whole = (train_flops_per_token(model, 4096, mtp=False, causal=causal) for causal in (True, False))
    mfu = [fitted_mfu(V3_TOKENS_A_DAY * flops, 2048 * 24, HARDWARE["h800"]) for flops in (causal, whole)]
    elements, day = checkpoint_elements(model), DEEPSEEK_DAY
    hours, r1_hours = sum(V3_GPU_HOURS.values()), sum(R1_GPU_HOURS.values())
    price = HARDWARE["h800"].dollars_per_hour
    modules = main_parameters(model) + mtp_parameters(model) + 2 * model.vocab_size * model.hidden_size
    return [
        Figure("parameters", f"{main_parameters(model):,}", "671B", "V3 4.2"),
        Figure("parameters with MTP", f"{modules:,}", "685B", "model card"),
        Figure("active parameters", f"{active:,}", "37B", "V3 4.2"),
        Figure("Llama 3.1 405B over active", f"{llama / active:.2f}", "11", "V3 4.4"),
        Figure("FP8 elements on disk", f"{elements['F8_E4M3']:,}", "680,571,043,840", "checkpoint"),
        Figure("BF16 elements on disk", f"{elements['BF16']:,}", "3,918,786,560", "checkpoint"),
        Figure("F32 elements on disk", f"{elements['F32']:,}", "41,555,600", "checkpoint"),
        Figure("training GFLOP per token", f"{causal / 1e9:.2f}", "250", "ISCA table 2"),
        Figure("cache per token, KB", f"{cache_bytes(model) / 1000:.3f}", "70.272", "ISCA table 1"),
        Figure("MFU, causal", f"{mfu[0]:.1%}", "38.94%", "ISCA table 4"),
        Figure("MFU, non-causal", f"{mfu[1]:.1%}", "43.73%", "ISCA table 4"),
        Figure("GPU-hours of the final run", f"{hours / 1e3:,.0f}K", "2,788K", "V3 table 1"),
        Figure("dollars of the final run", f"${hours * price / 1e6:.3f}M", "$5.576M", "V3 table 1"),
        Figure("dollars of R1 on top", f"${r1_hours * price / 1e3:.0f}K", "$294K", "R1 table 7"),
        Figure("dollars of a day of service", f"${day.cost:,.0f}", "$87,072", "infra index"),
        Figure("nodes that its tokens need", f"{day.prefill_nodes + day.decode_nodes:.1f}", "226.75", "infra index"),
        Figure("its revenue at R1's prices", f"${day.revenue:,.0f}", "$562,027", "infra index"),
        Figure("its margin", f"{day.margin:.1%}", "545%", "infra index"),
    ]


def _v2(model: ModelConfig) -> list[Figure]:
    savings = cache_savings(model, deepseek_67b())
    flops = train_flops_per_token(model, 4096, mtp=False)
    return [
        Figure("parameters", f"{main_parameters(model):,}", "236B", "V2 3.1.2"),
        Figure("active parameters", f"{main_parameters(model, active=True):,}", "21B", "V2 3.1.2"),
        Figure("training GFLOP per token", f"{flops / 1e9:.2f}", "155", "ISCA table 2"),
        Figure("cache saved, 6 bits against 16", f"{savings['6 bits against 16']:.2%}", "93.3%", "V2"),
        Figure("cache saved, both at 16 bits", f"{savings['both at 16 bits']:.2%}", "", "derived"),
    ]
