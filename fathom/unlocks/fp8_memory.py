"""Bytes of a training step by format: weights, gradients, moments, activations, of real tensors (V3 3.3.3)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from fathom.config import AttentionConfig, ModelConfig, MoEConfig, OptimizerConfig
from fathom.model import Transformer
from fathom.model.linear import Linear
from fathom.model.precision import use_fp8
from fathom.parallel.world import World
from fathom.plan.layout import Layout
from fathom.plan.memory import memory
from fathom.text.packing import Batch
from fathom.train.loss import Denominators, language_losses
from fathom.train.step import Rates, TrainState, sum_over_world, update
from fathom.unlocks.drawing import Bars
from fathom.unlocks.experiment import Claim, Context, Experiment, Figures, Result, Size
from fathom.unlocks.verdict import above, all_of, below, exact

WIDTH: dict[Size, int] = {"toy": 128, "cpu": 512, "gpu": 2048}
LAYERS: dict[Size, int] = {"toy": 1, "cpu": 4, "gpu": 8}
SEQ_LEN: dict[Size, int] = {"toy": 32, "cpu": 128, "gpu": 1024}
VOCABULARY = 512
LESS_KEPT = 0.9  # share of BF16's activations below which FP8 is said to save memory
HALF, NEAR = 0.5, 0.01  # of the moments' bytes, and how near
PARTS = ("weights", "copies", "gradients", "moments", "activations")


@dataclass(frozen=True, kw_only=True)
class Format:
    """What a step computes in and keeps."""

    precision: Literal["bf16", "fp8"]  # of the products of linear maps, and of their inputs until the backward pass
    moments: Literal["float32", "bfloat16"]  # of AdamW


def variants(size: Size) -> dict[str, Format]:
    """BF16 with moments in float32, then V3's two savings, one after the other."""
    return {
        "BF16": Format(precision="bf16", moments="float32"),
        "BF16, BF16 moments": Format(precision="bf16", moments="bfloat16"),
        "FP8, BF16 moments": Format(precision="fp8", moments="bfloat16"),
    }


def measure(context: Context, seed: int) -> Figures:
    """Bytes of every part in each format, and how many weights and tokens they belong to."""
    found: dict[str, dict[str, float]] = {}
    for name, way in variants(context.size).items():
        context.check_time()
        found[name] = bytes_of_step(way, context.size, context.device)
    return {"bytes": found, "parameters": sum(w.numel() for w in Transformer(shape(context.size)).parameters())}


def shape(size: Size) -> ModelConfig:
    """Latent attention and a dense feed-forward part, in V3's proportions; widths that blocks of 128 divide."""
    width = WIDTH[size]
    return ModelConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        num_hidden_layers=LAYERS[size],
        num_nextn_predict_layers=0,
        intermediate_size=2 * width,
        attention=AttentionConfig(
            num_attention_heads=width // 64,
            num_key_value_heads=width // 64,
            q_lora_rank=128,
            kv_lora_rank=128,
            qk_nope_head_dim=64,
            qk_rope_head_dim=32,
            v_head_dim=64,
        ),
        moe=MoEConfig(first_k_dense_replace=LAYERS[size]),
    )


def bytes_of_step(way: Format, size: Size, device: torch.device) -> dict[str, float]:
    """Bytes of each part, counted on the tensors of one optimizer step; activations per token.

    What one row more keeps is what a row keeps, so that copies of weights, which are kept once, do not count as its.
    """
    model = Transformer(shape(size))
    model.initialise(torch.Generator().manual_seed(0))
    model = model.to(device)
    if way.precision == "fp8" and not use_fp8(model):
        raise ValueError("this GPU has no FP8 units as Hopper has; run fp8-memory with --device cpu")
    world = World(0, 1, device)
    optimizer = OptimizerConfig(lr=1e-3, moments=way.moments)
    state = TrainState.start(model, optimizer)
    kept_of_one, kept_of_two = (_pass(model, rows, size, world)[0] for rows in (1, 2))
    model.zero_grad(set_to_none=True)
    _, parts, loads = _pass(model, 2, size, world)
    gradients = sum(w.grad.nbytes for w in model.parameters() if w.grad is not None)
    sum_over_world(model, parts, loads, world)
    update(state, parts, loads, Rates(lr=optimizer.lr, clip_norm=1.0, bias_speed=0.0), world)
    tensors = [value for of_weight in state.optimizer.state.values() for value in of_weight.values()]
    return {
        "weights": sum(w.nbytes for w in model.parameters()),
        "copies": _copies(model, way),
        "gradients": gradients,
        "moments": sum(t.nbytes for t in tensors if isinstance(t, Tensor) and t.ndim),  # not the count of steps
        "activations": (kept_of_two - kept_of_one) / SEQ_LEN[size],
    }


