"""Where a pipeline cuts a model."""

from dataclasses import replace
from itertools import combinations, pairwise

import pytest

from fathom.config import ModelConfig, MoEConfig
from fathom.plan.count import block_parameters
from fathom.plan.cut import behind_the_layers, cut_layers
from fathom.presets import preset

TOY = ModelConfig(num_hidden_layers=9, intermediate_size=900, moe=MoEConfig(first_k_dense_replace=3))


def busiest(config: ModelConfig, cut: list[range]) -> int:
    work = [sum(block_parameters(config, layer, active=True) for layer in layers) for layers in cut]
    work[-1] += behind_the_layers(config)
    return max(work)


@pytest.mark.parametrize("stages", range(1, 10))
@pytest.mark.parametrize("config", [TOY, replace(TOY, num_nextn_predict_layers=0, vocab_size=64)])
def test_no_other_cut_leaves_the_busiest_stage_less_to_do(config: ModelConfig, stages: int) -> None:
    cuts = [[range(a, b) for a, b in pairwise((0, *between, 9))] for between in combinations(range(1, 9), stages - 1)]
    found = cut_layers(config, stages)
    assert list(found) in cuts
    assert busiest(config, list(found)) == min(busiest(config, cut) for cut in cuts)


def test_the_last_of_v3s_sixteen_stages_has_few_layers_beside_head_and_mtp() -> None:
    lengths = [len(layers) for layers in cut_layers(preset("v3").model, 16)]
    assert lengths == [4] * 15 + [1]


@pytest.mark.parametrize("stages", [0, 10])
def test_a_stage_without_a_layer_is_refused(stages: int) -> None:
    with pytest.raises(ValueError, match=rf"{stages} stages of whole layers cannot be cut from 9 layers; choose 1"):
        cut_layers(TOY, stages)
