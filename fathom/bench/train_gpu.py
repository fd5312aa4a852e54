"""Whole training steps on one GPU: sides that take turns, where the time goes, and how far that is from the roof."""

import gc
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from statistics import median
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fathom.bench.breakdown import breakdown
from fathom.bench.memory import Case, random_batch
from fathom.bench.rounds import describe_conditions
from fathom.bench.shape import describe_shape
from fathom.config import AttentionConfig, ModelConfig, MoEConfig, OptimizerConfig
from fathom.config.published import to_published
from fathom.kernels.gemm import product
from fathom.model import Transformer
from fathom.model.moe import Router
from fathom.model.precision import fp8_modules, use_fp8
from fathom.parallel.world import World, choose_device
from fathom.plan.count import train_flops_per_token
from fathom.presets import SMALL
from fathom.text.packing import Batch
from fathom.train.loss import Denominators, Losses, language_losses
from fathom.train.metrics import peak_flops
from fathom.train.step import Rates, TrainState, train_step

log = logging.getLogger(__name__)

MTP_WEIGHT = 0.3
WARM_UP = 3  # steps: gradients get their memory, kernels are compiled
ROUNDS = 5
TURN_SECONDS = 1.0  # of one side's turn: the clocks settle within it
FP8_OVER_BF16 = 2.0  # what FP8 units do more a second than those of bfloat16

# 16 heads and experts as Moonlight has them, in few layers: about 4 B parameters
MOONLIGHT_4B = ModelConfig(
    vocab_size=32_768,
    hidden_size=2048,
    num_hidden_layers=8,
    intermediate_size=11_264,
    num_nextn_predict_layers=0,
    attention=AttentionConfig(
        num_attention_heads=16,
        num_key_value_heads=16,
        q_lora_rank=None,
        kv_lora_rank=512,
        qk_nope_head_dim=128,
        qk_rope_head_dim=64,
        v_head_dim=128,
    ),
    moe=MoEConfig(
        n_routed_experts=64,
        num_experts_per_tok=6,
        n_shared_experts=2,
        moe_intermediate_size=1408,
        first_k_dense_replace=1,
    ),
)

State = Literal["v3", "bf16"]  # float32 masters with bfloat16 moments, or weights and moments all in bfloat16


@dataclass(frozen=True)
class Side:
    """One way to take a step."""

    name: str
    step: Callable[[], float]  # the loss
    tokens: int
    flops: tuple[float, float]  # of a step, attention counted causally, and over the whole square
    peak: float = 0.0  # FLOP/s of the units that the products run on, weighted by their precision
    model: Transformer | None = None


@dataclass(frozen=True)
class Setting:
    """A model's shape, and the rows and sides to measure it with."""

    case: Case
    sides: Sequence[str]  # of SIDES


SIDES = ("bf16", "v3", "v3 forced", "fp8", "transformers")


def settings(peer: str) -> list[Setting]:
    """The small model beside its peer, the same with MTP, and wide experts in BF16 and FP8."""
    small = ["bf16", "v3", "v3 forced", "fp8"] + (["transformers"] if peer == "transformers" else [])
    with_mtp = replace(SMALL, num_nextn_predict_layers=1)
    return [
        Setting(Case("small", SMALL, rows=8, seq_len=4096), small),
        Setting(Case("small with MTP", with_mtp, rows=8, seq_len=4096), ["v3"]),
        Setting(Case("moonlight-4b", MOONLIGHT_4B, rows=8, seq_len=4096), ["v3", "fp8"]),
    ]


def measure(setting: Setting, device: torch.device, rounds: int = ROUNDS) -> dict[str, Any]:
    """Every side's median step in turns with the others, its parts, and its share of the peak."""
    world = World(0, 1, device)
    sides = [build(name, setting.case, world) for name in setting.sides]
    first = {side.name: round(warm_up(side), 4) for side in sides}
    times: dict[str, list[float]] = {side.name: [] for side in sides}
    for _ in range(rounds):
        for side in sides:
            times[side.name].append(turn(side, device))
    roof = settled_flops(device)
    found = {side.name: describe(side, times[side.name], device, roof) for side in sides}
    return {
        "name": setting.case.name,
        "model": describe_shape(setting.case.model),
        "rows": setting.case.rows,
        "seq_len": setting.case.seq_len,
        "roof_tflops": round(roof / 1e12, 1),
        "first_loss": first,
        "sides": found,
    }


