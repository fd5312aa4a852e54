"""How fast this process reads memory and multiplies, measured."""

import time
from collections.abc import Callable
from statistics import median

import torch

LEAST_BYTES, MOST_BYTES = 64 << 20, 4 << 30  # of the tensor that is read: more than caches hold, less than fills a GPU
TRIES = 7
SIDE_CPU, SIDE_GPU = 1024, 8192  # of the matrices that are multiplied


def read_bandwidth(size: int, device: torch.device) -> float:
    """Bytes/s of the fastest way torch has to read a tensor of `size` bytes, or to copy it: twice the bytes."""
    size = min(max(size, LEAST_BYTES), MOST_BYTES)
    source = torch.ones(size // 4, device=device)
    target = torch.empty_like(source)
    reads: list[tuple[int, Callable[[], object]]] = [
        (1, source.sum),
        (1, lambda: torch.dot(source, source)),
        (2, lambda: target.copy_(source)),
    ]
    return max(times * source.nbytes / seconds(read, device) for times, read in reads)


def product_flops(dtype: torch.dtype, device: torch.device) -> float:
    """Operations/s of a large square product."""
    side = SIDE_GPU if device.type == "cuda" else SIDE_CPU
    a = torch.ones(side, side, dtype=dtype, device=device)
    return 2 * side**3 / seconds(lambda: torch.nn.functional.linear(a, a), device)


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """The median time of `work`, which is called once before it counts."""
    work()
    found = list[float]()
    for _ in range(TRIES):
        wait(device)
        started = time.perf_counter()
        work()
        wait(device)
        found.append(time.perf_counter() - started)
    return median(found)


def wait(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
