"""The published spellings: what Hugging Face calls each of our tensors, and the only file that knows it.

A released checkpoint holds one tensor per expert and gate apart from up; ours are stacked and joined. So a published
name stands for a part of one of our tensors, and the map from names to those parts serves reading and writing alike.
"""

from typing import cast

from torch import Tensor, nn

from fathom.config import ModelConfig
from fathom.model import Transformer
from fathom.model.block import Block
from fathom.model.ffn import SwiGLU
from fathom.model.moe import MoE
from fathom.model.mtp import MTPModule

ATTENTION = {"q_a_norm": "q_a_layernorm", "kv_a_norm": "kv_a_layernorm", "kv_a_proj": "kv_a_proj_with_mqa"}
SELECTION_BIAS = "mlp.gate.e_score_correction_bias"


def published_views(model: Transformer) -> dict[str, Tensor]:
    """Published name -> the part of the model's weights that it stands for, sharing their memory, without gradient.

    MTP module d is layer num_hidden_layers + d, as in the released files.
    """
    views: dict[str, Tensor] = {"model.embed_tokens.weight": model.embedding.weight}
    for layer, block in enumerate(model.layers):
        views |= _block(f"model.layers.{layer}.", cast(Block, block))
    views["model.norm.weight"] = model.norm.weight
    if not model.config.tie_word_embeddings:
        views["lm_head.weight"] = model.head.weight
    for depth, module in enumerate(model.mtp):
        views |= _mtp(mtp_prefix(model.config, depth), cast(MTPModule, module))
    return {name: view.detach() for name, view in views.items()}


def published_copies(config: ModelConfig) -> dict[str, str]:
    """Names under which a file may repeat a tensor -> the name of the tensor that it repeats."""
    head = "model.embed_tokens.weight" if config.tie_word_embeddings else "lm_head.weight"
    copies = {"lm_head.weight": head} if config.tie_word_embeddings else {}
    return copies | released_copies(config)


def released_copies(config: ModelConfig) -> dict[str, str]:
    """Those copies that released files do hold: every MTP module repeats embedding and head."""
    head = "model.embed_tokens.weight" if config.tie_word_embeddings else "lm_head.weight"
    copies: dict[str, str] = {}
    for depth in range(config.num_nextn_predict_layers):
        prefix = mtp_prefix(config, depth)
        copies[f"{prefix}embed_tokens.weight"] = "model.embed_tokens.weight"
        copies[f"{prefix}shared_head.head.weight"] = head
    return copies


def mtp_prefix(config: ModelConfig, depth: int) -> str:
    """What the names of MTP module `depth` start with."""
    return f"model.layers.{config.num_hidden_layers + depth}."


def is_quantized(name: str) -> bool:
    """Whether FP8 releases hold this tensor in e4m3: matrices of attention, feed-forward layers and experts.

    Embedding, head, router, norms and the MTP projection keep their precision (V3 3.3.1).
    """
    return name.endswith(".weight") and "_proj" in name and (".self_attn." in name or ".mlp." in name)


def is_ignored(name: str) -> bool:
    """Whether a file may hold this tensor though it follows from the config: old files keep RoPE frequencies."""
    return name.endswith(".rotary_emb.inv_freq")


def _block(prefix: str, block: Block) -> dict[str, Tensor]:
    views: dict[str, Tensor] = {
        f"{prefix}input_layernorm.weight": block.attention_norm.weight,
        f"{prefix}post_attention_layernorm.weight": block.feed_forward_norm.weight,
    }
    for name, parameter in block.attention.named_parameters():
        module, _, kind = name.partition(".")
        views[f"{prefix}self_attn.{ATTENTION.get(module, module)}.{kind}"] = parameter
    if isinstance(block.feed_forward, MoE):
        return views | _moe(prefix, block.feed_forward)
    return views | _swiglu(f"{prefix}mlp.", block.feed_forward.gate_up, block.feed_forward.down)


def _moe(prefix: str, moe: MoE) -> dict[str, Tensor]:
    views: dict[str, Tensor] = {f"{prefix}mlp.gate.weight": moe.router.weight}
    if moe.config.has_selection_bias:
        views[f"{prefix}{SELECTION_BIAS}"] = moe.router.selection_bias
    for expert, (gate_up, down) in enumerate(zip(moe.gate_up.unbind(), moe.down.unbind(), strict=True)):
        views |= _gated(f"{prefix}mlp.experts.{expert}.", gate_up, down)
    if isinstance(moe.shared, SwiGLU):
        views |= _swiglu(f"{prefix}mlp.shared_experts.", moe.shared.gate_up, moe.shared.down)
    return views


def _swiglu(prefix: str, gate_up: nn.Linear, down: nn.Linear) -> dict[str, Tensor]:
    return _gated(prefix, gate_up.weight, down.weight)


def _gated(prefix: str, gate_up: Tensor, down: Tensor) -> dict[str, Tensor]:
    gate, up = gate_up.chunk(2)
    return {f"{prefix}gate_proj.weight": gate, f"{prefix}up_proj.weight": up, f"{prefix}down_proj.weight": down}


def _mtp(prefix: str, module: MTPModule) -> dict[str, Tensor]:
    return {
        f"{prefix}enorm.weight": module.embed_norm.weight,
        f"{prefix}hnorm.weight": module.hidden_norm.weight,
        f"{prefix}eh_proj.weight": module.projection.weight,
        **_block(prefix, module.block),
        f"{prefix}shared_head.norm.weight": module.norm.weight,
    }
