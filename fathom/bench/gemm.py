"""FP8 products and quantisation on one Hopper GPU, beside torch's own, in interleaved rounds.

Every side is captured in a CUDA graph that works through several sets of random inputs, larger together than the L2
cache; sides take turns, so that all of them meet the same clocks. Rates are medians over the rounds. No side is timed
before its result has been compared with the exact one.
"""

import logging
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.functional import ScalingType

from fathom.bench.rounds import describe_conditions
from fathom.kernels.fp8 import Fp8Layer
from fathom.kernels.fp8_linear import fp8_linear
from fathom.kernels.quant import (
    quantize_columns,
    quantize_rows,
    quantize_rows_and_columns,
    quantize_swiglu,
    quantize_weight,
)
from fathom.kernels.scaled import grouped_scaled_outer

log = logging.getLogger(__name__)

DENSE = ((2112, 7168), (24576, 1536), (32768, 512), (7168, 16384), (4096, 7168), (7168, 2048))  # (N, K) of V3
ROWS = 4096
GROUPED = ((8, 4096, 7168), (32, 4096, 7168), (64, 2816, 2048), (64, 2048, 1408))  # (experts, N, K)
TOKENS = 32768
LINEAR = (8192, 18432, 7168)  # (M, N, K)
QUANTISED = (32768, 7168)
SETS = 3  # of inputs that take turns
ROUNDS = 4
SETTLE_SECONDS = 0.05
ROUND_SECONDS = 0.08
WORST = 0.06  # error norm beyond which a side is wrong; FP8 inputs make 0.037

Side = Callable[[int], Any]  # works on one set of inputs


def main(peer: str = "none") -> dict[str, Any]:
    """TFLOP/s of products and GB/s of quantisation; `peer` is torch in any case."""
    if peer not in ("none", "torch"):
        raise ValueError(f"--peer {peer} does not go with fathom bench gemm, which runs beside torch; leave it out")
    if not torch.cuda.is_available() or torch.cuda.get_device_capability()[0] != 9:
        raise ValueError("fathom bench gemm measures kernels for Hopper; run it on an H100, H200 or H800")
    torch.manual_seed(0)
    return {
        "bench": "gemm",
        "gpu": torch.cuda.get_device_name(),
        "unit": "TFLOP/s; quantisation GB/s",
        "dense": {f"{ROWS}x{n}x{k}": dense(n, k) for n, k in DENSE},
        "dense_wgrad": {f"{n}x{k}x{ROWS}": dense_wgrad(n, k) for n, k in DENSE},
        "grouped": {f"{e}x{n}x{k}": grouped(e, n, k) for e, n, k in GROUPED},
        "grouped_wgrad": {f"{e}x{n}x{k}": wgrad(e, n, k) for e, n, k in GROUPED},
        "linear": linear(*LINEAR),
        "quantisation": quantisation(*QUANTISED),
        **describe_conditions(),
    }


def random(*shape: int) -> Tensor:
    """Normal numbers in bfloat16 on the GPU."""
    return torch.randn(shape, device="cuda", dtype=torch.bfloat16)


def processors() -> int:
    """Multiprocessors of this GPU."""
    return torch.cuda.get_device_properties().multi_processor_count


def race(sides: dict[str, Side], work: float, exact: Callable[[str], Tensor] | None = None) -> dict[str, float]:
    """Rate of every side, `work` units a call; a side that fails is left out and named in the log."""
    graphs: dict[str, torch.cuda.CUDAGraph] = {}
    for name, side in sides.items():
        try:
            _check(side(0), None if exact is None else exact(name))
            graphs[name] = _capture(side)
        except (RuntimeError, ValueError, NotImplementedError) as error:
            log.warning("%s is left out: %s", name, " ".join(str(error).split())[:200])
    seconds: dict[str, list[float]] = {name: [] for name in graphs}
    for _ in range(ROUNDS):
        for name, graph in graphs.items():
            _replay(graph, SETTLE_SECONDS)  # clocks follow the load that came before
            seconds[name].append(_replay(graph, ROUND_SECONDS) / SETS)
    rates = {name: round(work / median(values), 1) for name, values in seconds.items()}
    log.info("%s", rates)
    return rates


def _check(found: Any, reference: Tensor | None) -> None:
    if reference is not None:
        error = float((found.float() - reference).norm() / reference.norm())
        if not error < WORST:
            raise RuntimeError(f"its result is off by {error:.3g}")


def _capture(side: Side) -> torch.cuda.CUDAGraph:
    """One call for each set of inputs."""
    for index in range(SETS):
        side(index)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for index in range(SETS):
            side(index)
    return graph


