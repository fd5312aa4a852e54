"""Cache sizes against the published tables."""

from dataclasses import replace

import pytest

from fathom.config import AttentionConfig, ModelConfig
from fathom.plan.cache import cache_alternatives, cache_bytes, cache_elements, cache_savings
from fathom.presets import preset

GQA_8 = AttentionConfig(kind="gqa", num_attention_heads=64, num_key_value_heads=8, head_dim=128)
DEEPSEEK_67B = ModelConfig(hidden_size=8192, num_hidden_layers=95, attention=GQA_8)


@pytest.mark.parametrize(
    ("name", "elements", "size"),
    [
        ("v3", 35_136, 70_272),
        ("v2", 34_560, 69_120),
        ("v2_lite", 15_552, 31_104),
        ("qwen2.5-72b", 163_840, 327_680),
        ("llama-3.1-405b", 258_048, 516_096),
    ],
)
def test_cache_per_token_of_the_published_models(name: str, elements: int, size: int) -> None:
    model = preset(name).model
    assert (cache_elements(model), cache_bytes(model)) == (elements, size)


def test_deepseek_67b() -> None:
    assert (cache_elements(DEEPSEEK_67B), cache_bytes(DEEPSEEK_67B)) == (194_560, 389_120)


def test_narrower_formats() -> None:
    v3, v2, llama = preset("v3").model, preset("v2").model, preset("llama-3.1-405b").model
    assert cache_bytes(v3, "fp8") == 40_016  # 656 bytes a layer
    assert cache_bytes(v2, "6bit") == 25_920
    assert cache_bytes(llama, "fp8") == 258_048


def test_the_published_saving_of_v2_mixes_architecture_and_quantisation() -> None:
    savings = cache_savings(preset("v2").model, DEEPSEEK_67B)
    assert {condition: round(100 * share, 2) for condition, share in savings.items()} == {
        "both at 16 bits": 82.24,
        "6 bits against 16": 93.34,
    }


def test_v3_if_it_cached_otherwise() -> None:
    alternatives = cache_alternatives(preset("v3").model)
    assert alternatives == {"MLA": 35_136, "MHA": 1_998_848, "GQA, 8 groups": 124_928, "MQA": 15_616}


def test_a_grouped_model_if_it_cached_latents() -> None:
    llama = preset("llama-3.1-405b").model
    alternatives = cache_alternatives(llama)
    assert alternatives["GQA, 8 groups"] == cache_elements(llama)
    assert alternatives["MLA"] == 126 * 576  # 2.25 groups
    two_heads = replace(llama, attention=replace(llama.attention, num_attention_heads=2, num_key_value_heads=2))
    assert list(cache_alternatives(two_heads)) == ["MLA", "MHA", "MQA"]
