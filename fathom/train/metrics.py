"""Numbers that describe a step: throughput, compute used, expert balance."""

import time
from functools import cache

import torch
from torch import Tensor

from fathom.kernels.gemm import product
from fathom.model.moe import max_violation

# Dense BF16 peaks of data sheets, FLOP/s; other devices are measured.
PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "H800": 989e12, "A100": 312e12, "B200": 2250e12, "L40S": 362e12}


@cache
def peak_flops(device: torch.device) -> float:
    """FLOP/s that one process could reach here: the data sheet's for a known GPU, else a measured float32 product's.

    Measured is the product that the model itself calls: libraries differ by more than two on some processors.
    """
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        for known, flops in PEAK_FLOPS.items():
            if known in name:
                return flops
    size = 512 if device.type == "cpu" else 8192
    a = torch.ones(size, size, device=device)
    times: list[float] = []
    for _ in range(9):
        start = time.perf_counter()
        float(product(a, a)[0, 0])  # reading one number waits for the product
        times.append(time.perf_counter() - start)
    return 2 * size**3 / sorted(times)[len(times) // 2]


def balance_metrics(loads: Tensor) -> dict[str, object]:
    """MaxVio of the worst layer, and every layer's shares of load."""
    if not loads.numel():
        return {}
    shares = loads.float() / loads.float().sum(-1, keepdim=True).clamp(min=1)
    return {
        "max_vio": round(float(max_violation(loads).max()), 6),
        "expert_shares": [[round(share, 4) for share in layer] for layer in shares.tolist()],
    }
