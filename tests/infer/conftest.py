import pytest
import torch

from fathom.config import AttentionConfig, ModelConfig, MoEConfig
from fathom.model import Transformer

LATENT = AttentionConfig(
    num_attention_heads=2, num_key_value_heads=2, kv_lora_rank=8, qk_nope_head_dim=8, qk_rope_head_dim=4, v_head_dim=8
)
GROUPED = AttentionConfig(
    kind="gqa", num_attention_heads=4, num_key_value_heads=2, head_dim=8, attention_bias=True, qk_norm=True
)


def build(attention: AttentionConfig, vocab_size: int = 40) -> Transformer:
    """A tiny model whose weights are large enough that its laws are far from uniform."""
    config = ModelConfig(
        vocab_size=vocab_size,
        hidden_size=24,
        intermediate_size=32,
        max_position_embeddings=128,
        initializer_range=0.25,
        attention=attention,
        moe=MoEConfig(n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, first_k_dense_replace=1),
    )
    model = Transformer(config)
    model.initialise(torch.Generator().manual_seed(6))
    return model


@pytest.fixture(scope="session")
def latent() -> Transformer:
    return build(LATENT)


@pytest.fixture(scope="session", params=["mla", "gqa"])
def model(request: pytest.FixtureRequest) -> Transformer:
    return build(LATENT if request.param == "mla" else GROUPED)


@pytest.fixture(scope="session", params=["mla", "gqa"])
def narrow(request: pytest.FixtureRequest) -> Transformer:
    """Of its 5 tokens an untrained MTP module often drafts the right one, by all that it attends to."""
    model = build(LATENT if request.param == "mla" else GROUPED, vocab_size=5)
    module = model.get_submodule("mtp.0.block.attention")
    for parameter in module.parameters():
        parameter.data *= 4
    return model
