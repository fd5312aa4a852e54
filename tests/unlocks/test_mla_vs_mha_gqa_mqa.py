"""The card of attentions: equal parameters, caches as allocated, the printed saving, a verdict that can go each way."""

import pytest
import torch

from fathom.model import Transformer
from fathom.model.cache import PagedCache
from fathom.plan.cache import cache_bytes
from fathom.unlocks import mla_vs_mha_gqa_mqa as card
from fathom.unlocks.experiment import Figures, Size
from fathom.unlocks.mla_vs_mha_gqa_mqa import GQA, MHA, MLA, MQA


@pytest.mark.parametrize("size", ["toy", "cpu", "gpu"])
def test_models_are_of_equal_parameters_and_caches_of_those_bytes(size: Size) -> None:
    lessons, page = card.variants(size), 16
    with torch.device("meta"):
        counts = {name: sum(p.numel() for p in Transformer(one.model).parameters()) for name, one in lessons.items()}
    for name, lesson in lessons.items():
        assert counts[name] == pytest.approx(counts[MHA], rel=0.005), name
        allocated = sum(layer.nbytes for layer in PagedCache(lesson.model, 1, page, torch.bfloat16).layers)
        assert allocated == page * cache_bytes(lesson.model), name
    kept = {name: lesson.model.attention.cache_width for name, lesson in lessons.items()}
    assert kept[MHA] > max(kept[GQA], kept[MLA]) and min(kept[GQA], kept[MLA]) > kept[MQA]
    assert kept[MLA] == 2.25 * kept[MQA]  # as many as 2.25 groups, V2 table 1


def test_what_v2_saves_is_what_it_prints() -> None:
    found = card.decomposed()
    assert found["latents"] == pytest.approx(1 - 34_560 / 194_560)  # elements, V2 table 9 and 67B's shape
    assert found["latents and 6 bits"] == pytest.approx(1 - 34_560 * 6 / (194_560 * 16))


def figures(latent: float) -> Figures:
    losses, sizes = {MHA: 4.0, GQA: 4.1, MQA: 4.2, MLA: latent}, {MHA: 100.0, GQA: 25.0, MQA: 12.0, MLA: 28.0}
    return {name: {"loss": losses[name], "bytes": sizes[name], "parameters": 1000} for name in losses}


@pytest.mark.parametrize(
    ("losses", "verdict"),
    [([3.9], "inconclusive"), ([3.9, 3.91], "supported"), ([4.1, 4.11], "not supported"), ([3.9, 4.1], "inconclusive")],
)
def test_latents_must_beat_full_attention(losses: list[float], verdict: str) -> None:
    result = card.conclude([figures(loss) for loss in losses])
    assert result.verdict == verdict
    assert result.figures["cache_share"] == {MHA: 1.0, GQA: 0.25, MQA: 0.12, MLA: 0.28}
