from pathlib import Path

import pytest
import torch

from fathom.checkpoint.hub import save_published
from fathom.config import AttentionConfig, ModelConfig, MoEConfig
from fathom.infer.offline import Engine
from fathom.model import Transformer
from fathom.text.tokenizer import MINIMUM_VOCABULARY, Tokenizer


@pytest.fixture(scope="session")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """An engine for an untrained model with experts, whose context holds 48 tokens."""
    path: Path = tmp_path_factory.mktemp("model")
    attention = AttentionConfig(
        num_attention_heads=2,
        num_key_value_heads=2,
        kv_lora_rank=8,
        qk_nope_head_dim=4,
        qk_rope_head_dim=4,
        v_head_dim=4,
    )
    config = ModelConfig(
        vocab_size=MINIMUM_VOCABULARY,
        hidden_size=16,
        num_hidden_layers=2,
        initializer_range=0.3,
        max_position_embeddings=48,
        num_nextn_predict_layers=0,
        attention=attention,
        moe=MoEConfig(n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=8),
    )
    model = Transformer(config)
    model.initialise(torch.Generator().manual_seed(0))
    save_published(model, path)
    Tokenizer.train([], MINIMUM_VOCABULARY).save(path / "tokenizer.json")
    return Engine(path, rows=4, device="cpu")
