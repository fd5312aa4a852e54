"""The twins of a decoding step's pieces. Every kernel may be launched while the one before it still runs."""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from fathom.kernels import latents, quant
from fathom.kernels.triton.attention import split_pages
from fathom.kernels.triton.experts import add_experts_ as add_experts_
from fathom.kernels.triton.linear import launch, overlaps, precision, row_block

AMAX_FLOOR = tl.constexpr(latents.AMAX_FLOOR)
E4M3_MAX = tl.constexpr(quant.E4M3_MAX)
ABSORB = {"BLOCK_RANK": 32, "num_warps": 4}  # the tile that was fastest on an H200


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
    q, kv, kv_gain, w_kv, turns, place, table, pages, ropes, units, out,
    rows, q_row, kv_row, w_head, table_row, tokens, eps,
    HEADS: tl.constexpr, NOPE: tl.constexpr, ROPE: tl.constexpr, RANK: tl.constexpr, PAGE: tl.constexpr,
    TOKEN: tl.constexpr, PACKED: tl.constexpr, BLOCK_NOPE: tl.constexpr, BLOCK_RANK: tl.constexpr,
    ALL_RANK: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_N: tl.constexpr, PRECISION: tl.constexpr, PDL: tl.constexpr,
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
        entry = page * PAGE + at % PAGE
        codes = latent
        if PACKED:
            unit = tl.div_rn(tl.maximum(tl.max(tl.abs(latent), 1), AMAX_FLOOR), E4M3_MAX)
            tl.store(units + entry * (TOKEN // 4), unit, mask=busy)
            codes = tl.div_rn(latent, tl.broadcast_to(unit[:, None], latent.shape)).to(tl.float8e4nv)
            codes = codes.to(tl.uint8, bitcast=True)
        inside = busy[:, None] & (c[None, :] < RANK)
        tl.store(pages + (entry * TOKEN)[:, None] + c[None, :], codes.to(pages.dtype.element_ty), mask=inside)
        key_cos = tl.load(turn, mask=pair, other=0.0)
        key_sin = tl.load(turn + 1, mask=pair, other=0.0)
        key_even = tl.load(kv_at + RANK + 2 * f[None, :], mask=pair, other=0.0).to(tl.float32)
        key_odd = tl.load(kv_at + RANK + 2 * f[None, :] + 1, mask=pair, other=0.0).to(tl.float32)
        key = ropes + (entry * (TOKEN // 2 if PACKED else TOKEN))[:, None] + 2 * f[None, :]
        tl.store(key, (key_even * key_cos - key_odd * key_sin).to(ropes.dtype.element_ty), mask=pair)
        tl.store(key + 1, (key_even * key_sin + key_odd * key_cos).to(ropes.dtype.element_ty), mask=pair)


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
    out = torch.empty(rows, heads, rank + rope, dtype=w_kv.dtype, device=q.device)
    ropes, units = split_pages(pages, rank, rope)
    block_n = row_block(rows)
    grid = (heads * triton.cdiv(rank, ABSORB["BLOCK_RANK"]) + 1, triton.cdiv(rows, block_n))
    pdl = overlaps(q)
    _absorb[grid](
        q, kv, kv_gain, w_kv, turns, place, table, pages, ropes, units, out,
        rows, q.stride(0), kv.stride(0), w_kv.stride(0), table.stride(0), rows // len(table), eps,
        HEADS=heads, NOPE=nope, ROPE=rope, RANK=rank, PAGE=pages.shape[1], TOKEN=pages.shape[2],
        PACKED=pages.dtype == torch.uint8, BLOCK_NOPE=max(16, triton.next_power_of_2(nope)),
        ALL_RANK=triton.next_power_of_2(rank), BLOCK_F=triton.next_power_of_2(rope // 2),
        BLOCK_N=block_n, PRECISION=precision(w_kv), PDL=pdl, launch_pdl=pdl, **ABSORB,
    )  # fmt: skip
    return out


@triton.jit
def _turn_heads(
    q, k, v, q_bias, k_bias, v_bias, q_gain, k_gain, turns, place, table, pages, out,
    rows, q_row, k_row, v_row, table_row, tokens, eps,
    HEADS: tl.constexpr, GROUPS: tl.constexpr, HALF: tl.constexpr, PAGE: tl.constexpr,
    BIASED: tl.constexpr, NORMED: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """One head of q, k or v for a block of tokens, in two halves."""
    SIZE: tl.constexpr = 2 * HALF
    head = tl.program_id(0)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    f = tl.arange(0, BLOCK_F)
    at = tl.load(place + n, mask=n < rows, other=-1)
    busy = (n < rows) & (at >= 0)
    pair = busy[:, None] & (f < HALF)[None, :]
    if head < HEADS:
        source, bias, gain = q + head * SIZE + n[:, None] * q_row, q_bias + head * SIZE, q_gain
    elif head < HEADS + GROUPS:
        source, bias, gain = k + (head - HEADS) * SIZE + n[:, None] * k_row, k_bias + (head - HEADS) * SIZE, k_gain
    else:
        value = head - HEADS - GROUPS
        source, bias, gain = v + value * SIZE + n[:, None] * v_row, v_bias + value * SIZE, k_gain
    first = tl.load(source + f[None, :], mask=pair, other=0.0).to(tl.float32)
    second = tl.load(source + HALF + f[None, :], mask=pair, other=0.0).to(tl.float32)
    if BIASED:
        first += tl.load(bias + f, mask=f < HALF, other=0.0).to(tl.float32)[None, :]
        second += tl.load(bias + HALF + f, mask=f < HALF, other=0.0).to(tl.float32)[None, :]
    if head < HEADS + GROUPS:
        if NORMED:
            square = tl.sum(tl.where(pair, first * first + second * second, 0.0), 1)
            unit = tl.rsqrt(square / SIZE + eps)[:, None]
            first *= unit * tl.load(gain + f, mask=f < HALF, other=0.0).to(tl.float32)[None, :]
            second *= unit * tl.load(gain + HALF + f, mask=f < HALF, other=0.0).to(tl.float32)[None, :]
        turn = turns + at[:, None] * SIZE + 2 * f[None, :]
        cos = tl.load(turn, mask=pair, other=0.0)
        sin = tl.load(turn + 1, mask=pair, other=0.0)
        turned = first * cos - second * sin
        second = second * cos + first * sin
        first = turned
    if head < HEADS:
        target = out + ((n * HEADS + head) * SIZE)[:, None]
    else:
        page = tl.load(table + n // tokens * table_row + at // PAGE, mask=busy, other=0).to(tl.int64)
        target = pages + ((page * PAGE + at % PAGE) * (2 * GROUPS * SIZE) + (head - HEADS) * SIZE)[:, None]
    tl.store(target + f[None, :], first.to(out.dtype.element_ty), mask=pair)
    tl.store(target + HALF + f[None, :], second.to(out.dtype.element_ty), mask=pair)


def turn_heads(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    biases: tuple[Tensor, Tensor, Tensor] | None,
    gains: tuple[Tensor, Tensor] | None,
    eps: float,
    turns: Tensor,
    place: Tensor,
    table: Tensor,
    pages: Tensor,
) -> Tensor:
    rows, half = len(q), turns.shape[1]
    heads, groups = q.shape[1] // (2 * half), k.shape[1] // (2 * half)
    out = torch.zeros(rows, heads, 2 * half, dtype=pages.dtype, device=q.device)  # idle rows are read, too
    block_n = 1 if rows == 1 else 16
    _turn_heads[(heads + 2 * groups, triton.cdiv(rows, block_n))](
        q, k, v, *(biases or (q, k, v)), *(gains or (q, k)), turns, place, table, pages, out,
        rows, q.stride(0), k.stride(0), v.stride(0), table.stride(0), rows // len(table), eps,
        HEADS=heads, GROUPS=groups, HALF=half, PAGE=pages.shape[1], BIASED=biases is not None, NORMED=gains is not None,
        BLOCK_F=triton.next_power_of_2(half), BLOCK_N=block_n, num_warps=1 if rows == 1 else 4,
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
