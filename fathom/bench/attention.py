"""Decode attention on one GPU: how near its reads come to what a copy moves, and its products to the tensor cores.

Every shape runs inside a CUDA graph whose calls take turns over more pages than the L2 holds, in random order; so the
figures hold for a model whose weights flow through the cache between two layers.
"""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from jaxtyping import Float, Int32, UInt8
from torch import Tensor

from fathom.bench.rounds import describe_conditions
from fathom.kernels.attention import latent_attention, paged_latent_attention
from fathom.kernels.latents import latent_bytes, quantize_latents

log = logging.getLogger(__name__)

PAGE = 64  # tokens
POOL_BYTES = 2**29  # that the calls of one graph read, at least: several times the L2
FEWEST_CALLS, MOST_CALLS = 3, 1024  # of one graph
REPLAYS = 5
ROUNDS = 9  # replays, of which the median counts
COPY_BYTES = 2**31


@dataclass(frozen=True, kw_only=True)
class Shape:
    """One layer's attention in one decoding step; the width of DeepSeek-V3 unless said."""

    name: str
    batch: int
    context: int  # tokens that the first query sees
    heads: int
    rank: int = 512
    rope: int = 64
    time: int = 1  # queries of each row
    packed: bool = False  # FP8 latents

    @property
    def cache_bytes(self) -> int:
        """What must be read of the cache."""
        token = latent_bytes(self.rank, self.rope) if self.packed else 2 * (self.rank + self.rope)
        return self.batch * self.context * token

    @property
    def flops(self) -> int:
        """Of both products."""
        return 2 * self.batch * self.context * self.time * self.heads * (2 * self.rank + self.rope)


SHAPES = (
    Shape(name="16 heads", batch=64, context=4096, heads=16),
    Shape(name="16 heads", batch=1, context=4096, heads=16),
    Shape(name="16 heads", batch=1, context=32768, heads=16),
    Shape(name="16 heads, 2 queries", batch=64, context=4096, heads=16, time=2),
    Shape(name="16 heads, FP8", batch=64, context=4096, heads=16, packed=True),
    Shape(name="128 heads", batch=64, context=4096, heads=128),
    Shape(name="128 heads", batch=8, context=4096, heads=128),
    Shape(name="rank 256", batch=1, context=256, heads=16, rank=256),
    Shape(name="rank 256", batch=64, context=256, heads=16, rank=256),
)


def main(peer: str = "none", shapes: Sequence[Shape] = SHAPES, rounds: int = ROUNDS) -> dict[str, Any]:
    """GB/s of the cache and TFLOP/s of each shape, beside a copy and beside plain products over contiguous latents.

    Raises RuntimeError where there is no GPU.
    """
    if peer != "none":
        raise ValueError(f"the bench of attention has no peer, not {peer!r}; leave --peer out")
    if not torch.cuda.is_available():
        raise RuntimeError("the bench of attention measures a GPU, and torch finds none here")
    conditions = describe_conditions()
    torch.manual_seed(0)
    copy = copy_gb_s(rounds)
    log.info("a copy moves %.0f GB/s, read and written", copy)
    return {
        "bench": "attention",
        "device": torch.cuda.get_device_name(),
        "copy_gb_s": round(copy),
        "shapes": [_measure(shape, rounds, copy) for shape in shapes],
        **conditions,
    }


