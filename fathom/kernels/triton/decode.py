"""The twins of a decoding step's pieces. Every kernel may be launched while the one before it still runs."""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from fathom.kernels.triton.linear import _silu, launch, overlaps, precision, row_block

# Up to E choices of experts in all, each token reads its own; with more, experts gather their tokens.
# Tiles that were fastest on an H200.
ABSORB = {"BLOCK_RANK": 32, "num_warps": 4}
UP_BY_TOKEN = {"BLOCK_M": 4, "BLOCK_D": 1024, "num_warps": 4}
UP_BY_EXPERT = {"BLOCK_M": 64, "BLOCK_D": 64, "num_warps": 4, "num_stages": 3}
DOWN_BY_TOKEN = {"BLOCK_O": 8, "BLOCK_M": 512, "num_warps": 4}
DOWN_BY_EXPERT = {"BLOCK_O": 64, "BLOCK_M": 64, "num_warps": 8, "num_stages": 2}


def norm_linear(x: Tensor, gain: Tensor, eps: float, weight: Tensor, second: Tensor | None = None) -> Tensor:
    outputs = weight.shape[0] + (0 if second is None else second.shape[0])
    out = torch.empty(x.shape[0], outputs, dtype=torch.float32, device=x.device)
    launch(x, weight, out, gain=gain, second=second, eps=eps)
    return out


def linear(x: Tensor, weight: Tensor) -> Tensor:
    out = torch.empty(x.shape[0], weight.shape[0], dtype=torch.float32, device=x.device)
    launch(x, weight, out)
    return out


def add_linear_(x: Tensor, inner: Tensor, weight: Tensor) -> None:
    launch(inner, weight, x, add=True)


def add_swiglu_(x: Tensor, gate_up: Tensor, weight: Tensor) -> None:
    launch(gate_up, weight, x, swiglu=True, add=True)


def expand_value(context: Tensor, w_kv: Tensor, nope: int) -> Tensor:
    rows, heads, rank = context.shape
    value = w_kv[:, nope:]
    out = torch.empty(rows, heads * value.shape[1], dtype=context.dtype, device=context.device)
    launch(context.view(rows, -1), value, out, heads=(heads, rank, w_kv.stride(0), value.shape[1]))
    return out


