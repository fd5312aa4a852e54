"""What absorbing MLA's expansions is worth at decoding: speed and operations over the context (V2 appendix C)."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from fathom.bench.probe import wait
from fathom.config import AttentionConfig, ModelConfig, MoEConfig
from fathom.model.cache import CacheSlots, LatentCache
from fathom.model.mla import MLA, absorbed_tokens
from fathom.model.rope import rope_frequencies, rope_magnitude, rotation
from fathom.unlocks.drawing import Curves
from fathom.unlocks.experiment import Claim, Context, Experiment, Figures, Result, Size
from fathom.unlocks.verdict import above, all_of, exact, over_seeds

CONTEXTS: dict[Size, tuple[int, ...]] = {
    "toy": (32, 128),
    "cpu": (128, 512, 2048, 4096),
    "gpu": (512, 2048, 8192, 32768),
}
ROUNDS: dict[Size, int] = {"toy": 3, "cpu": 7, "gpu": 15}
FASTER = 2.0  # times, at the longest context, that the claim is worth having
SAME = 1e-4  # largest difference of the outputs, as a share of their root mean square


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """One layer's attention for the next token of one sequence."""

    attention: AttentionConfig
    hidden_size: int
    absorb: bool  # whether W_UK and W_UV move to the query's side, so that latents are never expanded


def attention(size: Size) -> tuple[AttentionConfig, int]:
    """Shape and width: V2-Lite's on a CPU, V3's on a GPU, and one of seconds."""
    heads, rank, rope, nope, width = {
        "toy": (4, 64, 16, 32, 128),
        "cpu": (16, 512, 64, 128, 2048),
        "gpu": (128, 512, 64, 128, 7168),
    }[size]
    shape = AttentionConfig(
        num_attention_heads=heads,
        num_key_value_heads=heads,
        q_lora_rank=None,
        kv_lora_rank=rank,
        qk_nope_head_dim=nope,
        qk_rope_head_dim=rope,
        v_head_dim=nope,
    )
    return shape, width


def variants(size: Size) -> dict[str, Decoding]:
    """Keys and values expanded anew for every token, and not at all."""
    shape, width = attention(size)
    return {
        "naive": Decoding(attention=shape, hidden_size=width, absorb=False),
        "absorbed": Decoding(attention=shape, hidden_size=width, absorb=True),
    }


@torch.no_grad()  # in inference mode linear layers would not be counted
def measure(context: Context, seed: int) -> Figures:
    """Operations counted while they run, how far the outputs lie apart, and tokens/s, at each context."""
    counted: dict[str, list[int]] = {name: [] for name in variants(context.size)}
    speeds: dict[str, list[float]] = {name: [] for name in counted}
    apart: list[float] = []
    for length in CONTEXTS[context.size]:
        context.check_time()
        steps = {n: decoder(way, length, seed, context.device) for n, way in variants(context.size).items()}
        outputs = {name: step() for name, step in steps.items()}
        apart.append(difference(outputs["naive"], outputs["absorbed"]))
        for name, step in steps.items():
            counted[name].append(operations(step))
        for name, seconds in typical_seconds(list(steps.items()), ROUNDS[context.size], context.device).items():
            speeds[name].append(1 / seconds)
    return {
        "contexts": list(CONTEXTS[context.size]),
        "operations": counted,
        "apart_below_margin": [value < SAME for value in apart],
        "timed": {"tokens_per_s": speeds, "apart": apart},
    }


def decoder(way: Decoding, context: int, seed: int, device: torch.device) -> Callable[[], Tensor]:
    """A step of one layer: one new token behind `context` cached ones; equal seeds give equal weights and cache."""
    config = ModelConfig(
        hidden_size=way.hidden_size,
        num_hidden_layers=1,
        num_nextn_predict_layers=0,
        attention=way.attention,
        moe=MoEConfig(first_k_dense_replace=1),
    )
    generator = torch.Generator().manual_seed(seed)
    layer = MLA(config, 0)
    for weight in layer.parameters():
        if weight.ndim == 2:
            weight.data.normal_(0.0, weight.shape[1] ** -0.5, generator=generator)
    layer.few = absorbed_tokens(way.attention) if way.absorb else 0.0  # new tokens up to which it absorbs
    cache = LatentCache(config, 1, context + 1, device=device)
    cache.layers[0].copy_(torch.randn(cache.layers[0].shape, generator=generator))
    places = torch.full((1, 1), context, device=device)
    frequencies = rope_frequencies(config.rope, way.attention.rope_dim).to(device)
    turn = rotation(frequencies, places, rope_magnitude(config.rope))
    x = torch.randn(1, 1, way.hidden_size, generator=generator).to(device)
    layer = layer.to(device)

    def step() -> Tensor:
        return layer(x, turn, slots=CacheSlots.at(cache, 0, places, context + 1, fresh=False))

    return step