def _pass(model: Transformer, rows: int, size: Size, world: World) -> tuple[int, dict[str, Tensor], list[Tensor]]:
    """Bytes kept by a forward pass for its backward pass, which follows; parts of the loss, and loads."""
    own = {w.untyped_storage().data_ptr() for w in model.parameters()}
    kept: dict[int, Tensor] = {}  # alive, so that no storage takes the place of another

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    batch = _rows(rows, SEQ_LEN[size])
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast(world.device.type, torch.bfloat16),
    ):
        losses = language_losses(model, batch, Denominators.of([batch], 0, world), 0.0, world.device)
    found = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    losses.total.backward()
    return found, losses.parts, losses.loads


def _rows(rows: int, seq_len: int) -> Batch:
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, (rows, seq_len + 1))
    places = np.tile(np.arange(seq_len), (rows, 1))
    ones = np.ones((rows, seq_len), np.float32)
    return Batch(tokens[:, :-1], tokens[:, 1:], ones, places, np.zeros((rows, seq_len), np.int64))


def _copies(model: Transformer, way: Format) -> int:
    """What products read of the weights of linear maps beside the head: a BF16 copy, or codes in both layouts."""
    layers = [(name, m) for name, m in model.named_modules() if isinstance(m, Linear) and name != "head"]
    if way.precision == "bf16":
        return sum(2 * layer.weight.numel() for _, layer in layers)
    codes = (part for _, layer in layers if layer.fp8 for part in layer.fp8.codes(layer.weight))
    return sum(part.nbytes for part in codes)


def planned(way: Format, size: Size) -> dict[str, float]:
    """The planner's bytes of gradients and moments for the same model on one device."""
    optimizer = "adamw" if way.moments == "float32" else "adamw_bf16"
    needed = memory(shape(size), Layout(precision=way.precision, optimizer=optimizer), SEQ_LEN[size])
    return {"gradients": needed.gradients, "moments": needed.optimizer}


def conclude(seeds: Sequence[Figures]) -> Result:
    """Supported where moments take half, and activations clearly less."""
    (found,) = seeds
    sizes, parameters = found["bytes"], found["parameters"]
    plain, moments, fp8 = sizes.values()
    half = moments["moments"] / plain["moments"]
    kept = fp8["activations"] / moments["activations"]
    return Result(
        measured=f"moments {half:.2f} of their bytes in BF16; activations {kept:.2f} of BF16's in FP8; copies of "
        f"weights {fp8['copies'] / moments['copies']:.2f}",
        verdict=all_of(above(exact(NEAR - abs(half - HALF))), below(exact(kept), LESS_KEPT)),
        because=f"moments are to take {HALF} of their bytes within {NEAR}, and activations less than {LESS_KEPT} of "
        "BF16's; counted on tensors, no interval",
        headings=("format", *(f"{part}, B a {'token' if part == 'activations' else 'weight'}" for part in PARTS)),
        rows=[
            (
                name,
                *(f"{of[part] / parameters:.2f}" for part in PARTS[:-1]),
                f"{of['activations']:,.0f}",
            )
            for name, of in sizes.items()
        ],
        charts=[
            _bars(
                "State of a weight",
                "bytes a weight",
                {n: sum(of[p] for p in PARTS[:-1]) / parameters for n, of in sizes.items()},
            ),
            _bars("Kept for the backward pass", "bytes a token", {n: of["activations"] for n, of in sizes.items()}),
        ],
        figures={"moments": half, "activations": kept, "copies": fp8["copies"] / moments["copies"]},
    )


def _bars(title: str, axis: str, values: dict[str, float]) -> Bars:
    return Bars(
        title=title,
        caption="Counted on the tensors of one step.",
        axis=axis,
        bars={name: (value, value, value) for name, value in values.items()},
    )


EXPERIMENT = Experiment(
    name="fp8-memory",
    title="What a step keeps, by format",
    claim=Claim(
        says="AdamW's moments in BF16 and activations kept in FP8 cut the memory of training; masters and gradients "
        "stay in FP32.",
        source="DeepSeek-V3 3.3.3",
        published="no figure: formats are named, not the bytes they save",
        conditions="V3's own framework, which also recomputes norms, SwiGLU and the expansion of latents",
    ),
    variants=variants,
    changes=frozenset({"precision", "moments"}),
    minutes={"toy": 0.01, "cpu": 0.2, "gpu": 0.2},
    seeds=1,
    measure=measure,
    conclude=conclude,
    shows="the bytes that real tensors of one step take in each format. Codes of weights are kept in two layouts, so "
    "that they take as much as a BF16 copy.",
    does_not_show="the peak of a step on a GPU, whose allocator and kernels keep other things than a CPU's; experts, "
    "whose inputs V3 keeps in FP8 too; or what recomputation saves on top.",
)