def _replay(graph: torch.cuda.CUDAGraph, seconds: float) -> float:
    """Seconds of one replay, on average over about `seconds` of them."""
    once = _time(graph, 1)
    return _time(graph, max(1, round(seconds / once)))


def _time(graph: torch.cuda.CUDAGraph, repeats: int) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(repeats):
        graph.replay()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3 / repeats


def dense(n: int, k: int) -> dict[str, float]:
    """Forward products: 1 x 128 strips times 128 x 128 blocks, bfloat16 out."""
    from fathom.kernels.triton import scaled as ours

    x, w = [random(ROWS, k) for _ in range(SETS)], [random(n, k) for _ in range(SETS)]
    a, b = [quantize_rows(t) for t in x], [quantize_weight(t) for t in w]
    bounds = torch.tensor([0, ROWS], dtype=torch.int32, device="cuda")

    def tiled(tiling: ours.Tiling) -> Side:
        return lambda i: ours.grouped_scaled_product(
            *a[i], b[i].codes[None], b[i].scales[None], bounds, torch.bfloat16, tiling
        )

    sides: dict[str, Side] = {
        "bf16": lambda i: x[i] @ w[i].T,
        "scaled_mm": lambda i: torch_scaled_mm(*a[i], b[i].codes, b[i].scales, ScalingType.BlockWise128x128),
        "ours_128": tiled(ours.SMALL),
        "ours_192": tiled(ours.TALL),
    }
    rates = race(sides, 2e-12 * ROWS * n * k, lambda _: x[0].float() @ w[0].float().T)
    return rates | {"chosen": rates[_name(ours.choose_tiling(ROWS, n, 1, processors()))]}


def _name(tiling: tuple[int, ...]) -> str:
    """The side that dispatch would choose; a tile has 64 rows for each group of warps."""
    return f"ours_{64 * tiling[0]}"


def dense_wgrad(n: int, k: int) -> dict[str, float]:
    """Gradients of the same weights: strips times strips, float32 out."""
    grad, x = [random(ROWS, n) for _ in range(SETS)], [random(ROWS, k) for _ in range(SETS)]
    a, b = [quantize_columns(t) for t in grad], [quantize_columns(t) for t in x]
    strips = ScalingType.BlockWise1x128
    bounds = torch.tensor([0, ROWS], dtype=torch.int32, device="cuda")
    sides: dict[str, Side] = {
        "bf16": lambda i: grad[i].T @ x[i],
        "scaled_mm": lambda i: torch_scaled_mm(*a[i], *b[i], strips, torch.float32),
        "ours": lambda i: grouped_scaled_outer(*a[i], *b[i], bounds)[0],
    }
    return race(sides, 2e-12 * ROWS * n * k, lambda _: grad[0].float().T @ x[0].float())


def torch_scaled_mm(
    a: Tensor,
    a_scales: Tensor,
    b: Tensor,
    b_scales: Tensor,
    recipe: ScalingType,
    dtype: torch.dtype = torch.bfloat16,
) -> Tensor:
    """torch's own product of the same codes."""
    scales = b_scales.T if recipe == ScalingType.BlockWise128x128 else b_scales
    return F.scaled_mm(a, b.T, a_scales, ScalingType.BlockWise1x128, scales, recipe, output_dtype=dtype)


def group_offsets(experts: int, step: int) -> Tensor:
    """Offsets of groups of 0.7 to 1.3 times the mean, multiples of `step`, that hold all tokens."""
    shares = torch.rand(experts, generator=torch.Generator().manual_seed(experts)) * 0.6 + 0.7
    ends = (shares.cumsum(0) / shares.sum() * TOKENS / step).round() * step
    return F.pad(ends, (1, 0)).int().cuda()


