"""What is measured: DeepSeek-V3 models, small enough for two laptop cores or for one GPU."""

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor

from fathom.checkpoint.hub import save_published
from fathom.config import AttentionConfig, ModelConfig, MoEConfig
from fathom.model import Transformer
from fathom.presets import SMALL

# No MTP module, and no balance loss: the peers have neither, and both sides are to do the same work.
SHAPE = ModelConfig(
    vocab_size=4096,
    hidden_size=64,
    num_hidden_layers=2,
    num_nextn_predict_layers=0,
    initializer_range=0.1,  # spreads the logits, so that greedy texts do not hang on the last bit
    moe=MoEConfig(n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=64, seq_aux_alpha=0.0),
)

# 16.0 M parameters of which a token meets 6.4 M
MIDDLE = ModelConfig(
    vocab_size=4096,
    hidden_size=256,
    num_hidden_layers=8,
    num_nextn_predict_layers=0,
    intermediate_size=768,
    initializer_range=0.1,
    attention=AttentionConfig(
        num_attention_heads=8,
        num_key_value_heads=8,
        q_lora_rank=128,
        kv_lora_rank=64,
        qk_nope_head_dim=32,
        qk_rope_head_dim=16,
        v_head_dim=32,
    ),
    moe=MoEConfig(
        n_routed_experts=16,
        num_experts_per_tok=2,
        moe_intermediate_size=128,
        first_k_dense_replace=1,
        seq_aux_alpha=0.0,
    ),
)

SHAPES = {"0.7m": SHAPE, "16m": MIDDLE, "h200": SMALL}


@contextmanager
def published(config: ModelConfig, dtype: Literal["float32", "bfloat16"] = "float32") -> Generator[Path]:
    """A directory with fresh weights under the published names, which every side loads; deleted behind the block."""
    model = Transformer(config)
    model.initialise(torch.Generator().manual_seed(0))
    with TemporaryDirectory(prefix="fathom-bench-") as folder:
        save_published(model, Path(folder), dtype)
        yield Path(folder)


def random_tokens(vocab_size: int, rows: int, length: int) -> Int[Tensor, "B T"]:
    """The same random tokens on every side."""
    return torch.randint(0, vocab_size, (rows, length), generator=torch.Generator().manual_seed(1))


def describe_shape(config: ModelConfig) -> dict[str, int]:
    """The dims that matter, and the number of parameters."""
    with torch.device("meta"):
        parameters = sum(parameter.numel() for parameter in Transformer(config).parameters())
    return {
        "parameters": parameters,
        "layers": config.num_hidden_layers,
        "hidden_size": config.hidden_size,
        "experts": config.moe.n_routed_experts,
        "experts_per_token": config.moe.num_experts_per_tok,
        "vocab_size": config.vocab_size,
    }
