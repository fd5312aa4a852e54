"""Named configs: the laptop's own, and the published models with the training of V3 and R1.

Values come from the technical reports (V2, V3, R1) and the models' `config.json`; where the two differ, a model
trained from scratch needs the report's. "UNCONFIRMED" marks what no primary source was at hand for.
"""

import difflib
from dataclasses import replace

from fathom.config import Config, TextConfig, TrainConfig
from fathom.config.model import AttentionConfig, ModelConfig, MoEConfig, RopeConfig
from fathom.config.objectives import named_objective
from fathom.config.r1 import PreferenceConfig, R1Config, RejectConfig
from fathom.config.rl import GRPOConfig, RewardConfig
from fathom.config.sampling import SamplingConfig
from fathom.config.task import TaskConfig
from fathom.config.train import OptimizerConfig, ScheduleConfig


def preset(name: str) -> Config:
    """The config called `name`. Raises ValueError with the nearest name where there is none."""
    if name in PRESETS:
        return PRESETS[name]
    close = difflib.get_close_matches(name, PRESETS, n=1, cutoff=0.4)
    guess = f"did you mean {close[0]}?" if close else "there are"
    raise ValueError(f"the preset {name!r} is unknown; {guess} ({', '.join(PRESETS)})")


# ---- training as published ------------------------------------------------------------------------------------------

V3_SCHEDULE = ScheduleConfig(
    warmup_steps=2000,
    decay="v3",
    decay_start=10 / 14.8,  # of 14.8 T tokens, as the shares below
    final_lr=7.3e-6 / 2.2e-4,
    batch_ramp=469 / 14_800,
    batch_start=3072 / 15_360,
    mtp_weight=0.3,
    mtp_weight_final=0.1,
    mtp_switch=10 / 14.8,
    bias_freeze=14.3 / 14.8,
)
V3_PRETRAIN = TrainConfig(  # V3 4.2
    steps=238_260,  # 14.8 T tokens; derived for a batch that grows linearly, whose true shape is unpublished
    batch_rows=15_360,
    micro_batch_rows=1,
    seq_len=4096,
    save_every=500,
    validate_every=500,
    optimizer=OptimizerConfig(lr=2.2e-4, weight_decay=0.1, moments="bfloat16"),
    schedule=V3_SCHEDULE,
)
R1_COLD_START = TrainConfig(  # R1 B.4.2; 2-3 epochs there, so the steps depend on the data
    batch_rows=128,
    micro_batch_rows=1,
    seq_len=32_768,
    optimizer=OptimizerConfig(lr=5e-5, weight_decay=0.1, moments="bfloat16"),
    schedule=ScheduleConfig(warmup_steps=0, decay="cosine", final_lr=0.1),
)
R1_GRPO = GRPOConfig(  # R1-Zero's settings (R1 2.2), with the clip and the language reward of R1's first RL stage
    steps=650,  # 10,400 updates of 32 questions
    prompts=512,  # 8,192 answers a rollout
    group=16,
    refill_rounds=0,
    updates=16,
    micro_batch_rows=1,
    objective=named_objective("r1"),
    reward=RewardConfig(accuracy=1.0, format=1.0, language=1.0),
    sampling=SamplingConfig(temperature=1.0, max_tokens=32_768),
    optimizer=OptimizerConfig(lr=3e-6, weight_decay=0.0, moments="bfloat16"),
    schedule=ScheduleConfig(warmup_steps=0, decay="constant"),
)


def _published(name: str, model: ModelConfig, pretrain: TrainConfig = V3_PRETRAIN) -> Config:
    """A published model with the training of V3 and R1, cut to the context that it has."""
    context = model.max_position_embeddings
    sampling = replace(R1_GRPO.sampling, max_tokens=min(32_768, context - 1024))
    return Config(
        preset=name,
        model=model,
        text=TextConfig(vocab_size=model.vocab_size, arithmetic_share=0.0),
        pretrain=pretrain,
        sft=replace(R1_COLD_START, seq_len=min(32_768, context)),
        grpo=replace(R1_GRPO, sampling=sampling),
    )


