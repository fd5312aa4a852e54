"""Counts against the published figures, and against models that were built."""

from dataclasses import replace

import pytest
import torch

from fathom.config import AttentionConfig, ModelConfig, MoEConfig
from fathom.model import Transformer
from fathom.model.moe import moe_layers
from fathom.plan.count import (
    attention_parameters,
    block_parameters,
    checkpoint_bytes,
    checkpoint_elements,
    decode_flops_per_token,
    feed_forward_parameters,
    main_parameters,
    mtp_parameters,
    parts,
    prefill_flops_per_token,
    score_flops,
    train_flops_per_token,
)
from fathom.presets import PRESETS, preset


@pytest.mark.parametrize(
    ("name", "total", "active", "active_without_embedding"),
    [
        ("v3", 671_026_419_200, 37_552_297_472, 36_625_618_432),
        ("v2", 235_741_434_880, 21_375_800_320, 20_851_512_320),
        ("v2_lite", 15_706_484_224, 2_661_150_208, 2_451_435_008),
        ("moonlight", 15_960_110_208, 2_914_776_192, 2_579_231_872),
        ("kimi_k2", 1_026_408_232_448, 32_861_500_928, 31_687_095_808),
    ],
)
def test_parameters_of_the_published_models(name: str, total: int, active: int, active_without_embedding: int) -> None:
    model = preset(name).model
    assert main_parameters(model) == total
    assert main_parameters(model, active=True) == active
    assert main_parameters(model, active=True, embedding=False) == active_without_embedding


def test_parts_of_v3() -> None:
    v3 = preset("v3").model
    assert attention_parameters(v3) == 187_107_328
    assert feed_forward_parameters(v3, 0, active=False) == 396_361_728
    assert feed_forward_parameters(v3, 3, active=False) == 11_320_164_608
    assert block_parameters(v3, 3, active=False) == 11_507_286_272  # the "11.5B" of the MTP module's own block
    assert mtp_parameters(v3) == 11_610_068_224
    assert mtp_parameters(v3, active=True) == 688_100_608
    copies = 2 * v3.vocab_size * v3.hidden_size  # the released MTP layer repeats embedding and head
    assert main_parameters(v3) + mtp_parameters(v3) + copies == 684_489_845_504


def test_parts_of_v3_sum_to_the_whole_and_to_what_a_token_meets() -> None:
    v3 = preset("v3").model
    whole, active = parts(v3), parts(v3, active=True)
    assert whole["routed experts"] == 58 * 256 * 44_040_192 and active["routed experts"] == 58 * 8 * 44_040_192
    assert whole["attention"] == 61 * 187_107_328 and whole["router"] == 58 * 1_835_264
    assert whole["embedding"] == whole["head"] == 926_679_040
    assert sum(whole.values()) == 671_026_419_200 + whole["mtp"] == 671_026_419_200 + 11_610_068_224
    assert sum(active.values()) == 37_552_297_472 + active["mtp"] == 37_552_297_472 + 688_100_608


@pytest.mark.parametrize("name", PRESETS)
def test_parts_sum_to_the_whole(name: str) -> None:
    model = preset(name).model
    for active in (False, True):
        assert sum(parts(model, active).values()) == main_parameters(model, active) + mtp_parameters(model, active)


def test_llama_405b_has_eleven_times_the_active_parameters_of_v3() -> None:
    llama, v3 = preset("llama-3.1-405b").model, preset("v3").model
    times = main_parameters(llama) / main_parameters(v3, active=True, embedding=False)
    assert times == pytest.approx(11.08, abs=0.005)


def test_checkpoint_of_v3_as_released() -> None:
    v3 = preset("v3").model
    assert checkpoint_elements(v3) == {"F8_E4M3": 680_571_043_840, "BF16": 3_918_786_560, "F32": 41_555_600}
    assert sum(checkpoint_elements(v3).values()) == 684_531_386_000
    assert checkpoint_bytes(v3, "fp8") == 688_574_839_360