def warm_up(side: Side) -> float:
    """Take the steps that do not count; the first one's loss."""
    losses = [side.step() for _ in range(WARM_UP)]
    return losses[0]


def turn(side: Side, device: torch.device) -> float:
    """Seconds of a step, over as many as a turn lasts; the first does not count."""
    side.step()
    wait(device)
    started, steps = time.perf_counter(), 0
    while time.perf_counter() - started < TURN_SECONDS:
        side.step()
        steps += 1
    wait(device)
    return (time.perf_counter() - started) / steps


def describe(side: Side, times: Sequence[float], device: torch.device, roof: float) -> dict[str, Any]:
    """Speed and honest MFU of a side: both ways to count attention, and every peak that one may divide by."""
    seconds = median(times)
    causal, full = (flops / seconds for flops in side.flops)
    sheet = peak_flops(device)
    weighted = side.peak or sheet
    found: dict[str, Any] = {
        "tokens_per_s": round(side.tokens / seconds),
        "step_ms": round(1e3 * seconds, 2),
        "fastest_ms": round(1e3 * min(times), 2),
        "turns": len(times),
        "tflops_causal": round(causal / 1e12, 1),
        "mfu": {
            "causal, BF16 peak": round(causal / sheet, 4),
            "full, BF16 peak": round(full / sheet, 4),
            "causal, peak by precision": round(causal / weighted, 4),
            "causal, measured roof": round(causal / roof, 4),
        },
    }
    if side.model is not None:
        parts = breakdown(side.model, side.step, device)
        busy = sum(parts.values())
        found["parts_ms"] = {**parts, "idle": round(max(0.0, 1e3 * seconds - busy), 3)}
    return found


def build(name: str, case: Case, world: World) -> Side:
    """The side of this name, with weights of its own."""
    if name == "transformers":
        return _transformers(case, world)
    state_kind: State = "bf16" if name == "bf16" else "v3"
    model = fresh_model(case.model, world.device)
    if state_kind == "bf16":
        for parameter in model.parameters():
            parameter.data = parameter.data.bfloat16()
    optimizer = OptimizerConfig(lr=1e-4, moments="bfloat16" if state_kind == "v3" else "float32")
    if name == "fp8":
        use_fp8(model)
    if name.endswith("forced"):
        force_routing(model)
    state = TrainState.start(model, optimizer)
    batch = random_batch(case)
    denominators = Denominators.of([batch], len(model.mtp), world)
    rates = Rates(lr=optimizer.lr, clip_norm=optimizer.clip_norm, bias_speed=case.model.moe.bias_update_speed)
    dtype = torch.bfloat16 if world.device.type == "cuda" else torch.float32

    def losses_of(batch: Batch) -> Losses:
        return language_losses(model, batch, denominators, MTP_WEIGHT, world.device)

    def step() -> float:
        return train_step(state, [batch], losses_of, rates, world, dtype).parts["loss"]

    return Side(name, step, batch.tokens.size, step_flops(case), peak_by_precision(model, case, world.device), model)


def fresh_model(config: ModelConfig, device: torch.device) -> Transformer:
    """A model with drawn weights on the device."""
    with torch.device(device):
        model = Transformer(config)
    model = model.to(device)  # a few buffers are made on the CPU whatever the default
    model.initialise(torch.Generator(device).manual_seed(0))
    return model


