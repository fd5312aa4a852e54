"""Four ways to keep keys and values: the loss of each and the bytes of a token in its cache (V2 2.1, appendix D)."""

from collections.abc import Sequence
from dataclasses import asdict, replace

from fathom.plan.cache import cache_bytes, cache_savings
from fathom.plan.count import main_parameters
from fathom.plan.published import deepseek_67b
from fathom.presets import PRESETS
from fathom.unlocks.drawing import Bars
from fathom.unlocks.experiment import Claim, Context, Experiment, Figures, Result, Size
from fathom.unlocks.lesson import STREAM_TEXT, WIDTH, Lesson, baseline, final_loss, sized, teach
from fathom.unlocks.verdict import above, all_of, below, exact, over_seeds

MHA, GQA, MQA, MLA = "MHA", "GQA", "MQA", "MLA"
QUERIES_A_GROUP: dict[Size, int] = {"toy": 2, "cpu": 4, "gpu": 4}  # V2's baseline has 8 groups of 4
PRINTED = 0.933  # of the cache of DeepSeek 67B that V2 does without; V2 abstract
ROUNDING = 5e-4  # of a share printed to a tenth of a percent


def variants(size: Size) -> dict[str, Lesson]:
    """Dense models of equal parameters: what others save in attention widens their feed-forward layers."""
    plain = baseline(size)
    heads = plain.model.attention.num_attention_heads
    latent = replace(plain.model, attention=replace(plain.model.attention, head_dim=WIDTH))
    whole = replace(latent, model_type="llama", attention=replace(latent.attention, kind="gqa"))
    owners = {MHA: heads, GQA: heads // QUERIES_A_GROUP[size], MQA: 1}
    models = {
        name: sized(replace(whole, attention=replace(whole.attention, num_key_value_heads=n)), main_parameters(latent))
        for name, n in owners.items()
    }
    return {name: replace(plain, model=model) for name, model in {**models, MLA: latent}.items()}


def measure(context: Context, seed: int) -> Figures:
    """Validation loss, bytes of a token in a BF16 cache, and parameters of every variant."""
    return {
        name: {
            "loss": final_loss(teach(context, lesson, seed)),
            "bytes": cache_bytes(lesson.model),
            "parameters": main_parameters(lesson.model),
        }
        for name, lesson in variants(context.size).items()
    }


def decomposed() -> dict[str, float]:
    """Shares of DeepSeek 67B's cache that V2 does without: by latents, then by 6 bits besides (V2 3.2.3)."""
    by_latents, by_both = cache_savings(PRESETS["v2"].model, deepseek_67b()).values()
    return {"latents": by_latents, "latents and 6 bits": by_both}


def conclude(seeds: Sequence[Figures]) -> Result:
    """Supported where latents end below full attention in less memory, and the shapes give the printed saving."""
    first = seeds[0]
    losses = {name: over_seeds([seed[name]["loss"] for seed in seeds]) for name in first}
    against = {name: over_seeds([seed[name]["loss"] / seed[MHA]["loss"] - 1 for seed in seeds]) for name in first}
    shares = {name: found["bytes"] / first[MHA]["bytes"] for name, found in first.items()}
    paper, v2, dense = decomposed(), PRESETS["v2"].model, deepseek_67b()
    return Result(
        measured=f"MLA's validation loss is {against[MLA].text('+.2%')} beside MHA's, with {shares[MLA]:.0%} of its "
        f"cache (GQA {against[GQA].text('+.2%')} with {shares[GQA]:.0%}, MQA {against[MQA].text('+.2%')} with "
        f"{shares[MQA]:.0%}); of V2's saving latents make {paper['latents']:.1%}, with 6 bits {PRINTED:.1%}",
        verdict=all_of(
            below(against[MLA], 0.0),
            above(exact(1 - shares[MLA])),
            below(exact(abs(paper["latents and 6 bits"] - PRINTED)), ROUNDING),
        ),
        because="MLA is to end with a smaller validation loss than MHA of equal parameters, on the same tokens (it is "
        f"{against[MLA].text('+.2%')}), in a smaller cache, and {PRINTED:.1%} is to follow from V2's shapes "
        f"({paper['latents and 6 bits']:.2%}); {len(seeds)} seeds, 95 % interval of pairs",
        headings=("attention", "parameters", "cache, bytes a token", "validation loss, nats", "beside MHA"),
        rows=[
            (
                name,
                f"{found['parameters']:,}",
                f"{found['bytes']:,.0f}",
                losses[name].text(".3f"),
                "" if name == MHA else against[name].text("+.2%"),
            )
            for name, found in first.items()
        ],
        charts=[
            Bars(
                title="Loss on kept documents at the end",
                caption="After equally many tokens, at equal parameters.",
                axis="validation loss, nats",
                bars={name: loss.bar for name, loss in losses.items()},
            ),
            Bars(
                title="What 93.3 % is made of",
                caption="Counted from the published shapes; DeepSeek 67B's cache has 16 bits.",
                axis="KB a token",
                bars={
                    name: exact(size / 1000).bar
                    for name, size in {
                        "DeepSeek 67B": cache_bytes(dense),
                        "V2, 16 bits": cache_bytes(v2),
                        "V2, 6 bits": cache_bytes(v2, "6bit"),
                    }.items()
                },
            ),
        ],
        figures={"against_mha": {n: asdict(i) for n, i in against.items()}, "cache_share": shares, "v2_saves": paper},
    )


EXPERIMENT = Experiment(
    name="mla-vs-mha-gqa-mqa",
    title="Latents keep less and lose nothing",
    claim=Claim(
        says="Latent attention is better than multi-head attention and keeps far less of every token, where shared "
        "keys and values pay for their smaller cache; V2's cache is 93.3 % smaller than DeepSeek 67B's.",
        source="DeepSeek-V2 2.1, 3.2.3, appendix D",
        published="cache 14 % and 4 % of MHA's with better scores (BBH 37.9 to 39.0 and 46.6 to 50.7); GQA and MQA "
        "below MHA (BBH 35.6 and 33.2 against 37.0)",
        conditions="MLA against MHA in mixtures of 16B and 250B parameters, after 1.33T and 420B tokens; MHA, GQA of 8 "
        "groups and MQA in dense models of 7B; the 93.3 % sets 6 bits of V2 against 16 of DeepSeek 67B",
    ),
    variants=variants,
    changes=frozenset(
        {
            "model.model_type",
            "model.intermediate_size",
            "model.attention.kind",
            "model.attention.num_key_value_heads",
        }
    ),
    minutes={"toy": 0.1, "cpu": 8, "gpu": 6},
    seeds=3,
    measure=measure,
    conclude=conclude,
    shows="the loss of each attention in dense models of equal parameters and depth, with V2's proportions of latent "
    f"and head, on the same tokens of {STREAM_TEXT}; and, by count of the published shapes, how much of the 93.3 % "
    "belongs to latents.",
    does_not_show="benchmark scores, nor large models: a head here is 16 wide, a row a few hundred tokens, and no "
    "learning rate was tuned. The widths of heads differ as they do in V2: a latent key has half a head more.",
)