def grouped(experts: int, n: int, k: int) -> dict[str, float]:
    """Experts' forward products, groups in multiples of 128 and of nothing."""
    from fathom.kernels.triton import scaled as ours

    x = [random(TOKENS, k) for _ in range(SETS)]
    w = random(experts, n, k)
    a, b = [quantize_rows(t) for t in x], quantize_weight(w)
    aligned, ragged = group_offsets(experts, 128), group_offsets(experts, 1)
    row_codes = [quantize_per_row(t) for t in x]
    w_codes, w_scales = quantize_per_row(w)

    def product(offsets: Tensor, tiling: ours.Tiling | None) -> Side:
        return lambda i: ours.grouped_scaled_product(*a[i], b.codes, b.scales, offsets, torch.bfloat16, tiling)

    sides: dict[str, Side] = {
        "bf16": lambda i: F.grouped_mm(x[i], w.transpose(1, 2), offs=aligned[1:]),
        "torch_rowwise_fp8": lambda i: F.scaled_grouped_mm(  # pyright: ignore
            row_codes[i][0],
            w_codes.transpose(1, 2),
            row_codes[i][1],
            ScalingType.RowWise,
            w_scales,
            ScalingType.RowWise,
            offs=aligned[1:],
        ),
        "ours_128": product(aligned, ours.SMALL),
        "ours_192": product(aligned, ours.TALL),
        "ours_128_ragged": product(ragged, ours.SMALL),
        "ours_192_ragged": product(ragged, ours.TALL),
    }
    work = 2e-12 * TOKENS * n * k
    ends = {name: (ragged if name.endswith("ragged") else aligned)[1:] for name in sides}
    rates = race(sides, work, lambda name: F.grouped_mm(x[0], w.transpose(1, 2), offs=ends[name]).float())
    name = _name(ours.choose_tiling(TOKENS, n, experts, processors()))
    return rates | {"chosen": rates[name], "chosen_ragged": rates[f"{name}_ragged"]}


def quantize_per_row(x: Tensor) -> tuple[Tensor, Tensor]:
    """Codes with one scale per row, as torch's grouped product takes them."""
    scales = x.abs().amax(-1).float() / 448
    return (x / scales.unsqueeze(-1)).to(torch.float8_e4m3fn), scales


def wgrad(experts: int, n: int, k: int) -> dict[str, float]:
    """Gradients of the experts' weights; ours in float32, torch's in bfloat16."""
    grad, x = [random(TOKENS, n) for _ in range(2)], [random(TOKENS, k) for _ in range(2)]
    rates: dict[str, float] = {}
    for kind, step in (("", 128), ("_ragged", 1)):
        offsets = group_offsets(experts, step)
        a, b = [quantize_columns(t, offsets) for t in grad], [quantize_columns(t, offsets) for t in x]
        sides: dict[str, Side] = {
            f"bf16{kind}": lambda i, o=offsets: F.grouped_mm(grad[i % 2].T, x[i % 2], offs=o[1:]),
            f"ours{kind}": lambda i, a=a, b=b, o=offsets: grouped_scaled_outer(*a[i % 2], *b[i % 2], o),
        }
        exact = F.grouped_mm(grad[0].T, x[0], offs=offsets[1:]).float()
        rates |= race(sides, 2e-12 * TOKENS * n * k, lambda _, exact=exact: exact)
    return rates


def linear(m: int, n: int, k: int) -> dict[str, float]:
    """Forward and backward of one linear map, quantisation of inputs and gradients included."""
    x = [random(m, k).requires_grad_() for _ in range(2)]
    weight = random(n, k).requires_grad_()
    grad = random(m, n)
    master = weight.detach().float().requires_grad_()
    layer = Fp8Layer("linear")

    def step(forward: Callable[[Tensor], Tensor], own: Tensor) -> Side:
        return lambda i: torch.autograd.grad(forward(x[i % 2]), (x[i % 2], own), grad)[0]

    sides = {
        "bf16": step(lambda t: F.linear(t, weight), weight),
        "ours": step(lambda t: fp8_linear(t, master, None, layer), master),
    }
    return race(sides, 6e-12 * m * n * k, lambda _: grad.float() @ weight.detach().float())


def quantisation(rows: int, width: int) -> dict[str, float]:
    """Bytes that must be read and written, over the time taken; beside a plain copy."""
    x = [random(rows, width) for _ in range(SETS)]
    out = torch.empty_like(x[0])
    offsets = group_offsets(64, 1)
    hidden = [random(rows, 2 * 4096) for _ in range(SETS)]
    gates = torch.rand(rows, device="cuda")
    w = [torch.randn(8, 4096, 7168, device="cuda") for _ in range(2)]
    numbers = rows * width / 1e9
    return {
        **race({"copy": lambda i: out.copy_(x[i])}, 4 * numbers),
        **race({"rows": lambda i: quantize_rows(x[i])}, 3 * numbers),
        **race({"rows_and_columns": lambda i: quantize_rows_and_columns(x[i])}, 4 * numbers),
        **race({"rows_and_columns_64_groups": lambda i: quantize_rows_and_columns(x[i], offsets, True)}, 4 * numbers),
        **race({"columns": lambda i: quantize_columns(x[i])}, 3 * numbers),
        **race({"swiglu": lambda i: quantize_swiglu(hidden[i], gates)}, 5 * rows * 4096 / 1e9),
        **race({"weight": lambda i: quantize_weight(w[i % 2])}, 6 * w[0].numel() / 1e9),
    }
