"""The published `config.json` of Hugging Face, read and written without torch.

Families: deepseek_v3, deepseek_v2, kimi_k2, llama, qwen2, qwen3. A file that asks for something Fathom does not
compute is refused with the field's name, and so is a model that a family cannot express.
"""

from collections.abc import Mapping
from typing import Any, Literal, cast

from fathom.config.model import AttentionConfig, ModelConfig, MoEConfig, RopeConfig

Json = Mapping[str, Any]
Dtype = Literal["float32", "bfloat16", "fp8"]

ARCHITECTURES = {
    "deepseek_v3": "DeepseekV3ForCausalLM",
    "deepseek_v2": "DeepseekV2ForCausalLM",
    "kimi_k2": "DeepseekV3ForCausalLM",  # the same network under a name of its own
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
MLA_FAMILIES = ("deepseek_v3", "deepseek_v2", "kimi_k2")

# Fields that must hold the value that Fathom computes with; absent or null means just that value.
COMPUTED = {
    "hidden_act": "silu",
    "attention_bias": False,  # true puts a bias on the output projection too; that of qwen2 on q, k, v has no field
    "attention_dropout": 0.0,
    "mlp_bias": False,
    "moe_layer_freq": 1,
    "partial_rotary_factor": 1.0,
    "rope_interleave": True,  # deepseek_v3: RoPE turns neighbouring dims
    "use_sliding_window": False,
}

# Fields that are spelled alike on both sides: those a file must have, and what the others default to.
MODEL = ("vocab_size", "hidden_size", "num_hidden_layers", "intermediate_size", "max_position_embeddings")
MODEL_DEFAULTS: Json = {"rms_norm_eps": 1e-6, "initializer_range": 0.02, "tie_word_embeddings": False}
MLA = ("num_attention_heads", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
MOE = ("n_routed_experts", "num_experts_per_tok", "moe_intermediate_size")
MOE_DEFAULTS: Json = {
    "n_shared_experts": 0,
    "first_k_dense_replace": 0,
    "n_group": 1,
    "topk_group": 1,
    "routed_scaling_factor": 1.0,
    "bias_update_speed": MoEConfig.bias_update_speed,  # ours: no published file has it
}
GATE_DEFAULTS: Mapping[str, Json] = {
    "deepseek_v3": {"scoring_func": "sigmoid", "topk_method": "noaux_tc", "norm_topk_prob": True},
    "deepseek_v2": {"scoring_func": "softmax", "topk_method": "greedy", "norm_topk_prob": False},
    "kimi_k2": {"scoring_func": "sigmoid", "topk_method": "noaux_tc", "norm_topk_prob": True},
}
YARN_DEFAULTS: Json = {"beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 0.0}
LLAMA3 = ("low_freq_factor", "high_freq_factor")


def from_published(published: Json) -> ModelConfig:
    """The architecture that a `config.json` describes, in the spelling of transformers 5 or before.

    Of several end tokens the first is kept. Raises ValueError for an unknown family, a missing field, or a feature
    that Fathom does not compute.
    """
    family = published.get("model_type")
    if family not in ARCHITECTURES:
        raise ValueError(f"model_type={family!r} is not supported; choose one of {', '.join(ARCHITECTURES)}")
    _refuse_uncomputed(published)
    model = ModelConfig(
        model_type=family,
        num_nextn_predict_layers=published.get("num_nextn_predict_layers") or 0,
        bos_token_id=_first(published.get("bos_token_id")),
        eos_token_id=_first(published.get("eos_token_id")),
        attention=_mla(published) if family in MLA_FAMILIES else _gqa(published),
        rope=_rope(published),
        moe=_moe(published),
        **_pick(published, MODEL, MODEL_DEFAULTS),
    )
    _require_expressible(model)
    return model


def to_published(model: ModelConfig, dtype: Dtype = "bfloat16") -> dict[str, Any]:
    """The `config.json` of `model`: `from_published` gives an equal model back.

    RoPE is written in both spellings, `rope_parameters` and `rope_theta` with `rope_scaling`. With "fp8" the linear
    weights are e4m3 codes with one scale per 128 x 128 block. Raises ValueError where the family `model_type` has no
    way to say what the model does.
    """
    _require_expressible(model)
    published: dict[str, Any] = {
        "architectures": [ARCHITECTURES[model.model_type]],
        "model_type": model.model_type,
        **_fields(model, *MODEL, *MODEL_DEFAULTS, "bos_token_id", "eos_token_id"),
        **_fields(model.attention, "num_attention_heads", "num_key_value_heads"),
        **_rope_fields(model.rope),
        **(_mla_fields(model) if model.model_type in MLA_FAMILIES else {"head_dim": model.attention.head_dim}),
        "hidden_act": "silu",
        "attention_dropout": 0.0,
        "use_cache": True,
        "dtype": "float32" if dtype == "float32" else "bfloat16",
    }
    if model.model_type != "qwen2":
        published["attention_bias"] = False
    if dtype == "fp8":
        blocks = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}
        published["quantization_config"] = blocks
    return published


def _refuse_uncomputed(published: Json) -> None:
    for field, computed in COMPUTED.items():
        if published.get(field) not in (None, computed):
            raise ValueError(f"{field}={published[field]!r} is not supported; Fathom computes {field}={computed!r}")
    other_layers = set(published.get("layer_types") or ()) - {"full_attention"}
    if other_layers:
        raise ValueError(f"layer_types has {', '.join(sorted(other_layers))}; Fathom computes full_attention only")
    blocks = published.get("quantization_config") or {"quant_method": "fp8", "weight_block_size": [128, 128]}
    if blocks.get("quant_method") != "fp8" or blocks.get("weight_block_size") != [128, 128]:
        raise ValueError(
            f"quantization_config has quant_method={blocks.get('quant_method')!r} and "
            f"weight_block_size={blocks.get('weight_block_size')!r}; Fathom reads fp8 in blocks of [128, 128]"
        )


def _require_expressible(model: ModelConfig) -> None:
    """Raise ValueError where the family's published code would compute something else than `model`."""
    family, attention, moe = model.model_type, model.attention, model.moe
    has_experts = moe.n_routed_experts > 0
    rules: list[tuple[str, object, tuple[object, ...]]] = []
    if family in MLA_FAMILIES:
        rules += [
            ("attention.kind", attention.kind, ("mla",)),
            ("attention.num_key_value_heads", attention.num_key_value_heads, (attention.num_attention_heads,)),
        ]
    else:
        rules += [
            ("attention.kind", attention.kind, ("gqa",)),
            ("attention.attention_bias", attention.attention_bias, (family == "qwen2",)),
            ("attention.qk_norm", attention.qk_norm, (family == "qwen3",)),
            ("moe.n_routed_experts", moe.n_routed_experts, (0,)),
        ]
    if family not in ("deepseek_v3", "kimi_k2") or not has_experts:  # a published MTP module has experts
        rules.append(("num_nextn_predict_layers", model.num_nextn_predict_layers, (0,)))
    if has_experts:
        gate = GATE_DEFAULTS.get(family, {})
        rules.append(("moe.scoring_func", moe.scoring_func, (gate.get("scoring_func"),)))
        if family == "deepseek_v2":
            rules.append(("moe.topk_method", moe.topk_method, ("greedy", "group_limited_greedy")))
            rules.append(("moe.norm_topk_prob", moe.norm_topk_prob, (False,)))
        else:
            rules.append(("moe.topk_method", moe.topk_method, ("noaux_tc",)))
    if not model.rope.mscale_all_dim:
        rules.append(("rope.mscale (without mscale_all_dim)", model.rope.mscale, (1.0,)))
    for field, value, allowed in rules:
        if value not in allowed:
            wanted = " or ".join(map(str, allowed))
            raise ValueError(f"{field}={value} does not fit model_type={family!r}, whose published form has {wanted}")


def _mla(published: Json) -> AttentionConfig:
    optional = {"num_key_value_heads": published.get("num_attention_heads"), "q_lora_rank": None}
    return AttentionConfig(kind="mla", **_pick(published, MLA, optional))


def _mla_fields(model: ModelConfig) -> dict[str, Any]:
    """What deepseek_v3, deepseek_v2 and kimi_k2 have beyond other families."""
    moe = model.moe
    fields = _fields(model, "num_nextn_predict_layers") | _fields(model.attention, *MLA, "q_lora_rank")
    if model.model_type != "deepseek_v2":
        fields["rope_interleave"] = True
    if moe.n_routed_experts == 0:
        return fields | {"n_routed_experts": 0, "first_k_dense_replace": model.num_hidden_layers}
    fields |= _fields(moe, *MOE, *MOE_DEFAULTS, "scoring_func", "topk_method", "norm_topk_prob")
    return fields | {"aux_loss_alpha": moe.seq_aux_alpha, "seq_aux": True, "moe_layer_freq": 1}


def _gqa(published: Json) -> AttentionConfig:
    heads = _need(published, "num_attention_heads")
    optional = {"num_key_value_heads": heads, "head_dim": _need(published, "hidden_size") // heads}
    return AttentionConfig(
        kind="gqa",
        num_attention_heads=heads,
        attention_bias=published["model_type"] == "qwen2",
        qk_norm=published["model_type"] == "qwen3",
        **_pick(published, (), optional),
    )


def _moe(published: Json) -> MoEConfig:
    gate = GATE_DEFAULTS.get(published["model_type"])
    if gate is None or not published.get("n_routed_experts"):
        return MoEConfig(n_routed_experts=0)
    alpha = published.get("aux_loss_alpha")
    return MoEConfig(
        seq_aux_alpha=MoEConfig.seq_aux_alpha if alpha is None else alpha,
        **_pick(published, MOE, {**MOE_DEFAULTS, **gate}),
    )


def _rope(published: Json) -> RopeConfig:
    """RoPE from `rope_parameters` (transformers 5), or from `rope_theta` and `rope_scaling` (before)."""
    scaling = cast(Json, published.get("rope_scaling") or published.get("rope_parameters") or {})
    theta = float(scaling.get("rope_theta") or published.get("rope_theta") or 10_000.0)
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "default":
        return RopeConfig(theta=theta)
    if kind not in ("yarn", "llama3"):
        raise ValueError(f"rope_type={kind!r} is not supported; Fathom computes default, yarn and llama3")
    for field, computed in {"attention_factor": None, "truncate": True, "partial_rotary_factor": 1.0}.items():
        if scaling.get(field) not in (None, computed):
            raise ValueError(f"{field}={scaling[field]!r} is not supported with rope_type={kind!r}; leave it out")
    if bool(scaling.get("mscale")) != bool(scaling.get("mscale_all_dim")):
        raise ValueError(
            "mscale and mscale_all_dim mean different things to different readers alone; give both or none"
        )
    trained = scaling.get("original_max_position_embeddings") or _need(published, "max_position_embeddings")
    own = _pick(scaling, (), YARN_DEFAULTS) if kind == "yarn" else _pick(scaling, LLAMA3, {})
    return RopeConfig(
        theta=theta,
        scaling=kind,
        original_max_position_embeddings=trained,
        factor=_need(scaling, "factor"),
        **own,
    )


def _rope_fields(rope: RopeConfig) -> dict[str, Any]:
    if rope.scaling == "none":
        parameters: dict[str, Any] = {"rope_type": "default"}
        scaling = None
    else:
        own = LLAMA3 if rope.scaling == "llama3" else ("beta_fast", "beta_slow")
        magnitudes = ("mscale", "mscale_all_dim") if rope.mscale_all_dim else ()
        parameters = {"rope_type": rope.scaling}
        parameters |= _fields(rope, "factor", "original_max_position_embeddings", *own, *magnitudes)
        scaling = {"type": rope.scaling, **parameters}
    return {
        "rope_theta": rope.theta,
        "rope_scaling": scaling,
        "rope_parameters": {"rope_theta": rope.theta, **parameters},
    }


def _pick(published: Json, required: tuple[str, ...], optional: Json) -> dict[str, Any]:
    """The `required` fields, and the `optional` ones or their defaults where absent or null."""
    picked = {name: _need(published, name) for name in required}
    for name, default in optional.items():
        value = published.get(name)
        picked[name] = default if value is None else value
    return picked


def _need(published: Json, name: str) -> Any:
    if published.get(name) is None:
        raise ValueError(f"{name} is missing from the published config; add it as the model's authors give it")
    return published[name]


def _first(token: int | list[int] | None) -> int | None:
    return token[0] if isinstance(token, list) else token


def _fields(section: object, *names: str) -> dict[str, Any]:
    return {name: getattr(section, name) for name in names}
