"""The peer libraries, in their fastest settings."""

import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import find_spec
from math import inf
from pathlib import Path
from time import perf_counter
from typing import Any, cast

import torch
from jaxtyping import Int
from torch import Tensor

from fathom.parallel.world import World

# What transformers offers for experts and cache; which is fastest is measured.
EXPERTS = ("eager", "grouped_mm", "batched_mm")
CACHES = ("dynamic", "static")
CHOICES_GPU = ("grouped_mm static", "batched_mm static")  # static is compiled there: the others are six times slower
TRIES = 3
HOPELESS = 2.0  # times slower than the best so far: not tried again


def require_peer(bench: str, peer: str, known: str) -> None:
    """Raise ValueError unless `peer` is the one that this bench knows and is installed."""
    if peer not in (known, "none"):
        raise ValueError(f"fathom bench {bench} has no peer {peer}; give --peer {known}")
    if peer != "none" and find_spec(peer) is None:
        raise ValueError(f"{peer} is not installed; add the extra with: pip install 'fathomlm[peers]'")


def load_transformers(path: Path, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Any:
    """The same weights as a transformers model with fused attention."""
    warnings.simplefilter("ignore")  # of libraries about one another
    transformers = import_module("transformers")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=dtype, attn_implementation="sdpa")
    return model.to(device)


def fastest(choices: Sequence[str], work: Callable[[str], object], world: World) -> str:
    """The choice that takes `work` the least time on the slowest process; the first call of each is not counted."""
    times: dict[str, float] = {}
    for choice in choices:
        work(choice)
        seconds: list[float] = []
        while len(seconds) < TRIES and min(seconds, default=0.0) <= HOPELESS * min(times.values(), default=inf):
            started = perf_counter()
            work(choice)
            seconds.append(max(cast(list[float], world.gather(perf_counter() - started))))
        times[choice] = min(seconds)
    return min(times, key=times.__getitem__)


def fastest_generation(model: Any, prompts: Int[Tensor, "B T"], new_tokens: int, world: World) -> tuple[str, str]:
    """The experts and the cache with which transformers generates fastest; `model` is left with those experts."""

    def attempt(choice: str) -> None:
        experts, cache = choice.split()
        model.set_experts_implementation(experts)
        generate_greedily(model, prompts, tokens, cache)

    on_gpu = prompts.is_cuda
    tokens = new_tokens if on_gpu else max(2, new_tokens // 8)  # a static cache is compiled for its length
    choices = CHOICES_GPU if on_gpu else [f"{experts} {cache}" for experts in EXPERTS for cache in CACHES]
    experts, cache = fastest(choices, attempt, world).split()
    model.set_experts_implementation(experts)
    return experts, cache


def generate_greedily(model: Any, prompts: Int[Tensor, "B T"], new_tokens: int, cache: str) -> list[list[int]]:
    """What transformers appends to each prompt, exactly `new_tokens` tokens."""
    with torch.inference_mode():
        out = model.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            max_new_tokens=new_tokens,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
            cache_implementation=cache,
        )
    return out[:, prompts.shape[1] :].tolist()
