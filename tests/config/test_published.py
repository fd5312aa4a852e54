"""`config.json` both ways, against files as published and against transformers' own reading."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, DeepseekV3Config

from fathom.config import AttentionConfig, ModelConfig, MoEConfig, RopeConfig
from fathom.config.published import from_published, to_published
from fathom.presets import PRESETS, preset

V3_FILE: dict[str, Any] = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "attention_bias": False,
    "aux_loss_alpha": 0.001,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "ep_size": 1,
    "first_k_dense_replace": 3,
    "hidden_act": "silu",
    "hidden_size": 7168,
    "initializer_range": 0.02,
    "intermediate_size": 18432,
    "kv_lora_rank": 512,
    "max_position_embeddings": 163840,
    "model_type": "deepseek_v3",
    "moe_intermediate_size": 2048,
    "moe_layer_freq": 1,
    "n_group": 8,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_attention_heads": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 61,
    "num_key_value_heads": 128,
    "num_nextn_predict_layers": 1,
    "q_lora_rank": 1536,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "quantization_config": {
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "quant_method": "fp8",
        "weight_block_size": [128, 128],
    },
    "rms_norm_eps": 1e-06,
    "rope_scaling": {
        "beta_fast": 32,
        "beta_slow": 1,
        "factor": 40,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 4096,
        "type": "yarn",
    },
    "rope_theta": 10000,
    "routed_scaling_factor": 2.5,
    "scoring_func": "sigmoid",
    "seq_aux": True,
    "tie_word_embeddings": False,
    "topk_group": 4,
    "topk_method": "noaux_tc",
    "torch_dtype": "bfloat16",
    "v_head_dim": 128,
    "vocab_size": 129280,
}
LLAMA_1B_FILE: dict[str, Any] = {
    "attention_bias": False,
    "bos_token_id": 128000,
    "eos_token_id": [128001, 128008, 128009],
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 16,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 32.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
    "vocab_size": 128256,
}
QWEN2_14B_FILE: dict[str, Any] = {
    "bos_token_id": 151643,
    "eos_token_id": 151643,
    "hidden_act": "silu",
    "hidden_size": 5120,
    "intermediate_size": 13824,
    "max_position_embeddings": 131072,
    "max_window_layers": 48,
    "model_type": "qwen2",
    "num_attention_heads": 40,
    "num_hidden_layers": 48,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_theta": 1000000.0,
    "sliding_window": 131072,
    "tie_word_embeddings": False,
    "use_sliding_window": False,
    "vocab_size": 152064,
}


def v3_as_released() -> ModelConfig:
    """The preset with the two values that the released file has and the training had not."""
    model = preset("v3").model
    return replace(model, initializer_range=0.02, moe=replace(model.moe, seq_aux_alpha=1e-3))


def test_files_as_published_are_the_presets() -> None:
    assert from_published(V3_FILE) == v3_as_released()
    assert from_published(LLAMA_1B_FILE) == preset("llama-3.2-1b").model  # the first of three end tokens
    assert from_published(QWEN2_14B_FILE) == preset("qwen2.5-14b").model


SMALL_MODELS = {
    "laptop": ModelConfig(),
    "dense mla": ModelConfig(num_nextn_predict_layers=0, moe=MoEConfig(n_routed_experts=0)),
    "groups": ModelConfig(
        attention=AttentionConfig(q_lora_rank=24),
        moe=MoEConfig(n_routed_experts=8, n_group=4, topk_group=2, n_shared_experts=2, bias_update_speed=1e-2),
        rope=RopeConfig(scaling="yarn", factor=4.0, mscale=0.707, mscale_all_dim=0.707, beta_fast=16.0),
    ),
    "plain yarn": ModelConfig(rope=RopeConfig(scaling="yarn", factor=4.0)),
}
MODELS = {name: config.model for name, config in PRESETS.items()} | SMALL_MODELS


@pytest.mark.parametrize("name", MODELS)
def test_what_is_written_is_read_back(name: str) -> None:
    published = json.loads(json.dumps(to_published(MODELS[name], "fp8")))
    assert from_published(published) == MODELS[name]


@pytest.mark.parametrize("name", MODELS)
def test_transformers_reads_what_is_written(name: str, tmp_path: Path) -> None:
    model = MODELS[name]
    published = to_published(model)
    if model.model_type == "kimi_k2":  # transformers knows the network, not the name
        theirs = DeepseekV3Config(**published)
    else:
        (tmp_path / "config.json").write_text(json.dumps(published))
        theirs = AutoConfig.from_pretrained(tmp_path)
        assert theirs.model_type == model.model_type
    saved = json.loads(theirs.to_json_string(use_diff=False))
    assert from_published(saved | {"model_type": model.model_type}) == model
    assert saved["dtype"] == "bfloat16"


def test_transformers_means_the_same_by_rope() -> None:
    yarn = DeepseekV3Config(**to_published(preset("v3").model)).rope_parameters
    assert (yarn["rope_type"], yarn["rope_theta"], yarn["factor"]) == ("yarn", 10_000.0, 40.0)
    assert (yarn["mscale"], yarn["mscale_all_dim"], yarn["original_max_position_embeddings"]) == (1.0, 1.0, 4096)


def test_transformers_defaults_are_read_as_transformers_means_them(tmp_path: Path) -> None:
    """What transformers saves by itself names neither the scoring nor the selection of deepseek_v3."""
    DeepseekV3Config(hidden_size=64, num_hidden_layers=4).save_pretrained(tmp_path)
    model = from_published(json.loads((tmp_path / "config.json").read_text()))
    assert (model.hidden_size, model.moe.scoring_func, model.moe.topk_method) == (64, "sigmoid", "noaux_tc")
    assert model.rope == RopeConfig(theta=10_000.0)


def test_old_and_new_spelling_of_rope_agree() -> None:
    old = LLAMA_1B_FILE
    scaling = old["rope_scaling"] | {"rope_theta": old["rope_theta"]}
    new = {key: value for key, value in old.items() if not key.startswith("rope_")} | {"rope_parameters": scaling}
    assert from_published(new) == from_published(old)


def test_fp8_announces_its_blocks() -> None:
    published = to_published(ModelConfig(), "fp8")
    assert published["quantization_config"] == V3_FILE["quantization_config"]
    assert "quantization_config" not in to_published(ModelConfig(), "float32")
    assert to_published(ModelConfig(), "float32")["dtype"] == "float32"


@pytest.mark.parametrize(
    ("file", "field", "value"),
    [
        (V3_FILE, "hidden_act", "gelu"),
        (V3_FILE, "moe_layer_freq", 2),
        (V3_FILE, "rope_interleave", False),
        (V3_FILE, "attention_bias", True),
        (V3_FILE, "scoring_func", "softmax"),
        (V3_FILE, "topk_method", "greedy"),
        (V3_FILE, "num_key_value_heads", 8),
        (V3_FILE, "model_type", "deepseek_v32"),
        (V3_FILE, "kv_lora_rank", None),
        (V3_FILE, "quantization_config", {"quant_method": "awq"}),
        (V3_FILE, "rope_scaling", {"type": "yarn", "factor": 40, "mscale_all_dim": 1.0}),
        (V3_FILE, "rope_scaling", {"type": "yarn", "factor": 40, "mscale": 0.7}),
        (V3_FILE, "rope_scaling", {"type": "yarn"}),
        (LLAMA_1B_FILE, "mlp_bias", True),
        (LLAMA_1B_FILE, "hidden_size", None),
        (LLAMA_1B_FILE, "rope_scaling", {"rope_type": "linear", "factor": 2.0}),
        (QWEN2_14B_FILE, "use_sliding_window", True),
        (QWEN2_14B_FILE, "layer_types", ["sliding_attention"]),
    ],
)
def test_what_is_not_computed_is_refused_by_name(file: dict[str, Any], field: str, value: object) -> None:
    culprit = {"rope_scaling": "factor|mscale|rope_type"}.get(field, field)
    with pytest.raises(ValueError, match=culprit):
        from_published(file | {field: value})


@pytest.mark.parametrize(
    ("model", "field"),
    [
        (replace(preset("llama-3.1-8b").model, num_nextn_predict_layers=1), "num_nextn_predict_layers"),
        (replace(preset("qwen2.5-7b").model, model_type="llama"), "attention_bias"),
        (replace(preset("v3").model, model_type="deepseek_v2"), "num_nextn_predict_layers"),
        (ModelConfig(moe=MoEConfig(scoring_func="softmax")), "scoring_func"),
        (ModelConfig(moe=MoEConfig(n_routed_experts=0)), "num_nextn_predict_layers"),
        (ModelConfig(model_type="qwen3"), "attention.kind"),
        (ModelConfig(rope=RopeConfig(scaling="yarn", factor=2.0, mscale=0.7)), "mscale"),
    ],
)
def test_what_a_family_cannot_say_is_not_written(model: ModelConfig, field: str) -> None:
    with pytest.raises(ValueError, match=field):
        to_published(model)
