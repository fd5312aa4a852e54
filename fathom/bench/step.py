"""One step of decoding on paper and beside its roof: bytes it must move, operations, and what holds it up."""

from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from fathom.config import ModelConfig
from fathom.model import Transformer
from fathom.model.moe import moe_layers
from fathom.plan.cache import cache_elements
from fathom.plan.count import decode_flops_per_token, main_parameters, parts
from fathom.plan.serving import expert_union

NARROW = 8  # every width of a model whose step is nothing but calls


@dataclass(frozen=True)
class StepBytes:
    """What one step has to read: every weight that any row meets, once, and the cached past of every row."""

    dense: float  # weights that every token meets, the embedding left out
    experts: float  # routed experts that the rows choose, over all layers
    cache: float

    @property
    def total(self) -> float:
        return self.dense + self.experts + self.cache


def step_bytes(
    config: ModelConfig, rows: int, context: float, weight_size: int, cache_size: int, met: float | None = None
) -> StepBytes:
    """Bytes of a step of `rows` tokens behind `context` cached ones each, for elements of so many bytes.

    `met` is how many experts a layer's rows choose together; without it, what independent rows are expected to.
    """
    routed = parts(config, active=True)["routed experts"]
    dense = main_parameters(config, active=True, embedding=False) - routed
    chosen = config.moe.num_experts_per_tok
    times = expert_union(config, rows) if met is None else met / chosen
    cache = rows * context * cache_elements(config) * cache_size
    return StepBytes(dense * weight_size, routed * times * weight_size, cache)


@dataclass(frozen=True)
class Roof:
    """What this process reaches on this machine, measured in the same run."""

    bandwidth: float  # bytes/s read by one pass over as many bytes as the model's weights
    flops: float  # operations/s of a large product in the precision of decoding
    launch: float  # seconds of the same step of a model whose every width is `NARROW`


def wall(moved: StepBytes, flops: float, roof: Roof) -> dict[str, Any]:
    """Milliseconds that each part would take alone, and the longest: what holds the step up."""
    alone = {
        "weights": (moved.dense + moved.experts) / roof.bandwidth,
        "cache": moved.cache / roof.bandwidth,
        "compute": flops / roof.flops,
        "launch": roof.launch,
    }
    return {**{f"{name}_ms": round(1e3 * s, 4) for name, s in alone.items()}, "is": max(alone, key=alone.__getitem__)}


def describe_step(
    config: ModelConfig,
    rows: int,
    context: float,
    seconds: float,
    sizes: tuple[int, int],
    met: float | None,
    roof: Roof,
) -> dict[str, Any]:
    """Everything about a step that took `seconds`; `sizes` are bytes of an element of weights and cache."""
    moved, expected = step_bytes(config, rows, context, *sizes, met), step_bytes(config, rows, context, *sizes)
    return {
        "ms": round(1e3 * seconds, 4),
        "rows": rows,
        "bytes": {name: round(value) for name, value in asdict(moved).items()} | {"total": round(moved.total)},
        "experts_met": None if met is None else round(met, 2),
        "experts_expected": round(expert_union(config, rows) * config.moe.num_experts_per_tok, 2),
        "bytes_expected": round(expected.total),
        "bandwidth_gb_s": round(moved.total / seconds / 1e9, 2),
        "roof_gb_s": round(roof.bandwidth / 1e9, 2),
        "share_of_roof": round(moved.total / seconds / roof.bandwidth, 4),
        "wall": wall(moved, rows * decode_flops_per_token(config, round(context)), roof),
    }


@torch.inference_mode()
def experts_met(model: Transformer, texts: Int[Tensor, "B T"], prompt: int) -> float | None:
    """How many routed experts a layer's rows chose together, the mean over layers and the steps behind the prompt.

    The texts are read once more as a whole, in which every token chooses as it did when it was decoded. None where
    the model has no experts.
    """
    counts = list[float]()

    def count(module: nn.Module, inputs: object, output: tuple[Tensor, Tensor, Tensor]) -> None:
        chosen = output[1].view(*texts.shape, -1)[:, prompt:].transpose(0, 1).flatten(1)  # (steps, B * K)
        ranked = chosen.sort(dim=1).values
        counts.append(float((ranked.diff(dim=1) != 0).sum(1).add(1).double().mean()))

    hooks = [layer.router.register_forward_hook(count) for layer in moe_layers(model)]
    try:
        model(texts)
    finally:
        for hook in hooks:
            hook.remove()
    return sum(counts) / len(counts) if counts else None


def narrowed(config: ModelConfig) -> ModelConfig:
    """As many layers, heads and experts, and widths of next to nothing."""
    a, moe = config.attention, config.moe
    attention = replace(
        a,
        head_dim=NARROW,
        q_lora_rank=None if a.q_lora_rank is None else NARROW,
        kv_lora_rank=NARROW,
        qk_nope_head_dim=NARROW,
        qk_rope_head_dim=NARROW,
        v_head_dim=NARROW,
    )
    return replace(
        config,
        vocab_size=64,
        hidden_size=NARROW,
        intermediate_size=NARROW,
        num_nextn_predict_layers=0,
        attention=attention,
        moe=replace(moe, moe_intermediate_size=NARROW),
    )
