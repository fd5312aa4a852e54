"""A team's job, run in the test's own process."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from fathom.config import AttentionConfig, ModelConfig, MoEConfig
from fathom.parallel.world import World

Play = Callable[..., list[Any]]

TINY = ModelConfig(
    vocab_size=1300,  # room for the tokenizer's own entries
    hidden_size=16,
    num_hidden_layers=2,
    num_nextn_predict_layers=0,
    initializer_range=0.1,
    attention=AttentionConfig(
        num_attention_heads=2,
        num_key_value_heads=2,
        kv_lora_rank=8,
        qk_nope_head_dim=8,
        qk_rope_head_dim=8,
        v_head_dim=8,
    ),
    moe=MoEConfig(n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=8, seq_aux_alpha=0.0),
)


@pytest.fixture
def tiny() -> ModelConfig:
    return TINY


@pytest.fixture
def play() -> Play:
    """Run a job for some turns; what it handed in, the readiness first."""
    torch.set_num_threads(1)

    def run(job: Callable[..., None], turns: int, *args: object) -> list[Any]:
        handed_in: list[Any] = []

        def turn(result: Any) -> bool:
            handed_in.append(result)
            return len(handed_in) <= turns

        job(World(0, 1, torch.device("cpu")), turn, *args)
        return handed_in

    return run
