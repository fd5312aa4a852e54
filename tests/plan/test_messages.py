"""How many processes a token reaches, against tokens that choose at random."""

from dataclasses import replace

import numpy as np
import pytest

from fathom.plan.messages import processes_reached
from fathom.presets import preset


@pytest.mark.parametrize(("ways", "groups", "kept"), [(8, 8, 4), (4, 8, 4), (16, 8, 4), (8, 1, 1), (2, 4, 1)])
def test_processes_reached_are_those_of_random_choices(ways: int, groups: int, kept: int) -> None:
    base = preset("v3").model
    moe = replace(base.moe, n_routed_experts=32, num_experts_per_tok=4, n_group=groups, topk_group=kept)
    config = replace(base, moe=moe)
    rng, counts = np.random.default_rng(0), []
    for home in range(2000):
        chosen = rng.choice(groups, kept, replace=False)
        candidates = np.concatenate([np.arange(32 // groups) + g * (32 // groups) for g in chosen])
        processes = set((rng.choice(candidates, 4, replace=False) // (32 // ways)).tolist())
        counts.append(len(processes - {home % ways}))
    assert processes_reached(config, ways) == pytest.approx(np.mean(counts), rel=0.05)


def test_v3s_tokens_reach_at_most_four_nodes() -> None:
    config = preset("v3").model
    assert 4 * 7 / 8 * 0.9 < processes_reached(config, 8) <= 4 * 7 / 8  # one of eight is the token's own
