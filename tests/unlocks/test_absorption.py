"""Operations counted while they run obey the planner's formulas."""

from pathlib import Path

import torch

from fathom.plan.count import score_flops
from fathom.unlocks import absorption
from fathom.unlocks.experiment import Context


def test_operations_are_those_of_the_formulas(tmp_path: Path) -> None:
    found = absorption.measure(Context(torch.device("cpu"), "toy", tmp_path), 0)
    shape, width = absorption.attention("toy")
    config = absorption.ModelConfig(hidden_size=width, attention=shape)
    heads, expanded = shape.num_attention_heads, shape.qk_nope_head_dim + shape.v_head_dim
    expansion = 2 * heads * expanded * shape.kv_lora_rank  # of one latent into keys and values
    rest = 2 * width * (heads * shape.qk_head_dim + shape.cache_width + heads * shape.v_head_dim)
    for i, context in enumerate(found["contexts"]):
        keys = context + 1
        # the fused product of a CPU wants values as wide as keys: zeros that count
        padding = 2 * heads * (shape.qk_head_dim - shape.v_head_dim)
        naive = rest + keys * (expansion + score_flops(config) + padding)
        assert found["operations"]["naive"][i] == naive
        absorbed = rest + expansion + keys * score_flops(config, absorbed=True)
        assert found["operations"]["absorbed"][i] == absorbed
    assert all(found["apart_below_margin"])


def test_one_seed_settles_nothing_and_a_slower_variant_fails() -> None:
    def seed(faster: float) -> absorption.Figures:
        return {
            "contexts": [8, 16],
            "operations": {"naive": [100, 200], "absorbed": [10, 10]},
            "apart_below_margin": [True, True],
            "timed": {"tokens_per_s": {"naive": [1.0, 1.0], "absorbed": [1.0, faster]}, "apart": [1e-6, 1e-6]},
        }

    assert absorption.conclude([seed(5.0)]).verdict == "inconclusive"
    assert absorption.conclude([seed(5.0), seed(5.1), seed(5.2)]).verdict == "supported"
    slow = absorption.conclude([seed(0.9), seed(1.0), seed(0.8)])
    assert slow.verdict == "not supported" and slow.figures["fewer_operations"] == [10, 20]