def test_checkpoints_without_fp8() -> None:
    v3, biases = preset("v3").model, 59 * 256
    assert checkpoint_elements(v3, fp8=False) == {"F8_E4M3": 0, "BF16": 684_489_845_504 - biases, "F32": biases}
    assert checkpoint_bytes(v3, "bfloat16") == 2 * 684_489_845_504 + 2 * biases
    assert checkpoint_bytes(v3, "float32") == 4 * 684_489_845_504
    assert checkpoint_bytes(preset("qwen2.5-7b").model, "bfloat16") == 2 * 7_615_616_512


@pytest.mark.parametrize(
    ("name", "causal", "gflops"), [("v3", True, 250.46), ("v3", False, 281.16), ("v2", True, 155.31)]
)
def test_training_operations_per_token_at_4096(name: str, causal: bool, gflops: float) -> None:
    flops = train_flops_per_token(preset(name).model, 4096, mtp=False, causal=causal)
    assert flops / 1e9 == pytest.approx(gflops, abs=0.005)


def test_operations_of_reading_and_of_generating() -> None:
    v3 = preset("v3").model
    assert prefill_flops_per_token(v3, 4096) * 3 == train_flops_per_token(v3, 4096, mtp=False)
    assert (score_flops(v3), score_flops(v3, absorbed=True)) == (81_920, 278_528)
    assert decode_flops_per_token(v3, 0) == 2 * 36_625_618_432
    assert decode_flops_per_token(v3, 1000) - decode_flops_per_token(v3, 0) == 61 * 278_528 * 1000
    qwen = preset("qwen2.5-7b").model
    assert score_flops(qwen) == score_flops(qwen, absorbed=True) == 2 * 28 * 256


def test_the_mtp_module_of_v3_adds_its_weights_the_head_again_and_a_layer_of_attention() -> None:
    v3 = preset("v3").model
    extra = train_flops_per_token(v3, 4096) - train_flops_per_token(v3, 4096, mtp=False)
    assert extra == pytest.approx(6 * 1_614_779_648 + 3 * 2 * 128 * 320 * 4096 / 2)


TINY = ModelConfig(vocab_size=50, hidden_size=24, num_hidden_layers=3, intermediate_size=40, num_nextn_predict_layers=0)
MLA = AttentionConfig(
    num_attention_heads=3,
    num_key_value_heads=3,
    kv_lora_rank=10,
    qk_nope_head_dim=6,
    qk_rope_head_dim=4,
    v_head_dim=5,
)
GQA = AttentionConfig(kind="gqa", num_attention_heads=4, num_key_value_heads=2, head_dim=8)
EXPERTS = MoEConfig(n_routed_experts=6, num_experts_per_tok=2, n_shared_experts=2, moe_intermediate_size=12)
DENSE = MoEConfig(n_routed_experts=0)


@pytest.mark.parametrize(
    "config",
    [
        replace(TINY, attention=MLA, moe=EXPERTS),
        replace(TINY, attention=replace(MLA, q_lora_rank=7), moe=replace(EXPERTS, first_k_dense_replace=2)),
        replace(TINY, attention=MLA, moe=EXPERTS, num_nextn_predict_layers=2),
        replace(TINY, attention=MLA, moe=replace(EXPERTS, topk_method="greedy", n_shared_experts=0)),
        replace(TINY, attention=MLA, moe=DENSE, num_nextn_predict_layers=1),
        replace(TINY, attention=GQA, moe=DENSE),
        replace(TINY, attention=replace(GQA, attention_bias=True), moe=DENSE, tie_word_embeddings=True),
        replace(TINY, attention=replace(GQA, qk_norm=True), moe=EXPERTS),
    ],
)
def test_counts_are_those_of_the_built_model(config: ModelConfig) -> None:
    require_equal_count(config)


@pytest.mark.parametrize("name", PRESETS)
def test_counts_are_those_of_every_preset_built_without_memory(name: str) -> None:
    require_equal_count(preset(name).model)


def require_equal_count(config: ModelConfig) -> None:
    with torch.device("meta"):
        model = Transformer(config)
    built = sum(parameter.numel() for parameter in model.parameters())
    if config.moe.has_selection_bias:  # a buffer, which the releases count
        built += sum(layer.router.selection_bias.numel() for layer in moe_layers(model))
    assert main_parameters(config) + mtp_parameters(config) == built