def copy_gb_s(rounds: int) -> float:
    """Bytes read and written per ns by a copy within the GPU's memory."""
    source = torch.randint(0, 127, (COPY_BYTES // 4,), dtype=torch.int32, device="cuda")
    target = torch.empty_like(source)
    # negated by a kernel: in a graph a plain copy goes to the copy engine, which is slower than the processors
    return 2 * COPY_BYTES / microseconds([lambda: torch.neg(source, out=target)] * 4, rounds) / 1e3


class Pool:
    """Random latents in pages, and tables that between them name each page once, in random order."""

    def __init__(self, shape: Shape) -> None:
        columns = -(-(shape.context + shape.time - 1) // PAGE)
        per_call = shape.batch * columns
        calls = min(max(-(-POOL_BYTES // shape.cache_bytes), FEWEST_CALLS), MOST_CALLS)
        self.latents = torch.randn(calls * per_call, PAGE, shape.rank + shape.rope, dtype=torch.bfloat16, device="cuda")
        self.pages: Float[Tensor, "P S W"] | UInt8[Tensor, "P S Y"] = self.latents
        if shape.packed:
            self.pages = torch.cat([quantize_latents(some, shape.rank) for some in self.latents.split(512)])
        order = torch.randperm(calls * per_call, device="cuda")
        self.tables: Int32[Tensor, "N B C"] = order.view(calls, shape.batch, columns).int()
        self.length = torch.full((shape.batch,), shape.context, dtype=torch.int32, device="cuda")
        queries = (calls, shape.batch, shape.time, shape.heads, shape.rank + shape.rope)
        self.queries = torch.randn(queries, dtype=torch.bfloat16, device="cuda")


def _measure(shape: Shape, rounds: int, copy: float) -> dict[str, Any]:
    pool = Pool(shape)
    scale = 1 / math.sqrt(shape.rank)  # with unit latents: scores spread by about 1
    rows = pool.latents.view(len(pool.tables), shape.batch, -1, shape.rank + shape.rope)[:, :, : shape.context]
    bias = torch.zeros(shape.batch, shape.time, shape.context, dtype=torch.bfloat16, device="cuda")

    def paged(q: Tensor, table: Tensor) -> Callable[[], Tensor]:
        return lambda: paged_latent_attention(q, pool.pages, table, pool.length, shape.rank, scale)

    def plain(q: Tensor, latents: Tensor) -> Callable[[], Tensor]:
        return lambda: latent_attention(q, latents, shape.rank, scale, bias)

    us = microseconds(list(map(paged, pool.queries, pool.tables)), rounds)
    bmm_us = microseconds(list(map(plain, pool.queries, rows)), rounds)
    gb_s, tflops = shape.cache_bytes / us / 1e3, shape.flops / us / 1e6
    log.info(
        "%s, batch %d, context %d: %.1f us, %.0f GB/s (%.2f of a copy), %.0f TFLOP/s; plain products %.1f us",
        *(shape.name, shape.batch, shape.context, us, gb_s, gb_s / copy, tflops, bmm_us),
    )
    return {
        "name": shape.name,
        "batch": shape.batch,
        "context": shape.context,
        "heads": shape.heads,
        "queries": shape.time,
        "latent": f"{shape.rank}+{shape.rope} {'fp8' if shape.packed else 'bf16'}",
        "us": round(us, 2),
        "gb_s": round(gb_s),
        "of_copy": round(gb_s / copy, 3),
        "tflops": round(tflops, 1),
        "plain_us": round(bmm_us, 2),
        "error": float(f"{error(shape, pool, scale):.2e}"),
    }


def error(shape: Shape, pool: Pool, scale: float) -> float:
    """Relative Frobenius distance of the first call from the definition in float32, on the latents before packing."""
    found = paged_latent_attention(pool.queries[0], pool.pages, pool.tables[0], pool.length, shape.rank, scale)
    latents = pool.latents[pool.tables[0]].flatten(1, 2)
    place = torch.arange(latents.shape[1], device="cuda")
    seen = place < shape.context + torch.arange(shape.time, device="cuda").unsqueeze(1)
    bias = torch.where(seen, 0.0, -math.inf).expand(shape.batch, -1, -1)
    exact = torch.cat(
        [
            latent_attention(q.unsqueeze(0).float(), row.unsqueeze(0).float(), shape.rank, scale, hidden.unsqueeze(0))
            for q, row, hidden in zip(pool.queries[0], latents, bias, strict=True)
        ]
    )
    return float((found - exact).norm() / exact.norm())


def microseconds(calls: Sequence[Callable[[], Any]], rounds: int) -> float:
    """Median time of one call.

    All are captured one behind the other in a CUDA graph, which runs `REPLAYS` times on end: its launch counts little.
    """
    calls[0]()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    graph.replay()
    times: list[float] = []
    for _ in range(rounds):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(REPLAYS):
            graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1e3 / len(calls) / REPLAYS)
    return median(times)