def force_routing(model: Transformer) -> None:
    """Send every token to experts in turn, so that all have equally many: the routing that MFUs are often told for."""

    def replace_choice(router: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        assert isinstance(router, Router)
        c, tokens = router.config, len(args[0])
        pairs = torch.arange(tokens * c.num_experts_per_tok, device=args[0].device)
        return args[0], (pairs % c.n_routed_experts).view(tokens, -1)

    for module in model.modules():
        if isinstance(module, Router):
            module.register_forward_pre_hook(replace_choice)


def step_flops(case: Case) -> tuple[float, float]:
    """Operations of a step with attention counted causally, and over the whole square."""
    tokens = case.rows * case.seq_len
    return (
        tokens * train_flops_per_token(case.model, case.seq_len),
        tokens * train_flops_per_token(case.model, case.seq_len, causal=False),
    )


def peak_by_precision(model: Transformer, case: Case, device: torch.device) -> float:
    """FLOP/s of the units: bfloat16's, and twice that for the share of the products whose inputs are FP8."""
    peak, total = peak_flops(device), step_flops(case)[0]
    c = case.model.moe
    share = c.num_experts_per_tok / c.n_routed_experts if c.n_routed_experts else 0.0
    weights = 0.0
    for name, module in fp8_modules(model):
        experts = name.endswith("feed_forward") and not name.endswith("shared")
        own = [p for n, p in module.named_parameters() if "." not in n]
        weights += sum(p.numel() for p in own) * (share if experts and len(own) == 2 else 1.0)
    in_fp8 = 6 * weights * case.rows * case.seq_len
    return total / (in_fp8 / (FP8_OVER_BF16 * peak) + (total - in_fp8) / peak)


def _transformers(case: Case, world: World) -> Side:
    """The same shape and optimizer state in transformers: grouped products, every layer compiled."""
    transformers = import_module("transformers")
    published = to_published(case.model)
    config = transformers.AutoConfig.for_model(published.pop("model_type"), **published)
    with torch.device(world.device):
        model = transformers.AutoModelForCausalLM.from_config(
            config, dtype=torch.bfloat16, attn_implementation="sdpa", experts_implementation="grouped_mm"
        ).train()
    for layer in model.model.layers:
        layer.compile()
    batch = random_batch(case)
    tokens, targets = (torch.from_numpy(a.copy()).to(world.device) for a in (batch.tokens, batch.targets))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> float:
        logits: Tensor = model(input_ids=tokens, use_cache=False).logits
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    return Side("transformers", step, batch.tokens.size, step_flops(case))


def settled_flops(device: torch.device, side: int = 8192, least_seconds: float = 1.0) -> float:
    """What a large product of random bfloat16 numbers reaches behind a second of them: the roof of this very card."""
    if device.type != "cuda":
        side, least_seconds = 512, 0.05
    a = torch.randn(side, side, device=device, dtype=torch.bfloat16 if device.type == "cuda" else torch.float32)
    times, started = list[float](), time.perf_counter()
    while time.perf_counter() - started < least_seconds:
        begun = time.perf_counter()
        for _ in range(4):
            product(a, a)
        wait(device)
        times.append((time.perf_counter() - begun) / 4)
    return 2 * side**3 / median(times[len(times) // 2 :])


def waits_in_forward(config: ModelConfig, device: torch.device) -> str:
    """What a forward pass with its loss asks the host to wait for; empty where it asks for nothing."""
    case = Case("waits", replace(config, num_hidden_layers=2), rows=2, seq_len=512)
    world = World(0, 1, device)
    model = fresh_model(case.model, device)
    batch = random_batch(case)
    denominators = Denominators.of([batch], len(model.mtp), world)

    def forward() -> None:
        with torch.autocast(device.type, torch.bfloat16):
            language_losses(model, batch, denominators, MTP_WEIGHT, device)

    forward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        forward()
    except RuntimeError as error:
        return " ".join(str(error).split())
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return ""


def wait(device: torch.device) -> None:
    """Until the device has done what it was asked for."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def main(peer: str = "none", device: str = "auto", chosen: Sequence[Setting] | None = None) -> dict[str, Any]:
    """Every setting's figures. One that fails is reported with its error, and the others go on."""
    where = choose_device(device)
    conditions = describe_conditions()
    found = list[dict[str, Any]]()
    for setting in settings(peer) if chosen is None else chosen:
        log.info("training %s in turns: %s", setting.case.name, ", ".join(setting.sides))
        try:
            found.append(measure(setting, where))
        except Exception as error:  # whatever one setting meets, the figures of the others are worth having
            log.warning("%s failed: %s", setting.case.name, error)
            found.append({"name": setting.case.name, "error": f"{type(error).__name__}: {str(error)[:2000]}"})
        gc.collect()
        if where.type == "cuda":
            torch.cuda.empty_cache()
    waits = waits_in_forward(SMALL, where) if where.type == "cuda" else "not on a GPU"
    return {"bench": "train", "peer": peer, "settings": found, "waits_in_forward": waits, **conditions}