def operations(step: Callable[[], Tensor]) -> int:
    """Operations of the products in a step, as they are called."""
    # the counter knows torch's own products, not those that oneDNN is asked for by name
    more: dict[Any, Any] = {}
    if torch.backends.mkldnn.is_available():
        more[torch.ops.mkldnn._linear_pointwise] = _linear_operations
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False, custom_mapping=more) as counter:
        step()
    return counter.get_total_flops()


def _linear_operations(x: Sequence[int], weight: Sequence[int], *_: object, **__: object) -> int:
    return 2 * prod(x) * weight[0]


def difference(one: Tensor, other: Tensor) -> float:
    """The largest difference as a share of the first's root mean square."""
    return float((one - other).abs().max() / one.square().mean().sqrt())


def typical_seconds(
    steps: Sequence[tuple[str, Callable[[], Tensor]]], rounds: int, device: torch.device
) -> dict[str, float]:
    """Median seconds of each, taken in turns so that a slow moment of the machine meets both."""
    found: dict[str, list[float]] = {name: [] for name, _ in steps}
    for _ in range(rounds):
        for name, step in steps:
            wait(device)
            started = time.perf_counter()
            step()
            wait(device)
            found[name].append(time.perf_counter() - started)
    return {name: median(seconds) for name, seconds in found.items()}


def conclude(seeds: Sequence[Figures]) -> Result:
    """Supported where the outputs are the same and the longest context decodes clearly faster."""
    contexts, counted = seeds[0]["contexts"], seeds[0]["operations"]
    speeds = [seed["timed"]["tokens_per_s"] for seed in seeds]
    gains = [over_seeds([s["absorbed"][i] / s["naive"][i] for s in speeds]) for i in range(len(contexts))]
    saved = [naive / absorbed for naive, absorbed in zip(counted["naive"], counted["absorbed"], strict=True)]
    apart = max(value for seed in seeds for value in seed["timed"]["apart"])
    means = {n: [over_seeds([s[n][i] for s in speeds]).mean for i in range(len(contexts))] for n in counted}
    return Result(
        measured=f"{gains[-1].text('.1f')} times the tokens/s at {contexts[-1]} tokens of context, with "
        f"{saved[-1]:.0f} times fewer operations",
        verdict=all_of(above(gains[-1], FASTER), above(exact(SAME - apart))),
        because=f"at the longest context the speed is to be more than {FASTER:g} times the naive one, and outputs are "
        f"to differ by less than {SAME:g} of their rms (they do by {apart:.1e}); {len(seeds)} seeds, 95 % intervals",
        headings=("context", "naive, tokens/s", "absorbed, tokens/s", "faster", "naive, MFLOP", "absorbed, MFLOP"),
        rows=[
            (
                f"{length:,}",
                *(f"{means[name][i]:,.0f}" for name in counted),
                gains[i].text(".1f"),
                *(f"{counted[name][i] / 1e6:,.1f}" for name in counted),
            )
            for i, length in enumerate(contexts)
        ],
        charts=[
            _chart("Decoding speed of one layer", "tokens/s", contexts, means),
            _chart("Operations of one token in one layer", "MFLOP", contexts, _in_millions(counted)),
        ],
        figures={"faster": [gain.mean for gain in gains], "fewer_operations": saved, "apart": apart},
    )


def _in_millions(counted: dict[str, list[int]]) -> dict[str, list[float]]:
    return {name: [count / 1e6 for count in counts] for name, counts in counted.items()}


def _chart(title: str, axis: str, contexts: Sequence[int], values: dict[str, list[float]]) -> Curves:
    return Curves(
        title=title,
        caption="One sequence, one new token; mean over seeds.",
        x="tokens of context",
        y=axis,
        curves={name: list(zip(contexts, points, strict=True)) for name, points in values.items()},
        log_x=True,
        log_y=True,
    )


EXPERIMENT = Experiment(
    name="absorption",
    title="Latents need no expanding",
    claim=Claim(
        says="The matrices that expand a latent into keys and values can be absorbed into those of queries and "
        "outputs, so that decoding never computes keys and values of past tokens.",
        source="DeepSeek-V2 2.1.2 and appendix C",
        published="no figure: the expansion is said to fall away",
        conditions="an identity of linear algebra; the report prints no speed with and without it",
    ),
    variants=variants,
    changes=frozenset({"absorb"}),
    minutes={"toy": 0.01, "cpu": 0.6, "gpu": 0.5},
    seeds=3,
    measure=measure,
    conclude=conclude,
    shows="how decoding one token slows with the context where latents are expanded each time, and where they are "
    "read as they lie; the operations are counted as they are called, not taken from a formula.",
    does_not_show="the gain over a cache of expanded keys and values, which costs memory instead of operations; nor "
    "that of a whole model, whose other layers take the same time in both. Long prompts are cheaper expanded.",
)
