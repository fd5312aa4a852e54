"""The published names and how many bytes stand behind them."""

import math
from collections import Counter

import torch

from fathom.checkpoint.names import is_quantized, published_copies, published_views, released_copies
from fathom.checkpoint.tensors import stored_bytes, stored_dtype
from fathom.config import AttentionConfig, ModelConfig, MoEConfig
from fathom.kernels.quant import block_grid
from fathom.model import Transformer

SMALL = ModelConfig(
    vocab_size=32,
    hidden_size=16,
    num_hidden_layers=2,
    intermediate_size=24,
    attention=AttentionConfig(q_lora_rank=8),
    moe=MoEConfig(n_routed_experts=2, moe_intermediate_size=12, first_k_dense_replace=1),
)
ATTENTION = [
    "input_layernorm.weight",
    "post_attention_layernorm.weight",
    "self_attn.q_a_proj.weight",
    "self_attn.q_a_layernorm.weight",
    "self_attn.q_b_proj.weight",
    "self_attn.kv_a_proj_with_mqa.weight",
    "self_attn.kv_a_layernorm.weight",
    "self_attn.kv_b_proj.weight",
    "self_attn.o_proj.weight",
]
DENSE = ["mlp.gate_proj.weight", "mlp.up_proj.weight", "mlp.down_proj.weight"]
EXPERTS = [
    "mlp.gate.weight",
    "mlp.gate.e_score_correction_bias",
    *(f"mlp.experts.{e}.{part}_proj.weight" for e in (0, 1) for part in ("gate", "up", "down")),
    *(f"mlp.shared_experts.{part}_proj.weight" for part in ("gate", "up", "down")),
]
MTP = ["enorm.weight", "hnorm.weight", "eh_proj.weight", "shared_head.norm.weight"]


def test_names_of_a_small_v3() -> None:
    expected = {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}
    expected |= {f"model.layers.0.{name}" for name in ATTENTION + DENSE}
    expected |= {f"model.layers.1.{name}" for name in ATTENTION + EXPERTS}
    expected |= {f"model.layers.2.{name}" for name in ATTENTION + EXPERTS + MTP}
    assert set(published_views(Transformer(SMALL))) == expected
    assert released_copies(SMALL) == {
        "model.layers.2.embed_tokens.weight": "model.embed_tokens.weight",
        "model.layers.2.shared_head.head.weight": "lm_head.weight",
    }


def test_a_tied_head_is_a_copy_of_the_embedding() -> None:
    tied = ModelConfig(tie_word_embeddings=True, num_nextn_predict_layers=0)
    assert "lm_head.weight" not in published_views(Transformer(tied))
    assert published_copies(tied) == {"lm_head.weight": "model.embed_tokens.weight"}
    assert released_copies(tied) == {}


def test_views_are_the_parts_of_our_joined_weights() -> None:
    model = Transformer(SMALL)
    views = published_views(model)
    moe = model.layers[1].feed_forward
    views["model.layers.1.mlp.experts.1.gate_proj.weight"].fill_(1.0)
    views["model.layers.1.mlp.experts.1.up_proj.weight"].fill_(2.0)
    views["model.layers.0.mlp.up_proj.weight"].fill_(3.0)
    assert (moe.gate_up[1, :12] == 1).all()
    assert (moe.gate_up[1, 12:] == 2).all()
    assert (model.layers[0].feed_forward.gate_up.weight[24:] == 3).all()


def test_fp8_release_of_v3_has_the_published_number_of_elements() -> None:
    """Hugging Face counts 680,571,043,840 e4m3, 3,918,786,560 bfloat16 and 41,555,600 float32 elements."""
    config = ModelConfig(
        vocab_size=129_280,
        hidden_size=7168,
        num_hidden_layers=61,
        intermediate_size=18_432,
        attention=AttentionConfig(
            num_attention_heads=128,
            num_key_value_heads=128,
            q_lora_rank=1536,
            kv_lora_rank=512,
            qk_nope_head_dim=128,
            qk_rope_head_dim=64,
            v_head_dim=128,
        ),
        moe=MoEConfig(
            n_routed_experts=256,
            num_experts_per_tok=8,
            moe_intermediate_size=2048,
            first_k_dense_replace=3,
            n_group=8,
            topk_group=4,
        ),
    )
    with torch.device("meta"):
        views = published_views(Transformer(config))
    for copy, original in released_copies(config).items():
        views[copy] = views[original]
    counted: Counter[torch.dtype] = Counter()
    for name, view in views.items():
        counted[stored_dtype(name, "fp8")] += view.numel()
        if is_quantized(name):
            counted[torch.float32] += math.prod(block_grid(view.shape))
    assert counted[torch.float8_e4m3fn] == 680_571_043_840
    assert counted[torch.bfloat16] == 3_918_786_560
    assert counted[torch.float32] == 41_555_600
    assert sum(stored_bytes(name, tuple(view.shape), "fp8") for name, view in views.items()) == 688_574_839_360