@triton.jit
def _absorb(
    q, kv, kv_gain, w_kv, turns, place, table, pages, out,
    rows, q_row, kv_row, w_head, table_row, tokens, eps,
    HEADS: tl.constexpr, NOPE: tl.constexpr, ROPE: tl.constexpr, RANK: tl.constexpr, PAGE: tl.constexpr,
    BLOCK_NOPE: tl.constexpr, BLOCK_RANK: tl.constexpr, ALL_RANK: tl.constexpr, BLOCK_F: tl.constexpr,
    BLOCK_N: tl.constexpr, PRECISION: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """A tile of one head's latent query, the rotated part beside the first tile; the last program writes latents."""
    tiles: tl.constexpr = (RANK + BLOCK_RANK - 1) // BLOCK_RANK
    WIDTH: tl.constexpr = RANK + ROPE
    program = tl.program_id(0)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    f = tl.arange(0, BLOCK_F)
    live = n < rows
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    at = tl.load(place + n, mask=live, other=-1)
    pair = (live & (at >= 0))[:, None] & (f[None, :] < ROPE // 2)
    turn = turns + at[:, None] * ROPE + 2 * f[None, :]
    if program < HEADS * tiles:
        head, tile = program // tiles, program % tiles
        d = tl.arange(0, BLOCK_NOPE)
        r = tile * BLOCK_RANK + tl.arange(0, BLOCK_RANK)
        w = tl.load(
            w_kv + head * w_head + d[:, None] * RANK + r[None, :],
            mask=(d[:, None] < NOPE) & (r[None, :] < RANK), other=0.0,
        )  # fmt: skip
        q_at = q + n[:, None] * q_row + head * (NOPE + ROPE)
        v = tl.load(q_at + d[None, :], mask=live[:, None] & (d[None, :] < NOPE), other=0.0)
        if BLOCK_N == 1:
            total = tl.sum(tl.trans(v.to(tl.float32)) * w.to(tl.float32), 0)[None, :]
        else:
            total = tl.dot(v.to(w.dtype), w, input_precision=PRECISION)
        out_at = out + n[:, None] * (HEADS * WIDTH) + head * WIDTH
        tl.store(out_at + r[None, :], total.to(out.dtype.element_ty), mask=live[:, None] & (r[None, :] < RANK))
        if tile == 0:
            cos = tl.load(turn, mask=pair, other=0.0)
            sin = tl.load(turn + 1, mask=pair, other=0.0)
            even = tl.load(q_at + NOPE + 2 * f[None, :], mask=pair, other=0.0).to(tl.float32)
            odd = tl.load(q_at + NOPE + 2 * f[None, :] + 1, mask=pair, other=0.0).to(tl.float32)
            turned = out_at + RANK + 2 * f[None, :]
            tl.store(turned, (even * cos - odd * sin).to(out.dtype.element_ty), mask=pair)
            tl.store(turned + 1, (even * sin + odd * cos).to(out.dtype.element_ty), mask=pair)
    else:
        c = tl.arange(0, ALL_RANK)
        busy = live & (at >= 0)
        kv_at = kv + n[:, None] * kv_row
        latent = tl.load(kv_at + c[None, :], mask=busy[:, None] & (c[None, :] < RANK), other=0.0).to(tl.float32)
        latent *= tl.rsqrt(tl.sum(latent * latent, 1) / RANK + eps)[:, None]
        latent *= tl.load(kv_gain + c, mask=c < RANK, other=0.0).to(tl.float32)[None, :]
        page = tl.load(table + n // tokens * table_row + at // PAGE, mask=busy, other=0).to(tl.int64)
        entry = pages + ((page * PAGE + at % PAGE) * WIDTH)[:, None]
        tl.store(entry + c[None, :], latent.to(pages.dtype.element_ty), mask=busy[:, None] & (c[None, :] < RANK))
        key_cos = tl.load(turn, mask=pair, other=0.0)
        key_sin = tl.load(turn + 1, mask=pair, other=0.0)
        key_even = tl.load(kv_at + RANK + 2 * f[None, :], mask=pair, other=0.0).to(tl.float32)
        key_odd = tl.load(kv_at + RANK + 2 * f[None, :] + 1, mask=pair, other=0.0).to(tl.float32)
        key = entry + RANK + 2 * f[None, :]
        tl.store(key, (key_even * key_cos - key_odd * key_sin).to(pages.dtype.element_ty), mask=pair)
        tl.store(key + 1, (key_even * key_sin + key_odd * key_cos).to(pages.dtype.element_ty), mask=pair)


def absorb_query(
    q: Tensor,
    kv: Tensor,
    kv_gain: Tensor,
    eps: float,
    w_kv: Tensor,
    turns: Tensor,
    place: Tensor,
    table: Tensor,
    pages: Tensor,
) -> Tensor:
    rows, (heads, _, rank), rope = len(q), w_kv.shape, 2 * turns.shape[1]
    nope = q.shape[1] // heads - rope
    out = torch.empty(rows, heads, rank + rope, dtype=pages.dtype, device=q.device)
    block_n = row_block(rows)
    grid = (heads * triton.cdiv(rank, ABSORB["BLOCK_RANK"]) + 1, triton.cdiv(rows, block_n))
    pdl = overlaps(q)
    _absorb[grid](
        q, kv, kv_gain, w_kv, turns, place, table, pages, out,
        rows, q.stride(0), kv.stride(0), w_kv.stride(0), table.stride(0), rows // len(table), eps,
        HEADS=heads, NOPE=nope, ROPE=rope, RANK=rank, PAGE=pages.shape[1],
        BLOCK_NOPE=max(16, triton.next_power_of_2(nope)),
        ALL_RANK=triton.next_power_of_2(rank), BLOCK_F=triton.next_power_of_2(rope // 2),
        BLOCK_N=block_n, PRECISION=precision(w_kv), PDL=pdl, launch_pdl=pdl, **ABSORB,
    )  # fmt: skip
    return out


@triton.jit
def _route(
    logits, bias, experts, weights, logits_row, scale,
    K: tl.constexpr, GROUPS: tl.constexpr, SIZE: tl.constexpr, KEPT: tl.constexpr,
    SIGMOID: tl.constexpr, BIASED: tl.constexpr, NORMALISE: tl.constexpr,
    BLOCK_G: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_K: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """The experts of one token: groups in rows, so that a group's best are found side by side."""
    row = tl.program_id(0)
    g, s, k = tl.arange(0, BLOCK_G), tl.arange(0, BLOCK_S), tl.arange(0, BLOCK_K)
    e = g[:, None] * SIZE + s[None, :]
    real = (g[:, None] < GROUPS) & (s[None, :] < SIZE)
    lift = tl.load(bias + e, mask=real, other=0.0) if BIASED else 0.0
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    x = tl.load(logits + row * logits_row + e, mask=real, other=-float("inf")).to(tl.float32)
    if SIGMOID:
        scores = 1 / (1 + tl.exp(-x))
    else:
        scores = tl.exp(x - tl.max(x))
        scores /= tl.sum(scores)
    choice = tl.where(real, scores + lift, -float("inf"))
    if KEPT < GROUPS:
        worth = tl.max(choice, 1)
        if BIASED:  # the sum of the best two
            first = tl.argmax(choice, 1)
            worth += tl.max(tl.where(s[None, :] == first[:, None], -float("inf"), choice), 1)
        kept = g < 0
        for _ in tl.static_range(KEPT):
            best = tl.argmax(worth, 0)
            kept = kept | (g == best)
            worth = tl.where(g == best, -float("inf"), worth)
        choice = tl.where(kept[:, None], choice, -float("inf"))
    flat = tl.reshape(choice, (BLOCK_G * BLOCK_S,))
    score = tl.reshape(scores, (BLOCK_G * BLOCK_S,))
    number = tl.reshape(e, (BLOCK_G * BLOCK_S,))
    index = tl.arange(0, BLOCK_G * BLOCK_S)
    chosen = tl.zeros((BLOCK_K,), tl.int32)
    gate = tl.zeros((BLOCK_K,), tl.float32)
    for j in tl.static_range(K):
        here = index == tl.argmax(flat, 0)
        chosen = tl.where(k == j, tl.sum(tl.where(here, number, 0)), chosen)
        gate = tl.where(k == j, tl.sum(tl.where(here, score, 0.0)), gate)
        flat = tl.where(here, -float("inf"), flat)
    if NORMALISE:
        gate /= tl.sum(gate) + 1e-20
    tl.store(experts + row * K + k, chosen, mask=k < K)
    tl.store(weights + row * K + k, gate * scale, mask=k < K)


def route(
    logits: Tensor,
    bias: Tensor,
    k: int,
    scoring: str,
    biased: bool,
    n_group: int,
    topk_group: int,
    normalise: bool,
    scale: float,
) -> tuple[Tensor, Tensor]:
    rows, n_experts = logits.shape
    experts = torch.empty(rows, k, dtype=torch.int32, device=logits.device)
    weights = torch.empty(rows, k, dtype=torch.float32, device=logits.device)
    pdl = overlaps(logits)
    _route[(rows,)](
        logits, bias, experts, weights, logits.stride(0), scale,
        K=k, GROUPS=n_group, SIZE=n_experts // n_group, KEPT=topk_group,
        SIGMOID=scoring == "sigmoid", BIASED=biased, NORMALISE=normalise,
        BLOCK_G=triton.next_power_of_2(n_group), BLOCK_S=triton.next_power_of_2(n_experts // n_group),
        BLOCK_K=triton.next_power_of_2(k), PDL=pdl, launch_pdl=pdl, num_warps=1 if n_experts <= 128 else 4,
    )  # fmt: skip
    return experts, weights


@triton.jit
def _up_by_token(
    x, gain, experts, weights, gate_up, inner, x_row, width, eps,
    K: tl.constexpr, M: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """A tile of one token's one expert."""
    slot = tl.program_id(0)
    m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    d = tl.arange(0, BLOCK_D)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    expert = tl.load(experts + slot).to(tl.int64)
    w_at = gate_up + (expert * 2 * M + m[:, None]) * width + d[None, :]
    x += slot // K * x_row
    gate = tl.zeros((BLOCK_M,), tl.float32)
    up = tl.zeros((BLOCK_M,), tl.float32)
    square = 0.0
    for start in tl.range(0, width, BLOCK_D):
        inside = start + d < width
        read = (m[:, None] < M) & inside[None, :]
        w_gate = tl.load(w_at + start, mask=read, other=0.0).to(tl.float32)
        w_up = tl.load(w_at + M * width + start, mask=read, other=0.0).to(tl.float32)
        v = tl.load(x + start + d, mask=inside, other=0.0).to(tl.float32)
        square += tl.sum(v * v)
        v *= tl.load(gain + start + d, mask=inside, other=0.0).to(tl.float32)
        gate += tl.sum(w_gate * v[None, :], 1)
        up += tl.sum(w_up * v[None, :], 1)
    norm = tl.rsqrt(square / width + eps)
    result = _silu(gate * norm) * (up * norm) * tl.load(weights + slot)
    tl.store(inner + slot * M + m, result.to(inner.dtype.element_ty), mask=m < M)


@triton.jit
def _group(experts, members, counts, slots, BLOCK: tl.constexpr, PDL: tl.constexpr):
    """The slots that chose one expert, in their order: each slot is one choice of one token."""
    expert = tl.program_id(0)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    count = 0
    for start in tl.range(0, slots, BLOCK):
        slot = start + tl.arange(0, BLOCK)
        mine = (tl.load(experts + slot, mask=slot < slots, other=-1) == expert).to(tl.int32)
        tl.store(members + expert * slots + count + tl.cumsum(mine, 0) - mine, slot, mask=mine > 0)
        count += tl.sum(mine)
    tl.store(counts + expert, count)


def _grouped(experts: Tensor, n_experts: int) -> tuple[Tensor, Tensor]:
    """Members (E, N*K) and their counts (E,)."""
    slots, pdl = experts.numel(), overlaps(experts)
    members = torch.empty(n_experts, slots, dtype=torch.int32, device=experts.device)
    counts = torch.empty(n_experts, dtype=torch.int32, device=experts.device)
    block = min(1024, triton.next_power_of_2(slots))
    _group[(n_experts,)](experts, members, counts, slots, BLOCK=block, PDL=pdl, launch_pdl=pdl, num_warps=4)
    return members, counts


@triton.jit
def _up_by_expert(
    x, gain, members, counts, weights, gate_up, inner, slots, x_row, width, eps,
    K: tl.constexpr, M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr, PRECISION: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """A tile of one expert for all tokens that chose it."""
    expert = tl.program_id(0)
    m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    d = tl.arange(0, BLOCK_D)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    count = tl.load(counts + expert)
    w_at = gate_up + (expert.to(tl.int64) * 2 * M + m[:, None]) * width + d[None, :]
    for first in tl.range(0, count, BLOCK_N):
        j = first + tl.arange(0, BLOCK_N)
        own = tl.load(members + expert * slots + j, mask=j < count, other=0)
        x_at = x + (own // K)[:, None] * x_row + d[None, :]
        gate = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
        up = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
        square = tl.zeros((BLOCK_N,), tl.float32)
        for start in tl.range(0, width, BLOCK_D):
            inside = start + d < width
            read = (m[:, None] < M) & inside[None, :]
            w_gate = tl.load(w_at + start, mask=read, other=0.0)
            w_up = tl.load(w_at + M * width + start, mask=read, other=0.0)
            v = tl.load(x_at + start, mask=(j[:, None] < count) & inside[None, :], other=0.0).to(tl.float32)
            square += tl.sum(v * v, 1)
            v *= tl.load(gain + start + d, mask=inside, other=0.0).to(tl.float32)[None, :]
            v = v.to(w_gate.dtype)
            gate = tl.dot(v, tl.trans(w_gate), gate, input_precision=PRECISION)
            up = tl.dot(v, tl.trans(w_up), up, input_precision=PRECISION)
        norm = tl.rsqrt(square / width + eps)[:, None]
        result = _silu(gate * norm) * (up * norm) * tl.load(weights + own)[:, None]
        write = (j[:, None] < count) & (m[None, :] < M)
        tl.store(inner + own[:, None] * M + m[None, :], result.to(inner.dtype.element_ty), mask=write)


def _token_block(slots: int, n_experts: int) -> int:
    """Tokens of one tile, near what an expert has."""
    return min(64, max(16, triton.next_power_of_2(slots // n_experts)))


@triton.jit
def _down_by_token(
    x, inner, experts, down, shared_gate_up, shared_down, width, x_row, shared_row, shared_width,
    K: tl.constexpr, M: tl.constexpr, SHARED: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_M: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """A tile of one token's sum over its experts, in their order, and onto the residual stream."""
    row = tl.program_id(0)
    o = tl.program_id(1) * BLOCK_O + tl.arange(0, BLOCK_O)
    m = tl.arange(0, BLOCK_M)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    total = tl.zeros((BLOCK_O,), tl.float32)
    for k in tl.static_range(K):
        expert = tl.load(experts + row * K + k).to(tl.int64)
        for start in tl.range(0, M, BLOCK_M):
            inside = start + m < M
            w = tl.load(
                down + (expert * width + o[:, None]) * M + start + m[None, :],
                mask=(o[:, None] < width) & inside[None, :], other=0.0,
            )  # fmt: skip
            v = tl.load(inner + (row * K + k) * M + start + m, mask=inside, other=0.0)
            total += tl.sum(w.to(tl.float32) * v.to(tl.float32)[None, :], 1)
    if SHARED:
        for start in tl.range(0, shared_width, BLOCK_M):
            inside = start + m < shared_width
            at = shared_gate_up + row * shared_row + start + m
            w = tl.load(
                shared_down + o[:, None] * shared_width + start + m[None, :],
                mask=(o[:, None] < width) & inside[None, :], other=0.0,
            )  # fmt: skip
            v = _silu(tl.load(at, mask=inside, other=0.0)) * tl.load(at + shared_width, mask=inside, other=0.0)
            total += tl.sum(w.to(tl.float32) * v[None, :], 1)
    x += row * x_row + o
    total += tl.load(x, mask=o < width, other=0.0).to(tl.float32)
    tl.store(x, total.to(x.dtype.element_ty), mask=o < width)


@triton.jit
def _down_by_expert(
    inner, members, counts, down, partial, slots, width,
    M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_M: tl.constexpr,
    PRECISION: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """A tile of one expert's outputs for all tokens that chose it, each in its own slot."""
    expert = tl.program_id(0)
    o = tl.program_id(1) * BLOCK_O + tl.arange(0, BLOCK_O)
    m = tl.arange(0, BLOCK_M)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    count = tl.load(counts + expert)
    w_at = down + (expert.to(tl.int64) * width + o[:, None]) * M + m[None, :]
    for first in tl.range(0, count, BLOCK_N):
        j = first + tl.arange(0, BLOCK_N)
        own = tl.load(members + expert * slots + j, mask=j < count, other=0)
        total = tl.zeros((BLOCK_N, BLOCK_O), tl.float32)
        for start in tl.range(0, M, BLOCK_M):
            inside = start + m < M
            w = tl.load(w_at + start, mask=(o[:, None] < width) & inside[None, :], other=0.0)
            v = tl.load(
                inner + own[:, None] * M + start + m[None, :], mask=(j[:, None] < count) & inside[None, :], other=0.0
            )
            total = tl.dot(v, tl.trans(w), total, input_precision=PRECISION)
        write = (j[:, None] < count) & (o[None, :] < width)
        tl.store(partial + own[:, None] * width + o[None, :], total, mask=write)


@triton.jit
def _add_slots(x, partial, x_row, width, K: tl.constexpr, BLOCK_O: tl.constexpr, PDL: tl.constexpr):
    """x += the sum over a token's slots, in their order."""
    row = tl.program_id(0)
    o = tl.program_id(1) * BLOCK_O + tl.arange(0, BLOCK_O)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    total = tl.zeros((BLOCK_O,), tl.float32)
    for k in tl.static_range(K):
        total += tl.load(partial + (row * K + k) * width + o, mask=o < width, other=0.0)
    x += row * x_row + o
    total += tl.load(x, mask=o < width, other=0.0).to(tl.float32)
    tl.store(x, total.to(x.dtype.element_ty), mask=o < width)


def add_experts_(
    x: Tensor,
    gain: Tensor,
    eps: float,
    experts: Tensor,
    weights: Tensor,
    gate_up: Tensor,
    down: Tensor,
    shared_gate_up: Tensor | None = None,
    shared_down: Tensor | None = None,
    gather: bool | None = None,
) -> None:
    (rows, k), (n_experts, width, size) = experts.shape, down.shape
    inner = torch.empty(rows, k, size, dtype=gate_up.dtype, device=x.device)
    if rows * k <= n_experts if gather is None else not gather:
        _up_one(x, gain, eps, experts, weights, gate_up, inner)
        _down_one(x, inner, experts, down, shared_gate_up, shared_down)
        return
    slots, pdl = rows * k, overlaps(x)
    members = torch.empty(n_experts, slots, dtype=torch.int32, device=x.device)
    counts = torch.empty(n_experts, dtype=torch.int32, device=x.device)
    partial = torch.empty(slots, width, dtype=torch.float32, device=x.device)
    block = min(1024, triton.next_power_of_2(slots))
    _group[(n_experts,)](experts, members, counts, slots, BLOCK=block, PDL=pdl, launch_pdl=pdl, num_warps=4)
    # near what an expert has; always the same where `gather` was asked for, since tiles round differently
    block_n = 16 if gather else min(64, max(16, triton.next_power_of_2(slots // n_experts)))
    shape = {"BLOCK_N": block_n, "PRECISION": precision(down), "PDL": pdl, "launch_pdl": pdl}
    _up_by_expert[(n_experts, triton.cdiv(size, UP_BY_EXPERT["BLOCK_M"]))](
        x, gain, members, counts, weights, gate_up, inner, slots, x.stride(0), width, eps, K=k, M=size,
        **shape, **UP_BY_EXPERT,
    )  # fmt: skip
    _down_by_expert[(n_experts, triton.cdiv(width, DOWN_BY_EXPERT["BLOCK_O"]))](
        inner, members, counts, down, partial, slots, width, M=size, **shape, **DOWN_BY_EXPERT
    )
    if shared_gate_up is not None and shared_down is not None:
        add_swiglu_(x, shared_gate_up, shared_down)
    _add_slots[(rows, triton.cdiv(width, 512))](
        x, partial, x.stride(0), width, K=k, BLOCK_O=512, PDL=pdl, launch_pdl=pdl, num_warps=4
    )


def _up_one(
    x: Tensor, gain: Tensor, eps: float, experts: Tensor, weights: Tensor, gate_up: Tensor, inner: Tensor
) -> None:
    width, (_, k, size), pdl = x.shape[1], inner.shape, overlaps(x)
    sizes = UP_BY_TOKEN | {"BLOCK_D": min(UP_BY_TOKEN["BLOCK_D"], triton.next_power_of_2(width))}
    _up_by_token[(experts.numel(), triton.cdiv(size, sizes["BLOCK_M"]))](
        x, gain, experts, weights, gate_up, inner, x.stride(0), width, eps, K=k, M=size,
        PDL=pdl, launch_pdl=pdl, **sizes,
    )  # fmt: skip


def _down_one(
    x: Tensor,
    inner: Tensor,
    experts: Tensor,
    down: Tensor,
    shared_gate_up: Tensor | None,
    shared_down: Tensor | None,
) -> None:
    (rows, k, size), width, pdl = inner.shape, x.shape[1], overlaps(x)
    shared = shared_gate_up is not None and shared_down is not None
    gates, back = (shared_gate_up, shared_down) if shared else (inner, down)
    sizes = DOWN_BY_TOKEN | {"BLOCK_M": min(DOWN_BY_TOKEN["BLOCK_M"], triton.next_power_of_2(size))}
    _down_by_token[(rows, triton.cdiv(width, sizes["BLOCK_O"]))](
        x, inner, experts, down, gates, back, width, x.stride(0), gates.stride(0), back.shape[1],
        K=k, M=size, SHARED=shared, PDL=pdl, launch_pdl=pdl, **sizes,
    )  # fmt: skip
