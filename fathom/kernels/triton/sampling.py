"""Drawing tokens where the logits are: the twin of `fathom.infer.sampler.draw_each`, and the book-keeping behind it.

One program a row, and nothing is sorted: the least weight that top-k and top-p keep is found by bisection over the bits
of a float, which grow with it. Every pass over the row reads it from the L2 cache.
"""

import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from fathom.kernels.sampling import DrawState
from fathom.kernels.triton.linear import overlaps

ONE = tl.constexpr(0x3F800000)  # the bits of 1.0, the weight of the likeliest token


@triton.jit
def _mix(state):
    state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9
    state = (state ^ (state >> 27)) * 0x94D049BB133111EB
    return state ^ (state >> 31)


@triton.jit
def _weights(x, start, size, best, scale, BLOCK: tl.constexpr):
    """exp of a block's logits over the temperature, 1 for the likeliest token."""
    at = start + tl.arange(0, BLOCK)
    return tl.exp((tl.load(x + at, mask=at < size, other=-float("inf")) - best) / scale)


@triton.jit
def _above(x, size, best, scale, cut, BLOCK: tl.constexpr):
    """How many tokens weigh at least `cut`, and what they weigh together."""
    count = 0
    mass = tl.zeros((), tl.float64)
    for start in tl.range(0, size, BLOCK):
        w = _weights(x, start, size, best, scale, BLOCK)
        kept = (w >= cut) & (w > 0)
        count += tl.sum(kept.to(tl.int32))
        mass += tl.sum(tl.where(kept, w, 0.0)).to(tl.float64)
    return count, mass


@triton.jit
def _kept(w, cut, quota, ties):
    """Weights above the cut, and the first so many that equal it; `ties` were met before."""
    equal = (w == cut).to(tl.int32)
    rank = ties + tl.cumsum(equal, 0) - equal
    return tl.where((w > cut) | ((equal > 0) & (rank < quota)), w, 0.0), tl.sum(equal)