def _pretrain(lr: float, steps: int, batch_rows: int, ramp: float = 0.0, start: float = 1.0) -> TrainConfig:
    """V3's pretraining at another rate and length, with a batch that grows over another share of it."""
    optimizer = replace(V3_PRETRAIN.optimizer, lr=lr)
    schedule = replace(V3_SCHEDULE, batch_ramp=ramp, batch_start=start)
    return replace(V3_PRETRAIN, steps=steps, batch_rows=batch_rows, optimizer=optimizer, schedule=schedule)


# V2's rate falls by 0.316 at 60 % and 90 % of the tokens; here it follows V3's curve from V2's peak.
V2_PRETRAIN = _pretrain(2.4e-4, 216_840, 9216, ramp=225 / 8100, start=2304 / 9216)  # V2 3.1.2: 8.1 T tokens
V2_LITE_PRETRAIN = _pretrain(4.2e-4, 302_000, 4608)  # V2 appendix B: 5.7 T tokens

# ---- DeepSeek and its kin: latent attention and experts -------------------------------------------------------------

V3 = ModelConfig(  # also R1 and R1-Zero; V3 4.2 and config.json
    model_type="deepseek_v3",
    vocab_size=129_280,
    hidden_size=7168,
    num_hidden_layers=61,
    intermediate_size=18_432,
    max_position_embeddings=163_840,
    initializer_range=0.006,  # V3 4.2; 0.02 in config.json
    num_nextn_predict_layers=1,
    bos_token_id=0,
    eos_token_id=1,
    attention=AttentionConfig(
        num_attention_heads=128,
        num_key_value_heads=128,
        q_lora_rank=1536,
        kv_lora_rank=512,
        qk_nope_head_dim=128,
        qk_rope_head_dim=64,
        v_head_dim=128,
    ),
    rope=RopeConfig(scaling="yarn", factor=40.0, mscale=1.0, mscale_all_dim=1.0),
    moe=MoEConfig(
        n_routed_experts=256,
        num_experts_per_tok=8,
        n_shared_experts=1,
        moe_intermediate_size=2048,
        first_k_dense_replace=3,
        n_group=8,
        topk_group=4,
        routed_scaling_factor=2.5,
    ),
)
V2 = ModelConfig(  # V2 3.1.2 and config.json
    model_type="deepseek_v2",
    vocab_size=102_400,
    hidden_size=5120,
    num_hidden_layers=60,
    intermediate_size=12_288,
    max_position_embeddings=163_840,
    initializer_range=0.006,  # V2 3.1.2; 0.02 in config.json
    num_nextn_predict_layers=0,
    bos_token_id=100_000,
    eos_token_id=100_001,
    attention=V3.attention,
    rope=V3.rope,  # the report's formula has 0.707 for both magnitudes, the released config 1.0
    moe=MoEConfig(
        n_routed_experts=160,
        num_experts_per_tok=6,
        n_shared_experts=2,
        moe_intermediate_size=1536,
        first_k_dense_replace=1,
        n_group=8,
        topk_group=3,
        scoring_func="softmax",
        topk_method="group_limited_greedy",
        norm_topk_prob=False,
        routed_scaling_factor=16.0,
        seq_aux_alpha=3e-3,  # alpha 1 of V2 3.1.2; 1e-3 in config.json
    ),
)
V2_LITE = replace(  # V2 appendix B
    V2,
    hidden_size=2048,
    num_hidden_layers=27,
    intermediate_size=10_944,
    attention=replace(V2.attention, num_attention_heads=16, num_key_value_heads=16, q_lora_rank=None),
    rope=replace(V2.rope, mscale=0.707, mscale_all_dim=0.707),
    moe=replace(
        V2.moe,
        n_routed_experts=64,
        moe_intermediate_size=1408,
        n_group=1,
        topk_group=1,
        topk_method="greedy",
        routed_scaling_factor=1.0,
        seq_aux_alpha=1e-3,
    ),
)
MOONLIGHT = ModelConfig(  # Moonlight-16B-A3B, config.json
    model_type="deepseek_v3",
    vocab_size=163_840,
    hidden_size=2048,
    num_hidden_layers=27,
    intermediate_size=11_264,
    max_position_embeddings=8192,
    rms_norm_eps=1e-5,
    num_nextn_predict_layers=0,
    bos_token_id=163_584,
    eos_token_id=163_586,
    attention=V2_LITE.attention,
    rope=RopeConfig(theta=50_000.0),
    moe=MoEConfig(
        n_routed_experts=64,
        num_experts_per_tok=6,
        n_shared_experts=2,
        moe_intermediate_size=1408,
        first_k_dense_replace=1,
        routed_scaling_factor=2.446,
        seq_aux_alpha=1e-3,
    ),
)
KIMI_K2 = replace(  # config.json, read from copies of it
    V3,
    model_type="kimi_k2",
    vocab_size=163_840,
    max_position_embeddings=131_072,
    rms_norm_eps=1e-6,  # UNCONFIRMED: one copy has 1e-5
    initializer_range=0.02,
    num_nextn_predict_layers=0,
    bos_token_id=163_584,
    eos_token_id=163_585,  # UNCONFIRMED
    attention=replace(V3.attention, num_attention_heads=64, num_key_value_heads=64),
    rope=RopeConfig(  # UNCONFIRMED but for theta and the trained length
        theta=50_000.0, scaling="yarn", factor=32.0, beta_fast=1.0, beta_slow=1.0, mscale=1.0, mscale_all_dim=1.0
    ),
    moe=replace(
        V3.moe,
        n_routed_experts=384,
        first_k_dense_replace=1,
        n_group=1,
        topk_group=1,
        routed_scaling_factor=2.827,
        seq_aux_alpha=1e-3,
    ),
)
SMALL = ModelConfig(  # 817 M parameters, 168 M of them active: the shape that Fathom measures on one GPU
    vocab_size=32_768,
    hidden_size=1024,
    num_hidden_layers=10,
    intermediate_size=2816,
    num_nextn_predict_layers=0,  # so that the counts are those of its peers
    attention=AttentionConfig(
        num_attention_heads=16,
        num_key_value_heads=16,
        q_lora_rank=384,
        kv_lora_rank=256,
        qk_nope_head_dim=128,
        qk_rope_head_dim=64,
        v_head_dim=128,
    ),
    moe=MoEConfig(
        n_routed_experts=64,
        num_experts_per_tok=6,
        n_shared_experts=1,
        moe_intermediate_size=384,
        first_k_dense_replace=1,
    ),
)

