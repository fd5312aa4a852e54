"""The presets against the published parameter counts, by the arithmetic of the architecture."""

import pytest

from fathom.config import ModelConfig
from fathom.presets import PRESETS, preset


def attention_weights(model: ModelConfig) -> int:
    """Elements of one attention layer, the norms inside it included."""
    a, width = model.attention, model.hidden_size
    heads = a.num_attention_heads
    if a.kind == "gqa":
        queries, keys = heads * a.head_dim, a.num_key_value_heads * a.head_dim
        biases = queries + 2 * keys if a.attention_bias else 0
        return width * (2 * queries + 2 * keys) + biases + (2 * a.head_dim if a.qk_norm else 0)
    rank, latent, turned = a.q_lora_rank, a.kv_lora_rank, a.qk_rope_head_dim
    per_head = heads * (a.qk_nope_head_dim + turned)
    queries = width * per_head if rank is None else width * rank + rank + rank * per_head
    keys = width * (latent + turned) + latent + latent * heads * (a.qk_nope_head_dim + a.v_head_dim)
    return queries + keys + heads * a.v_head_dim * width


def weights(model: ModelConfig, experts: int, tables: int) -> int:
    """Elements of the trunk with `experts` routed experts a layer and `tables` of embedding and head."""
    width, moe = model.hidden_size, model.moe
    total = tables * model.vocab_size * width + width
    for layer in range(model.num_hidden_layers):
        total += attention_weights(model) + 2 * width
        if model.is_moe_layer(layer):
            gate = moe.n_routed_experts * width + (moe.n_routed_experts if moe.has_selection_bias else 0)
            total += (experts + moe.n_shared_experts) * 3 * width * moe.moe_intermediate_size + gate
        else:
            total += 3 * width * model.intermediate_size
    return total


def total_weights(model: ModelConfig) -> int:
    return weights(model, model.moe.n_routed_experts, 1 if model.tie_word_embeddings else 2)


PUBLISHED_TOTALS = {
    "v3": 671_026_419_200,
    "v2": 235_741_434_880,
    "v2_lite": 15_706_484_224,
    "moonlight": 15_960_110_208,
    "kimi_k2": 1_026_408_232_448,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "llama-3.1-405b": 405_853_388_800,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-3b": 3_085_938_688,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-14b": 14_770_033_664,
    "qwen2.5-32b": 32_763_876_352,
    "qwen2.5-72b": 72_706_203_648,
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
    "qwen3-14b": 14_768_307_200,
    "qwen3-32b": 32_762_123_264,
}


@pytest.mark.parametrize(("name", "total"), PUBLISHED_TOTALS.items())
def test_totals_are_the_published_ones(name: str, total: int) -> None:
    assert total_weights(preset(name).model) == total


@pytest.mark.parametrize(
    ("name", "active", "without_embedding"),
    [
        ("v3", 37_552_297_472, 36_625_618_432),
        ("v2", 21_375_800_320, 20_851_512_320),
        ("v2_lite", 2_661_150_208, 2_451_435_008),
        ("moonlight", 2_914_776_192, 2_579_231_872),
        ("kimi_k2", 32_861_500_928, 31_687_095_808),
    ],
)
def test_active_weights_are_the_published_ones(name: str, active: int, without_embedding: int) -> None:
    model = preset(name).model
    assert weights(model, model.moe.num_experts_per_tok, 2) == active
    assert weights(model, model.moe.num_experts_per_tok, 1) == without_embedding


def test_mtp_module_of_v3_has_the_published_size() -> None:
    model = preset("v3").model
    width, moe = model.hidden_size, model.moe
    experts = (moe.n_routed_experts + moe.n_shared_experts) * 3 * width * moe.moe_intermediate_size
    gate = moe.n_routed_experts * (width + 1)
    assert attention_weights(model) + 5 * width + experts + gate + 2 * width * width == 11_610_068_224


def test_small_has_817_million_weights_and_168_active() -> None:
    model = preset("small").model
    assert round(total_weights(model) / 1e6, 1) == 816.9
    assert round(weights(model, model.moe.num_experts_per_tok, 1) / 1e6, 1) == 167.6


def test_cache_widths_are_those_of_the_reports() -> None:
    elements = {name: preset(name).model.attention.cache_width for name in ("v3", "qwen2.5-72b", "llama-3.1-405b")}
    layers = {name: preset(name).model.num_hidden_layers for name in elements}
    assert {name: elements[name] * layers[name] for name in elements} == {
        "v3": 35_136,
        "qwen2.5-72b": 163_840,
        "llama-3.1-405b": 258_048,
    }


def test_v3_trains_on_14_8_trillion_tokens() -> None:
    train = preset("v3").pretrain
    full = train.batch_rows * train.seq_len
    assert full == 62_914_560
    growing = train.schedule.batch_ramp * train.steps
    tokens = full * (train.steps - growing) + full * growing * (1 + train.schedule.batch_start) / 2
    assert tokens / 1e12 == pytest.approx(14.8, abs=1e-3)


def test_every_preset_names_itself() -> None:
    assert all(config.preset == name for name, config in PRESETS.items())
    assert len(PRESETS) == 30


def test_laptop_variants_differ_where_they_say() -> None:
    assert preset("laptop").cold_start and not preset("laptop-zero").cold_start
    assert preset("laptop-mul").task.operators == "+-*"
    assert preset("laptop-four").task.numbers == 4


def test_answers_fit_the_context() -> None:
    for config in PRESETS.values():
        context = config.model.max_position_embeddings
        assert max(config.pretrain.seq_len, config.sft.seq_len, config.grpo.sampling.max_tokens) <= context
        assert config.text.vocab_size <= config.model.vocab_size


@pytest.mark.parametrize(
    ("typo", "meant"), [("lapptop", "laptop"), ("v2-lite", "v2_lite"), ("qwen2.5-7", "qwen2.5-7b")]
)
def test_unknown_preset_names_the_nearest(typo: str, meant: str) -> None:
    with pytest.raises(ValueError, match=f"did you mean {meant}\\?"):
        preset(typo)
