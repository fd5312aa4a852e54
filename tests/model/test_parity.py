"""The same checkpoint gives the same logits and the same text here and in transformers, whoever wrote it."""

import json
import os
from pathlib import Path

import pytest
import torch

from fathom.checkpoint.hub import load_published, save_published
from fathom.config import AttentionConfig, ModelConfig, MoEConfig, RopeConfig
from fathom.config.published import to_published
from fathom.model import CacheSlots, LatentCache, Transformer

os.environ.setdefault("HF_HUB_OFFLINE", "1")
transformers = pytest.importorskip("transformers")
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

pytestmark = pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")  # theirs, without shared experts

TOKENS = torch.tensor([[3, 17, 250, 8, 99, 41, 0, 7, 120, 64, 5, 201]])


def model_config(family: str, attention: AttentionConfig, **fields: object) -> ModelConfig:
    shape = {"vocab_size": 256, "hidden_size": 48, "num_hidden_layers": 2, "intermediate_size": 80}
    rest = {"max_position_embeddings": 512, "num_nextn_predict_layers": 0, "moe": MoEConfig(n_routed_experts=0)}
    return ModelConfig(**{**shape, **rest, "model_type": family, "attention": attention, **fields})


def mla(**fields: object) -> AttentionConfig:
    shape = {"kv_lora_rank": 24, "qk_nope_head_dim": 12, "qk_rope_head_dim": 8, "v_head_dim": 10}
    return AttentionConfig(kind="mla", num_attention_heads=4, num_key_value_heads=4, **{**shape, **fields})


def gqa(groups: int, head_dim: int, **fields: object) -> AttentionConfig:
    return AttentionConfig(kind="gqa", num_attention_heads=4, num_key_value_heads=groups, head_dim=head_dim, **fields)


