"""The architecture: latent or grouped-query attention, mixture of experts, multi-token prediction.

Field names are those of the published `config.json` files, so a reader of one can read the other.
"""

from dataclasses import dataclass, field
from typing import Literal

from fathom.config.checks import require_choice, require_positive

AttentionKind = Literal["mla", "gqa"]
RopeScaling = Literal["none", "yarn", "llama3"]
ModelType = Literal["deepseek_v3", "deepseek_v2", "kimi_k2", "llama", "qwen2", "qwen3"]


@dataclass(frozen=True, kw_only=True)
class AttentionConfig:
    """Multi-head latent attention (V2 2.1) or grouped-query attention, its baseline."""

    kind: AttentionKind = "mla"
    num_attention_heads: int = 4
    num_key_value_heads: int = 4  # gqa: heads that own keys and values; mla: equal to the query heads
    head_dim: int = 32  # gqa only
    q_lora_rank: int | None = None  # mla: rank of the query latent; None projects queries directly
    kv_lora_rank: int = 32  # mla: rank of the cached key-value latent (512 in V3)
    qk_nope_head_dim: int = 16  # mla: query-key dims without position
    qk_rope_head_dim: int = 16  # mla: query-key dims with RoPE, one key shared by all heads
    v_head_dim: int = 16  # mla
    attention_bias: bool = False  # gqa: bias on q, k, v (Qwen2)
    qk_norm: bool = False  # gqa: RMSNorm over each head of q and k (Qwen3)

    def __post_init__(self) -> None:
        require_choice("attention", "kind", self.kind, ("mla", "gqa"))
        require_positive(
            "attention",
            num_attention_heads=self.num_attention_heads,
            num_key_value_heads=self.num_key_value_heads,
            rope_dim=self.rope_dim,
        )
        if self.rope_dim % 2:
            field_name = "qk_rope_head_dim" if self.kind == "mla" else "head_dim"
            raise ValueError(f"attention.{field_name}={self.rope_dim} is odd; RoPE turns pairs, give an even width")
        if self.kind == "gqa":
            if self.num_attention_heads % self.num_key_value_heads:
                raise ValueError(
                    f"attention.num_attention_heads={self.num_attention_heads} is no multiple of "
                    f"num_key_value_heads={self.num_key_value_heads}; every key-value head serves equally many queries"
                )
            return
        require_positive(
            "attention",
            kv_lora_rank=self.kv_lora_rank,
            qk_nope_head_dim=self.qk_nope_head_dim,
            v_head_dim=self.v_head_dim,
        )
        if self.q_lora_rank is not None:
            require_positive("attention", q_lora_rank=self.q_lora_rank)

    @property
    def rope_dim(self) -> int:
        """Dims of one head that RoPE turns."""
        return self.qk_rope_head_dim if self.kind == "mla" else self.head_dim

    @property
    def qk_head_dim(self) -> int:
        """Dims of one query or key head, position included."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim if self.kind == "mla" else self.head_dim

    @property
    def cache_width(self) -> int:
        """Elements cached per token and layer (V2 Table 1)."""
        if self.kind == "mla":
            return self.kv_lora_rank + self.qk_rope_head_dim
        return 2 * self.num_key_value_heads * self.head_dim


@dataclass(frozen=True, kw_only=True)
class RopeConfig:
    """Rotary position embedding and how it is stretched beyond the trained length."""

    theta: float = 10_000.0
    scaling: RopeScaling = "none"
    factor: float = 1.0  # stretch of the context
    original_max_position_embeddings: int = 4096  # context before stretching
    beta_fast: float = 32.0  # yarn: rotations above which a frequency is kept
    beta_slow: float = 1.0  # yarn: rotations below which it is divided by `factor`
    mscale: float = 1.0  # yarn: numerator of the magnitude put on cos and sin
    mscale_all_dim: float = 0.0  # yarn: its denominator, and the softmax scale's own m (V3 uses 1.0)
    low_freq_factor: float = 1.0  # llama3
    high_freq_factor: float = 4.0  # llama3

    def __post_init__(self) -> None:
        require_choice("rope", "scaling", self.scaling, ("none", "yarn", "llama3"))
        require_positive(
            "rope",
            theta=self.theta,
            factor=self.factor,
            original_max_position_embeddings=self.original_max_position_embeddings,
        )
        if self.scaling == "llama3" and self.high_freq_factor <= self.low_freq_factor:
            raise ValueError(
                f"rope.high_freq_factor={self.high_freq_factor} must exceed low_freq_factor={self.low_freq_factor}"
            )


@dataclass(frozen=True, kw_only=True)
class MoEConfig:
    """DeepSeekMoE: shared and routed experts, balanced by a bias instead of a loss (V3 2.1.2)."""

    n_routed_experts: int = 4  # 0 makes every layer dense
    num_experts_per_tok: int = 2
    n_shared_experts: int = 1
    moe_intermediate_size: int = 64  # width of one expert
    first_k_dense_replace: int = 0  # leading layers that stay dense
    n_group: int = 1  # groups of consecutive experts (one a node in V3)
    topk_group: int = 1  # groups a token may reach
    scoring_func: Literal["sigmoid", "softmax"] = "sigmoid"
    topk_method: Literal["noaux_tc", "greedy", "group_limited_greedy"] = "noaux_tc"
    norm_topk_prob: bool = True  # gate weights of the chosen experts sum to one before scaling
    routed_scaling_factor: float = 1.0
    bias_update_speed: float = 1e-3  # step of the selection bias per optimizer step; 0 freezes it (V3 4.2)
    seq_aux_alpha: float = 1e-4  # weight of the sequence-wise balance loss (V3 eq. 17-20)

    def __post_init__(self) -> None:
        require_choice("moe", "scoring_func", self.scoring_func, ("sigmoid", "softmax"))
        require_choice("moe", "topk_method", self.topk_method, ("noaux_tc", "greedy", "group_limited_greedy"))
        if self.n_routed_experts == 0:
            return
        require_positive(
            "moe",
            n_routed_experts=self.n_routed_experts,
            num_experts_per_tok=self.num_experts_per_tok,
            moe_intermediate_size=self.moe_intermediate_size,
            n_group=self.n_group,
            topk_group=self.topk_group,
        )
        if self.n_routed_experts % self.n_group:
            raise ValueError(
                f"moe.n_routed_experts={self.n_routed_experts} does not divide into n_group={self.n_group} equal groups"
            )
        if self.topk_group > self.n_group:
            raise ValueError(
                f"moe.topk_group={self.topk_group} exceeds n_group={self.n_group}; choose at most that many"
            )
        reachable = self.n_routed_experts // self.n_group * self.topk_group
        if self.num_experts_per_tok > reachable:
            raise ValueError(
                f"moe.num_experts_per_tok={self.num_experts_per_tok} exceeds the {reachable} experts that "
                f"topk_group={self.topk_group} of n_group={self.n_group} leave in reach; choose at most that many"
            )
        if self.topk_method == "noaux_tc" and self.n_group > 1 and self.n_routed_experts // self.n_group < 2:
            raise ValueError(
                f"moe.n_group={self.n_group} leaves one expert a group, and a group is scored by its best two; "
                f"use at most {self.n_routed_experts // 2} groups"
            )

    @property
    def has_selection_bias(self) -> bool:
        """Whether a bias steers the selection (V3) or a loss must (V2)."""
        return self.topk_method == "noaux_tc"


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A DeepSeek-style transformer; with gqa and no experts, also Llama and Qwen."""

    model_type: ModelType = "deepseek_v3"  # the published family whose names an export uses
    vocab_size: int = 1536
    hidden_size: int = 64
    num_hidden_layers: int = 2
    intermediate_size: int = 176  # width of a dense feed-forward layer
    max_position_embeddings: int = 4096
    rms_norm_eps: float = 1e-6
    initializer_range: float = 0.02  # std of the initial weights (V3 4.2 trains with 0.006 at d = 7168)
    tie_word_embeddings: bool = False
    num_nextn_predict_layers: int = 1  # depth D of multi-token prediction (V3 2.2)
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    attention: AttentionConfig = field(default_factory=AttentionConfig)
    rope: RopeConfig = field(default_factory=RopeConfig)
    moe: MoEConfig = field(default_factory=MoEConfig)

    def __post_init__(self) -> None:
        families = ("deepseek_v3", "deepseek_v2", "kimi_k2", "llama", "qwen2", "qwen3")
        require_choice("model", "model_type", self.model_type, families)
        require_positive(
            "model",
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            num_hidden_layers=self.num_hidden_layers,
            intermediate_size=self.intermediate_size,
            max_position_embeddings=self.max_position_embeddings,
            rms_norm_eps=self.rms_norm_eps,
        )
        if self.num_nextn_predict_layers < 0:
            raise ValueError(
                f"model.num_nextn_predict_layers={self.num_nextn_predict_layers} is negative; give 0 for no MTP module"
            )
        if not 0 <= self.moe.first_k_dense_replace <= self.num_hidden_layers:
            raise ValueError(
                f"moe.first_k_dense_replace={self.moe.first_k_dense_replace} must lie between 0 and "
                f"num_hidden_layers={self.num_hidden_layers}"
            )

    def is_moe_layer(self, layer: int) -> bool:
        """Whether layer `layer` (MTP modules count on from the last) has experts."""
        return self.moe.n_routed_experts > 0 and layer >= self.moe.first_k_dense_replace