@triton.jit
def _draw(
    logits, token, position, first, last, key, temperature, top_k, top_p, min_p, stop_ids, place, tokens, logprobs,
    size, logits_row, stops, stop_row, tokens_row, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    if tl.load(place + row) >= 0:
        x = logits + row * logits_row
        scale = tl.load(temperature + row)
        greedy = scale == 0
        scale = tl.where(greedy, 1.0, scale)
        best = tl.full((), -float("inf"), tl.float32)
        choice = 0
        for start in tl.range(0, size, BLOCK):
            at = start + tl.arange(0, BLOCK)
            block = tl.load(x + at, mask=at < size, other=-float("inf"))
            high = tl.max(block, 0)
            choice = tl.where(high > best, start + tl.argmax(block, 0), choice)
            best = tl.maximum(best, high)
        total = tl.zeros((), tl.float64)
        for start in tl.range(0, size, BLOCK):
            total += tl.sum(_weights(x, start, size, best, scale, BLOCK)).to(tl.float64)
        next_place = tl.load(position + row) + 1
        if not greedy:
            bits = next_place.to(tl.uint64) * 0x9E3779B97F4A7C15 + tl.load(key + row).to(tl.uint64)
            uniform = (_mix(bits) >> 11).to(tl.float64) * 1.1102230246251565e-16
            k, p, floor = tl.load(top_k + row), tl.load(top_p + row), tl.load(min_p + row)
            cut = floor
            quota = size
            mass = total
            if (k > 0) | (p < 1) | (floor > 0):
                count, mass = _above(x, size, best, scale, cut, BLOCK)
                if (k > 0) & (k < count):
                    low, high_bits = cut.to(tl.int32, bitcast=True), ONE + 1
                    while high_bits - low > 1:
                        middle = (low + high_bits) // 2
                        above, _ = _above(x, size, best, scale, middle.to(tl.float32, bitcast=True), BLOCK)
                        if above >= k:
                            low = middle
                        else:
                            high_bits = middle
                    cut = low.to(tl.float32, bitcast=True)
                    over, heavy = _above(x, size, best, scale, (low + 1).to(tl.float32, bitcast=True), BLOCK)
                    quota = (k - over).to(tl.int32)
                    mass = heavy + quota.to(tl.float64) * cut.to(tl.float64)
                if p < 1:
                    wanted = mass * p.to(tl.float64)
                    low, high_bits = cut.to(tl.int32, bitcast=True), ONE + 1
                    while high_bits - low > 1:
                        middle = (low + high_bits) // 2
                        _, heavy = _above(x, size, best, scale, middle.to(tl.float32, bitcast=True), BLOCK)
                        if heavy >= wanted:
                            low = middle
                        else:
                            high_bits = middle
                    lower = low.to(tl.float32, bitcast=True)
                    _, heavy = _above(x, size, best, scale, (low + 1).to(tl.float32, bitcast=True), BLOCK)
                    need = tl.ceil((wanted - heavy) / tl.maximum(lower, 1e-38).to(tl.float64)).to(tl.int32)
                    quota = tl.where(lower > cut, tl.maximum(need, 1), tl.minimum(quota, tl.maximum(need, 1)))
                    cut = lower
                mass = tl.zeros((), tl.float64)
                ties = 0
                for start in tl.range(0, size, BLOCK):
                    w, met = _kept(_weights(x, start, size, best, scale, BLOCK), cut, quota, ties)
                    ties += met
                    mass += tl.sum(w).to(tl.float64)
            goal = uniform * mass
            before = tl.zeros((), tl.float64)
            ties = 0
            found = 0
            found_before = tl.zeros((), tl.float64)
            found_ties = 0
            for start in tl.range(0, size, BLOCK):
                w, met = _kept(_weights(x, start, size, best, scale, BLOCK), cut, quota, ties)
                part = tl.sum(w).to(tl.float64)
                here = (part > 0) & (before <= goal)  # the last such block holds the goal
                found = tl.where(here, start, found)
                found_before = tl.where(here, before, found_before)
                found_ties = tl.where(here, ties, found_ties)
                before += part
                ties += met
            w, _ = _kept(_weights(x, found, size, best, scale, BLOCK), cut, quota, found_ties)
            sums = tl.cumsum(w, 0)
            share = ((goal - found_before) / tl.sum(w).to(tl.float64)).to(tl.float32) * tl.max(sums, 0)
            at = tl.arange(0, BLOCK)
            entry = tl.sum((sums <= share).to(tl.int32))
            choice = found + tl.minimum(entry, tl.max(tl.where(w > 0, at, 0), 0))
        drawn = choice.to(tl.int64)
        logprob = (tl.load(x + choice) - best) / scale - tl.log(total).to(tl.float32)
        column = next_place - tl.load(first + row)
        tl.store(tokens + row * tokens_row + column, drawn)
        tl.store(logprobs + row * tokens_row + column, logprob)
        tl.store(token + row, drawn)
        tl.store(position + row, next_place)
        done = next_place >= tl.load(last + row)
        for s in tl.range(0, stops):
            done = done | (tl.load(stop_ids + s * stop_row + row) == drawn)
        tl.store(place + row, tl.where(done, -1, next_place.to(tl.int32)))


def draw_and_record(logits: Tensor, state: DrawState) -> None:
    """Draw the next token of every row that is not finished from its logits (N, V) and write it down.

    A row whose token is a stop id or its last has place -1 from then on, and nothing of it changes any more.
    """
    rows, size = logits.shape
    pdl = overlaps(logits)
    _draw[(rows,)](
        logits, *(state[:4]), state.key, state.temperature, state.top_k, state.top_p, state.min_p, state.stop_ids,
        state.place, state.tokens, state.logprobs, size, logits.stride(0), len(state.stop_ids),
        state.stop_ids.stride(0), state.tokens.stride(0),
        BLOCK=min(4096, max(64, triton.next_power_of_2(size))), PDL=pdl, launch_pdl=pdl,
        num_warps=16 if size > 4096 else 4,
    )  # fmt: skip