def v3_moe(**fields: object) -> MoEConfig:
    shape = {"n_routed_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 20}
    return MoEConfig(**{**shape, "n_shared_experts": 1, "routed_scaling_factor": 2.5, **fields})


def v2_moe(**fields: object) -> MoEConfig:
    gate = {"scoring_func": "softmax", "topk_method": "greedy", "norm_topk_prob": False}
    return v3_moe(**{**gate, "routed_scaling_factor": 1.0, **fields})


def yarn(**fields: float) -> RopeConfig:
    return RopeConfig(scaling="yarn", **{"factor": 8.0, "original_max_position_embeddings": 64, **fields})


LLAMA3 = RopeConfig(theta=5e5, scaling="llama3", factor=8.0, original_max_position_embeddings=64)

CONFIGS = {
    "v3_plain": model_config("deepseek_v3", mla(), moe=v3_moe()),
    "v3_q_lora_groups_dense_first": model_config(
        "deepseek_v3",
        mla(q_lora_rank=20),
        moe=v3_moe(n_group=4, topk_group=2, first_k_dense_replace=1, n_shared_experts=2),
        rope=yarn(mscale=1.0, mscale_all_dim=1.0),
        rms_norm_eps=1e-5,
    ),
    "v3_no_shared_unequal_mscale": model_config(
        "deepseek_v3",
        mla(q_lora_rank=20),
        moe=v3_moe(n_shared_experts=0, n_group=2, topk_group=1, norm_topk_prob=False),
        rope=yarn(mscale=1.0, mscale_all_dim=0.707),
    ),
    "v3_tied_yarn_without_mscale": model_config(
        "deepseek_v3", mla(), moe=v3_moe(), rope=yarn(), tie_word_embeddings=True
    ),
    "v3_dense": model_config("deepseek_v3", mla(), num_hidden_layers=1),
    "v2_greedy": model_config(
        "deepseek_v2", mla(), moe=v2_moe(n_shared_experts=2), rope=yarn(mscale=0.707, mscale_all_dim=0.707)
    ),
    "v2_groups": model_config(
        "deepseek_v2",
        mla(q_lora_rank=20),
        moe=v2_moe(
            topk_method="group_limited_greedy",
            n_group=4,
            topk_group=2,
            routed_scaling_factor=16.0,
            first_k_dense_replace=1,
        ),
    ),
    "llama": model_config("llama", gqa(2, 12), rms_norm_eps=1e-5),
    "llama3_wide_heads_tied": model_config("llama", gqa(1, 16), rope=LLAMA3, tie_word_embeddings=True),
    "qwen2_tied": model_config(
        "qwen2", gqa(2, 12, attention_bias=True), rope=RopeConfig(theta=1e6), tie_word_embeddings=True
    ),
    "qwen2_yarn": model_config("qwen2", gqa(4, 12, attention_bias=True), rope=yarn()),
    "qwen3": model_config("qwen3", gqa(2, 16, qk_norm=True)),
}


@torch.no_grad()
def randomise(model: torch.nn.Module, seed: int = 0) -> None:
    """Move every weight, norm and bias away from its starting value, so that a lost one shows."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in sorted(model.state_dict().items()):
        noise = torch.randn(tensor.shape, generator=generator)
        if "norm" in name:
            tensor.copy_(1 + 0.2 * noise)
        else:
            tensor.copy_((0.3 if "bias" in name else 0.15) * noise)


def ours(config: ModelConfig) -> Transformer:
    model = Transformer(config)
    randomise(model)
    return model


def theirs(directory: Path) -> torch.nn.Module:
    return transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()


def written_by_them(config: ModelConfig, directory: Path) -> torch.nn.Module:
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(to_published(config, "float32")))
    model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.from_pretrained(directory)).eval()
    randomise(model)
    model.save_pretrained(directory)
    return model


@torch.no_grad()
def largest_difference(model: Transformer, other: torch.nn.Module) -> float:
    found, wanted = model.logits(model(TOKENS)), other(TOKENS).logits
    assert wanted.std() > 0.1  # a difference would show
    return (found - wanted).abs().max().item()


@torch.no_grad()
def greedy(model: Transformer, tokens: torch.Tensor, count: int) -> list[int]:
    """Prefill in the expanded form, then one token at a time from the cache."""
    length = tokens.shape[1]
    cache = LatentCache(model.config, rows=1, capacity=length + count)
    slots = CacheSlots.at(cache, 0, torch.arange(length).unsqueeze(0), length, fresh=True)
    out: list[int] = []
    for place in range(length, length + count):
        out.append(int(model.logits(model(tokens, slots=slots)[:, -1]).argmax()))
        tokens = torch.tensor([[out[-1]]])
        slots = CacheSlots.at(cache, 0, torch.tensor([[place]]), place + 1, fresh=False)
    return out


def their_greedy(model: torch.nn.Module, **options: object) -> list[int]:
    seen = torch.ones_like(TOKENS)  # else the pad id is taken for padding
    text = model.generate(TOKENS, attention_mask=seen, max_new_tokens=8, do_sample=False, eos_token_id=None, **options)
    return text[0, TOKENS.shape[1] :].tolist()


@pytest.mark.parametrize("name", CONFIGS)
def test_they_compute_what_we_wrote(name: str, tmp_path: Path) -> None:
    model = ours(CONFIGS[name])
    save_published(model, tmp_path)
    other = theirs(tmp_path)
    assert largest_difference(model, other) < 1e-5
    assert greedy(model, TOKENS, 8) == their_greedy(other)


@pytest.mark.parametrize("name", CONFIGS)
def test_we_compute_what_they_wrote(name: str, tmp_path: Path) -> None:
    other = written_by_them(CONFIGS[name], tmp_path / "theirs")
    model = load_published(tmp_path / "theirs")
    assert largest_difference(model, other) < 1e-5


def test_kimi_k2_is_deepseek_v3_under_a_name_of_its_own(tmp_path: Path) -> None:
    model = ours(model_config("kimi_k2", mla(q_lora_rank=20), moe=v3_moe(routed_scaling_factor=2.827)))
    save_published(model, tmp_path)
    assert load_published(tmp_path).config == model.config
    config = json.loads((tmp_path / "config.json").read_text())  # transformers has no such name
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "deepseek_v3"}))
    assert largest_difference(model, theirs(tmp_path)) < 1e-5


def with_mtp(depth: int) -> ModelConfig:
    return model_config("deepseek_v3", mla(q_lora_rank=20), moe=v3_moe(n_group=2), num_nextn_predict_layers=depth)


def theirs_with_mtp(directory: Path) -> torch.nn.Module:
    """They find the weights of MTP modules by a pattern made for V3's 61 layers."""
    main = theirs(directory)
    main._keys_to_ignore_on_load_unexpected = [rf"model\.layers\.{main.config.num_hidden_layers}.*"]
    return main


@torch.no_grad()
def test_mtp_agrees_and_reads_the_state_behind_the_final_norm(tmp_path: Path) -> None:
    model = ours(with_mtp(1))
    save_published(model, tmp_path)
    main = theirs_with_mtp(tmp_path)
    mtp = transformers.modeling_layers.MtpModel.from_pretrained(main).eval()
    state = main.model(TOKENS).last_hidden_state[:, :-1]
    further, positions = TOKENS[:, 1:], torch.arange(1, TOKENS.shape[1]).unsqueeze(0)
    wanted = main.lm_head(mtp.forward_layer(0, state, positions, None, input_ids=further))
    hidden = model(TOKENS)
    torch.testing.assert_close(hidden[:, :-1], state, atol=1e-5, rtol=0)
    found = model.logits(model.predict_further(0, hidden[:, :-1], further, positions))
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


def test_mtp_drafting_in_transformers_keeps_the_greedy_text(tmp_path: Path) -> None:
    model = ours(with_mtp(1))
    save_published(model, tmp_path)
    assert greedy(model, TOKENS, 8) == their_greedy(theirs_with_mtp(tmp_path), use_mtp=True)


def test_they_dequantise_our_fp8_blocks_to_the_same_model(tmp_path: Path) -> None:
    pytest.importorskip("accelerate", reason="transformers reads FP8 through it")
    save_published(ours(with_mtp(0)), tmp_path, "fp8")
    other = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype=torch.float32, quantization_config=transformers.FineGrainedFP8Config(dequantize=True)
    )
    assert largest_difference(load_published(tmp_path), other.float().eval()) < 1e-5
