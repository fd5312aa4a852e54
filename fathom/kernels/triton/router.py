"""The router behind its product in one kernel each way (twin of `fathom.kernels.router.route`)."""

from typing import Any

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from fathom.kernels.router import Routed

TILE = 2048  # scores of one program


def route(
    logits: Float[Tensor, "N E"],
    bias: Float[Tensor, " E"] | None,
    k: int,
    scoring: str = "sigmoid",
    n_group: int = 1,
    topk_group: int = 1,
    group_top: int = 2,
    normalise: bool = True,
    scale: float = 1.0,
) -> Routed:
    """Twin of the definition of the same name; of equal scores the first expert's counts as better."""
    groups = (n_group, topk_group, group_top) if topk_group < n_group else (1, 1, 1)
    return Routed(*_Route.apply(logits, bias, k, scoring == "sigmoid", groups, normalise, scale))  # pyright: ignore


class _Route(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        bias: Tensor | None,
        k: int,
        sigmoid: bool,
        groups: tuple[int, int, int],
        normalise: bool,
        scale: float,
    ) -> tuple[Tensor, ...]:
        logits = logits.contiguous()
        tokens, n_experts = logits.shape
        n_group, topk_group, group_top = groups
        size = n_experts // n_group
        lanes = triton.next_power_of_2(n_group), triton.next_power_of_2(size)
        rows = max(TILE // (lanes[0] * lanes[1]), 1)
        scores = torch.empty_like(logits, dtype=torch.float32)
        experts = torch.empty(tokens, k, dtype=torch.int64, device=logits.device)
        weights = torch.empty(tokens, k, device=logits.device)
        load = torch.zeros(n_experts, dtype=torch.int32, device=logits.device)
        if tokens:
            _forward[(triton.cdiv(tokens, rows),)](
                logits, logits if bias is None else bias, scores, experts, weights, load, tokens, scale,
                K=k, K_LANES=triton.next_power_of_2(k), BIASED=bias is not None, SIGMOID=sigmoid,
                NORMALISE=normalise, GROUPS=n_group, SIZE=size, GROUP_LANES=lanes[0], SIZE_LANES=lanes[1],
                KEPT=topk_group, GROUP_TOP=group_top, ROWS=rows,
            )  # fmt: skip
        ctx.save_for_backward(scores, experts)
        ctx.options = sigmoid, normalise, scale
        ctx.dtype = logits.dtype
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(experts, load)
        return scores, experts, weights, load

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        scores, experts = ctx.saved_tensors
        sigmoid, normalise, scale = ctx.options
        (tokens, n_experts), k = scores.shape, experts.shape[1]
        of_scores = None if grads[0] is None else grads[0].contiguous()
        of_weights = torch.zeros_like(experts, dtype=torch.float32) if grads[2] is None else grads[2].contiguous()
        out = torch.empty_like(scores)
        if tokens:
            lanes = triton.next_power_of_2(n_experts)
            rows = max(TILE // lanes, 1)
            _backward[(triton.cdiv(tokens, rows),)](
                scores, experts, out if of_scores is None else of_scores, of_weights, out, tokens, n_experts, scale,
                K=k, SCORED=of_scores is not None, SIGMOID=sigmoid, NORMALISE=normalise, LANES=lanes, ROWS=rows,
            )  # fmt: skip
        return out.to(ctx.dtype), None, None, None, None, None, None


@triton.jit
def _in_best_groups(
    choice, GROUPS: tl.constexpr, GROUP_LANES: tl.constexpr, SIZE_LANES: tl.constexpr,
    KEPT: tl.constexpr, GROUP_TOP: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """`choice` with -inf outside each row's best groups."""
    grouped = tl.reshape(choice, (ROWS, GROUP_LANES, SIZE_LANES))
    within = tl.arange(0, SIZE_LANES)[None, None, :]
    group = tl.arange(0, GROUP_LANES)[None, :]
    left = grouped
    score = tl.zeros((ROWS, GROUP_LANES), tl.float32)
    for _ in tl.static_range(GROUP_TOP):
        best = tl.max(left, 2)
        score += best
        first = tl.min(tl.where(left == best[:, :, None], within, SIZE_LANES), 2)
        left = tl.where(within == first[:, :, None], -float("inf"), left)
    score = tl.where(group < GROUPS, score, -float("inf"))
    kept = tl.zeros((ROWS, GROUP_LANES), tl.int32)
    for _ in tl.static_range(KEPT):
        best = tl.max(score, 1)
        first = tl.min(tl.where((score == best[:, None]) & (kept == 0), group, GROUP_LANES), 1)
        kept = tl.where(group == first[:, None], 1, kept)
        score = tl.where(group == first[:, None], -float("inf"), score)
    grouped = tl.where(kept[:, :, None] > 0, grouped, -float("inf"))
    return tl.reshape(grouped, (ROWS, GROUP_LANES * SIZE_LANES))


@triton.jit
def _forward(
    logits, bias, scores, experts, weights, load, tokens, scale,
    K: tl.constexpr, K_LANES: tl.constexpr, BIASED: tl.constexpr, SIGMOID: tl.constexpr, NORMALISE: tl.constexpr,
    GROUPS: tl.constexpr, SIZE: tl.constexpr, GROUP_LANES: tl.constexpr, SIZE_LANES: tl.constexpr,
    KEPT: tl.constexpr, GROUP_TOP: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """ROWS tokens; the best expert is taken K times. Groups stand apart, so that one is a power of two of lanes."""
    token = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    lane = tl.arange(0, GROUP_LANES * SIZE_LANES)
    within = lane % SIZE_LANES
    known = (lane // SIZE_LANES < GROUPS) & (within < SIZE)
    expert = tl.where(known, lane // SIZE_LANES * SIZE + within, GROUPS * SIZE)
    inside = (token < tokens)[:, None] & known[None, :]
    place = token.to(tl.int64)[:, None] * (GROUPS * SIZE) + expert[None, :]
    x = tl.load(logits + place, mask=inside, other=-float("inf")).to(tl.float32)
    if SIGMOID:
        score = 1 / (1 + tl.exp(-x))
    else:
        top = tl.max(x, 1)
        top = tl.where(token < tokens, top, 0.0)
        score = tl.exp(x - top[:, None])
        score /= tl.where(token < tokens, tl.sum(score, 1), 1.0)[:, None]
    tl.store(scores + place, score, mask=inside)
    choice = score
    if BIASED:
        choice += tl.load(bias + expert, mask=known, other=0.0).to(tl.float32)[None, :]
    choice = tl.where(known[None, :], choice, -float("inf"))
    if KEPT < GROUPS:
        choice = _in_best_groups(choice, GROUPS, GROUP_LANES, SIZE_LANES, KEPT, GROUP_TOP, ROWS)
    slot = tl.arange(0, K_LANES)[None, :]
    weight = tl.zeros((ROWS, K_LANES), tl.float32)
    number = tl.zeros((ROWS, K_LANES), tl.int32)
    taken = tl.zeros((ROWS, GROUP_LANES * SIZE_LANES), tl.int32)
    for k in tl.static_range(K):
        best = tl.max(choice, 1)
        at = tl.min(tl.where((choice == best[:, None]) & (taken == 0), expert[None, :], GROUPS * SIZE - 1), 1)
        here = expert[None, :] == at[:, None]
        value = tl.sum(tl.where(here, score, 0.0), 1)
        weight = tl.where(slot == k, value[:, None], weight)
        number = tl.where(slot == k, at[:, None], number)
        taken = tl.where(here, 1, taken)
        choice = tl.where(here, -float("inf"), choice)
    if NORMALISE:
        weight /= (tl.sum(weight, 1) + 1e-20)[:, None]
    out = token.to(tl.int64)[:, None] * K + slot
    wanted = (token < tokens)[:, None] & (slot < K)
    tl.store(experts + out, number.to(tl.int64), mask=wanted)
    tl.store(weights + out, weight * scale, mask=wanted)
    found = tl.sum(tl.where(inside, taken, 0), 0)
    tl.atomic_add(load + expert, found, mask=known & (found > 0), sem="relaxed")


@triton.jit
def _backward(
    scores, experts, of_scores, of_weights, out, tokens, n_experts, scale,
    K: tl.constexpr, SCORED: tl.constexpr, SIGMOID: tl.constexpr, NORMALISE: tl.constexpr,
    LANES: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    expert = tl.arange(0, LANES)[None, :]
    real = token < tokens
    inside = real[:, None] & (expert < n_experts)
    place = token[:, None] * n_experts + expert
    score = tl.load(scores + place, mask=inside, other=0.0)
    total = tl.zeros((ROWS,), tl.float32)
    along = tl.zeros((ROWS,), tl.float32)
    pull = tl.zeros((ROWS, LANES), tl.float32)
    for k in tl.static_range(K):
        at = tl.load(experts + token * K + k, mask=real, other=0)
        wanted = tl.load(of_weights + token * K + k, mask=real, other=0.0) * scale
        here = expert == at[:, None]
        value = tl.sum(tl.where(here, score, 0.0), 1)
        total += value
        along += wanted * value
        pull = tl.where(here, wanted[:, None], pull)
    if NORMALISE:
        total += 1e-20
        chosen = tl.zeros((ROWS, LANES), tl.int32)
        for k in tl.static_range(K):
            at = tl.load(experts + token * K + k, mask=real, other=0)
            chosen = tl.where(expert == at[:, None], 1, chosen)
        pull = tl.where(chosen > 0, (pull - (along / total)[:, None]) / total[:, None], 0.0)
    if SCORED:
        pull += tl.load(of_scores + place, mask=inside, other=0.0)
    if SIGMOID:  # noqa: SIM108 - settled at compile time
        grad = pull * score * (1 - score)
    else:
        grad = score * (pull - tl.sum(pull * score, 1)[:, None])
    tl.store(out + place, grad, mask=inside)
