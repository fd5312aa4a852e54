"""Activations computed again in the backward pass instead of kept (V3 3.2.3)."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import (
    CheckpointPolicy,
    SelectiveCheckpointContext,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from fathom.config import AttentionConfig
from fathom.model.routing import RoutingTrace

Recompute = Literal["none", "selective", "full"]

aten = torch.ops.aten
PRODUCTS = (aten.mm.default, aten.mm.out, aten.addmm.default, aten.bmm.default, aten._scaled_mm.default)
ATTENTION = (
    aten._scaled_dot_product_flash_attention_for_cpu.default,
    aten._scaled_dot_product_flash_attention.default,
    aten._scaled_dot_product_cudnn_attention.default,
    aten._scaled_dot_product_efficient_attention.default,
)


def recomputed(run: Callable[..., Tensor], *args: Any) -> Tensor:
    """`run(*args)`, of which nothing but the arguments is kept; all of it is computed again."""
    return _checkpoint(run, *args)


def recomputed_cheaply(
    run: Callable[..., Tensor], *args: Any, again: frozenset[tuple[int, int]] = frozenset()
) -> Tensor:
    """`run(*args)`, of which the results of products and of the attention are kept and the rest is computed again.

    Products with matrices of the shapes in `again` (inputs, outputs) are not kept either: their results are wider than
    what they come from.
    """
    policy = partial(_keep_products, again)
    return _checkpoint(run, *args, context_fn=partial(create_selective_checkpoint_contexts, policy))


def expansions(config: AttentionConfig) -> frozenset[tuple[int, int]]:
    """Shapes (inputs, outputs) of the matrices that expand latents into queries, keys and values (V2 2.1)."""
    if config.kind != "mla":
        return frozenset()
    heads = config.num_attention_heads
    shapes = {(config.kv_lora_rank, heads * (config.qk_nope_head_dim + config.v_head_dim))}
    if config.q_lora_rank is not None:
        shapes.add((config.q_lora_rank, heads * config.qk_head_dim))
    return frozenset(shapes)


def noted_once(trace: RoutingTrace | None) -> Callable[[], RoutingTrace | None]:
    """Gives `trace` to the first pass, and to those that compute it again one like it whose notes nobody reads."""
    if trace is None:
        return lambda: None
    first, behind = [trace], len(trace.loads)
    replay = None if trace.replay is None else trace.replay[behind:]
    return lambda: first.pop() if first else RoutingTrace(valid=trace.valid, replay=replay)


def _checkpoint(run: Callable[..., Tensor], *args: Any, **options: Any) -> Tensor:
    # nothing here draws random numbers
    return checkpoint(run, *args, use_reentrant=False, preserve_rng_state=False, **options)  # pyright: ignore


def _keep_products(
    again: frozenset[tuple[int, int]], ctx: SelectiveCheckpointContext, op: Any, *args: Any, **_: Any
) -> CheckpointPolicy:
    if op in ATTENTION or (op in PRODUCTS and tuple(args[-1].shape) not in again):
        return CheckpointPolicy.MUST_SAVE
    return CheckpointPolicy.PREFER_RECOMPUTE