# ---- Llama and Qwen: grouped queries, no experts ---------------------------------------------------------------------


def _llama(layers: int, width: int, ffn: int, heads: int, stretch: float = 8.0, tied: bool = False) -> ModelConfig:
    """Llama 3.1 and 3.2: 8 key-value heads, RoPE stretched from 8192 tokens."""
    return ModelConfig(
        model_type="llama",
        vocab_size=128_256,
        hidden_size=width,
        num_hidden_layers=layers,
        intermediate_size=ffn,
        max_position_embeddings=131_072,
        rms_norm_eps=1e-5,
        tie_word_embeddings=tied,
        num_nextn_predict_layers=0,
        bos_token_id=128_000,
        eos_token_id=128_001,
        attention=_gqa(heads, 8, width // heads),
        rope=RopeConfig(theta=500_000.0, scaling="llama3", factor=stretch, original_max_position_embeddings=8192),
        moe=MoEConfig(n_routed_experts=0),
    )


def _qwen2(
    layers: int, width: int, ffn: int, heads: int, kv_heads: int, context: int = 131_072, eps: float = 1e-6
) -> ModelConfig:
    """The base models of Qwen 2.5: biases on q, k, v; up to 3 B the head is the embedding, of a smaller table."""
    small = width <= 2048
    return ModelConfig(
        model_type="qwen2",
        vocab_size=151_936 if small else 152_064,
        hidden_size=width,
        num_hidden_layers=layers,
        intermediate_size=ffn,
        max_position_embeddings=context,
        rms_norm_eps=eps,
        tie_word_embeddings=small,
        num_nextn_predict_layers=0,
        bos_token_id=151_643,
        eos_token_id=151_643,
        attention=replace(_gqa(heads, kv_heads, width // heads), attention_bias=True),
        rope=RopeConfig(theta=1_000_000.0),
        moe=MoEConfig(n_routed_experts=0),
    )


def _qwen3(layers: int, width: int, ffn: int, heads: int, tied: bool = False) -> ModelConfig:
    """Qwen 3: q and k normalised per head, heads of 128 whatever the width."""
    return ModelConfig(
        model_type="qwen3",
        vocab_size=151_936,
        hidden_size=width,
        num_hidden_layers=layers,
        intermediate_size=ffn,
        max_position_embeddings=40_960,
        tie_word_embeddings=tied,
        num_nextn_predict_layers=0,
        bos_token_id=151_643,
        eos_token_id=151_645,
        attention=replace(_gqa(heads, 8, 128), qk_norm=True),
        rope=RopeConfig(theta=1_000_000.0),
        moe=MoEConfig(n_routed_experts=0),
    )


def _gqa(heads: int, kv_heads: int, head_dim: int) -> AttentionConfig:
    return AttentionConfig(kind="gqa", num_attention_heads=heads, num_key_value_heads=kv_heads, head_dim=head_dim)


# ---- the names ------------------------------------------------------------------------------------------------------

# Two CPU cores and five minutes: many small steps, since copying and adding are learned by updates, not by tokens.
LAPTOP = Config(
    # V3 draws weights with 0.006 at d = 7168 (V3 4.2); that std times sqrt(d) is kept
    model=ModelConfig(vocab_size=1536, initializer_range=0.06),
    text=TextConfig(
        vocab_size=1536,
        arithmetic_share=0.25,
        arithmetic_max=60,  # the largest number that solutions meet
        arithmetic_documents=20_000,
        expression_share=0.6,
        expression_documents=20_000,
    ),
    pretrain=TrainConfig(
        steps=2700,
        batch_rows=8,  # many small steps: it is their number that teaches copying, not that of the tokens
        micro_batch_rows=8,
        seq_len=128,
        save_every=900,
        validate_every=450,
        optimizer=OptimizerConfig(lr=3e-3, beta2=0.99, weight_decay=0.02),
        # MTP is a third of a step, so it joins late: time enough to learn to draft
        schedule=ScheduleConfig(mtp_weight=0.0, mtp_weight_final=0.3, mtp_switch=0.9),
    ),
    sft=TrainConfig(
        steps=600,
        batch_rows=32,
        micro_batch_rows=32,
        seq_len=128,
        save_every=300,
        validate_every=0,
        optimizer=OptimizerConfig(lr=4e-3, beta2=0.99, weight_decay=0.01),
        schedule=ScheduleConfig(mtp_weight=0.0, mtp_weight_final=0.3, mtp_switch=0.5),
    ),
    grpo=GRPOConfig(
        steps=300,
        prompts=16,
        group=16,
        save_every=75,
        reward=RewardConfig(format=0.1, soundness=0.3),
        sampling=SamplingConfig(max_tokens=48),
        optimizer=OptimizerConfig(lr=5e-4, beta2=0.99, weight_decay=0.0),
        schedule=ScheduleConfig(warmup_steps=5, decay="linear"),
    ),
    sft_control=TrainConfig(
        steps=400,
        batch_rows=128,
        micro_batch_rows=128,
        seq_len=128,
        save_every=200,
        validate_every=0,
        optimizer=OptimizerConfig(lr=2e-3, beta2=0.99, weight_decay=0.01),
    ),
)

SMALL_RUN = replace(  # one GPU, some 20 tokens a parameter; V2-Lite's rate
    _published("small", SMALL, replace(_pretrain(4.2e-4, 7800, 512), micro_batch_rows=8)),
    workers=1,
    sft=replace(R1_COLD_START, seq_len=1024, micro_batch_rows=32),
    grpo=replace(
        LAPTOP.grpo, sampling=SamplingConfig(max_tokens=512), optimizer=OptimizerConfig(lr=1e-5, weight_decay=0.0)
    ),
)

LAPTOP_R1 = replace(  # R1's later stages behind the laptop's GRPO; each as long as it takes there
    LAPTOP,
    preset="laptop-r1",
    grpo=replace(LAPTOP.grpo, reward=replace(LAPTOP.grpo.reward, language=0.1)),
    r1=R1Config(
        enabled=True,
        reject=RejectConfig(problems=1000, samples=4, keep=2),
        tune=replace(LAPTOP.sft, steps=400, save_every=200),
        preference=PreferenceConfig(pairs=2000, steps=80, rows=32),
        rl=replace(LAPTOP.grpo, steps=160, save_every=80, reward=replace(LAPTOP.grpo.reward, language=0.1)),
        preference_steps=40,
        student=ModelConfig(  # dense, half as wide
            model_type="llama",
            vocab_size=1536,
            hidden_size=64,
            num_hidden_layers=2,
            intermediate_size=256,
            num_nextn_predict_layers=0,
            initializer_range=0.06,
            attention=AttentionConfig(kind="gqa", num_attention_heads=4, num_key_value_heads=2, head_dim=16),
            moe=MoEConfig(n_routed_experts=0),
        ),
        student_pretrain=LAPTOP.pretrain,
        distill=replace(LAPTOP.sft, steps=400, save_every=200),
    ),
)

# TinyZero's task, distribution and rate (its scripts); groups compared with one another, where TinyZero has a critic
TINYZERO = replace(
    _published("tinyzero", _qwen2(36, 2048, 11_008, 16, 2, context=32_768)),
    cold_start=False,
    workers=1,
    # nothing is pretrained: it is what one step of the reinforcement trains, for the planner
    pretrain=TrainConfig(
        steps=400,
        batch_rows=512,
        micro_batch_rows=4,
        seq_len=1280,
        optimizer=OptimizerConfig(lr=1e-6, weight_decay=0.0, moments="bfloat16"),
    ),
    task=TaskConfig(
        numbers=4,
        fewest_numbers=3,
        max_number=99,
        max_target=99,
        operators="+-*/",
        prompt="words",
        held_out_share=0.125,
    ),
    grpo=GRPOConfig(
        steps=400,
        prompts=64,
        group=8,
        micro_batch_rows=4,
        save_every=50,
        reward=RewardConfig(format=0.1),
        sampling=SamplingConfig(max_tokens=1024),
        optimizer=OptimizerConfig(lr=1e-6, weight_decay=0.0, moments="bfloat16"),
        schedule=ScheduleConfig(warmup_steps=5, decay="constant"),
    ),
)

PRESETS: dict[str, Config] = {
    config.preset: config
    for config in (
        LAPTOP,
        replace(LAPTOP, preset="laptop-zero", cold_start=False),  # R1-Zero: GRPO straight from the base model
        replace(LAPTOP, preset="laptop-mul", task=replace(LAPTOP.task, operators="+-*")),
        replace(LAPTOP, preset="laptop-four", task=replace(LAPTOP.task, numbers=4)),
        LAPTOP_R1,
        SMALL_RUN,
        TINYZERO,
        _published("moonlight", MOONLIGHT),
        _published("v2_lite", V2_LITE, V2_LITE_PRETRAIN),
        _published("v2", V2, V2_PRETRAIN),
        _published("v3", V3),
        _published("kimi_k2", KIMI_K2),
        _published("llama-3.2-1b", _llama(16, 2048, 8192, 32, stretch=32.0, tied=True)),
        _published("llama-3.2-3b", _llama(28, 3072, 8192, 24, stretch=32.0, tied=True)),
        _published("llama-3.1-8b", _llama(32, 4096, 14_336, 32)),
        _published("llama-3.1-70b", _llama(80, 8192, 28_672, 64)),
        _published("llama-3.1-405b", _llama(126, 16_384, 53_248, 128)),
        _published("qwen2.5-0.5b", _qwen2(24, 896, 4864, 14, 2, context=32_768)),
        _published("qwen2.5-1.5b", _qwen2(28, 1536, 8960, 12, 2)),
        _published("qwen2.5-3b", _qwen2(36, 2048, 11_008, 16, 2, context=32_768)),
        _published("qwen2.5-7b", _qwen2(28, 3584, 18_944, 28, 4)),
        _published("qwen2.5-14b", _qwen2(48, 5120, 13_824, 40, 8, eps=1e-5)),
        _published("qwen2.5-32b", _qwen2(64, 5120, 27_648, 40, 8, eps=1e-5)),
        _published("qwen2.5-72b", _qwen2(80, 8192, 29_568, 64, 8, eps=1e-5)),  # eps UNCONFIRMED
        _published("qwen3-0.6b", _qwen3(28, 1024, 3072, 16, tied=True)),
        _published("qwen3-1.7b", _qwen3(28, 2048, 6144, 16, tied=True)),
        _published("qwen3-4b", _qwen3(36, 2560, 9728, 32, tied=True)),
        _published("qwen3-8b", _qwen3(36, 4096, 12_288, 32)),
        _published("qwen3-14b", _qwen3(40, 5120, 17_408, 40)),
        _published("qwen3-32b", _qwen3(64, 5120, 25_600, 64)),
    )
}
