"""Ceilings of generation: what memory, bandwidth and arithmetic allow at most, and what a token then costs.

Nothing here counts latency (launches, collectives, the network), so a real engine stays below: at batch 1 far below,
at large batches at a half to two thirds.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from operator import mul

from fathom.config import ModelConfig
from fathom.config.published import Dtype
from fathom.plan.cache import CacheFormat, cache_bytes
from fathom.plan.count import (
    checkpoint_bytes,
    decode_flops_per_token,
    main_parameters,
    mtp_parameters,
    parts,
    prefill_flops_per_token,
)
from fathom.plan.hardware import Devices, Hardware

WEIGHT_BYTES: dict[Dtype, int] = {"fp8": 1, "bfloat16": 2, "float32": 4}
USABLE = 0.9  # share of memory left for weights and cache


def serving_dtype(hardware: Hardware) -> Dtype:
    """The narrowest weights that the device multiplies."""
    return "fp8" if hardware.fp8_flops else "bfloat16" if hardware.bf16_flops else "float32"


def expert_union(config: ModelConfig, tokens: float) -> float:
    """How many times one token's routed experts a step reads that holds so many independent tokens."""
    experts, chosen = config.moe.n_routed_experts, config.moe.num_experts_per_tok
    return experts / chosen * (1 - (1 - chosen / experts) ** tokens) if experts else 0.0


def tokens_per_step(acceptance: Sequence[float]) -> float:
    """Tokens that a row gains on average in a step whose drafts are accepted so, each once those before it are."""
    return 1 + sum(accumulate(acceptance, mul))


def relative_reads(config: ModelConfig, rows: int, drafts: int) -> float:
    """Weights that a step of `rows` sequences with so many drafts reads, drafting included, over those without any."""
    routed = parts(config, active=True)["routed experts"]
    rest = main_parameters(config, active=True, embedding=False) - routed
    plain, checking = (rest + routed * expert_union(config, rows * tokens) for tokens in (1, 1 + drafts))
    return (checking + drafts * draft_reads(config, rows)) / plain


def draft_reads(config: ModelConfig, rows: int) -> float:
    """Weights of the first MTP module and its head that are read to draft one token a sequence."""
    one = replace(config, num_nextn_predict_layers=1)
    routed = one.moe.num_experts_per_tok * 3 * one.hidden_size * one.moe.moe_intermediate_size
    routed = routed if one.is_moe_layer(one.num_hidden_layers) else 0
    rest = mtp_parameters(one, active=True) - routed + one.vocab_size * one.hidden_size
    return rest + routed * expert_union(one, rows)


@dataclass(frozen=True, kw_only=True)
class Launch:
    """What passes take beside reading and computing: launches, collectives, sampling. Measured, not known on paper."""

    step_s: float  # of a pass of the model
    draft_s: float  # of one draft


NO_LAUNCH = Launch(step_s=0.0, draft_s=0.0)


@dataclass(frozen=True, kw_only=True)
class Server:
    """A model whose weights and cache are spread over devices, each byte held once."""

    model: ModelConfig
    devices: Devices
    dtype: Dtype = "fp8"  # of the weights
    cache: CacheFormat = "bf16"

    @property
    def weight_bytes(self) -> int:
        """Memory of the weights, without MTP."""
        return checkpoint_bytes(replace(self.model, num_nextn_predict_layers=0), self.dtype)

    @property
    def bandwidth(self) -> float:
        """Memory bandwidth of all devices, B/s."""
        return self.devices.count * self.devices.hardware.memory_bandwidth

    def sequences(self, context: int) -> int:
        """How many sequences of `context` tokens fit beside the weights; 0 where the weights alone do not."""
        room = USABLE * self.devices.count * self.devices.hardware.memory_bytes - self.weight_bytes
        return max(0, int(room // (context * cache_bytes(self.model, self.cache))))

    def step_bytes(self, rows: int, context: int, tokens: int = 1) -> float:
        """Bytes read by one step of `tokens` for each of `rows` sequences: weights, experts met, cache."""
        routed = parts(self.model, active=True)["routed experts"]
        rest = main_parameters(self.model, active=True, embedding=False) - routed
        weights = rest + routed * expert_union(self.model, rows * tokens)
        return weights * WEIGHT_BYTES[self.dtype] + rows * context * cache_bytes(self.model, self.cache)

    def step_seconds(self, rows: int, context: int, tokens: int = 1) -> float:
        """The longer of reading and computing; products run at the weights' precision, attention in BF16."""
        hardware = self.devices.hardware
        products = decode_flops_per_token(self.model, 0)
        attention = decode_flops_per_token(self.model, context) - products
        peak = {"fp8": hardware.fp8_flops, "bfloat16": hardware.bf16_flops, "float32": hardware.fp32_flops}[self.dtype]
        computing = rows * tokens * (products / peak + attention / hardware.peak_flops) / self.devices.count
        return max(self.step_bytes(rows, context, tokens) / self.bandwidth, computing)

    def tokens_per_s(self, rows: int, context: int) -> float:
        """Tokens generated a second, over all sequences."""
        return rows / self.step_seconds(rows, context)

    def prefill_tokens_per_s(self, seq_len: int) -> float:
        """Prompt tokens read a second, at the peak of arithmetic."""
        hardware = self.devices.hardware
        peak = hardware.fp8_flops if self.dtype == "fp8" else hardware.peak_flops
        return self.devices.count * peak / prefill_flops_per_token(self.model, seq_len)

    def draft_bytes(self, rows: int) -> float:
        """Bytes that the first MTP module and its head read to draft one token a sequence."""
        return draft_reads(self.model, rows) * WEIGHT_BYTES[self.dtype]

    def draft_seconds(self, rows: int) -> float:
        """Time of one draft for each of `rows` sequences: the longer of reading and computing."""
        one = replace(self.model, num_nextn_predict_layers=1)
        active = mtp_parameters(one, active=True) + one.vocab_size * one.hidden_size
        hardware = self.devices.hardware
        peak = {"fp8": hardware.fp8_flops, "bfloat16": hardware.bf16_flops, "float32": hardware.fp32_flops}[self.dtype]
        computing = rows * 2 * active / peak / self.devices.count
        return max(self.draft_bytes(rows) / self.bandwidth, computing)

    def mtp_speedup(
        self,
        rows: int,
        context: int,
        acceptance: float | Sequence[float],
        drafts: int = 1,
        draft_bytes: float | None = None,
        launch: Launch = NO_LAUNCH,
    ) -> float:
        """How much faster generation gets with so many drafts a step.

        `acceptance` is the share of drafts that are kept among those whose forerunners were: one for all, or one for
        each position. More tokens in a step meet more experts, so on a mixture of experts the gain is small at batch 1,
        large in the middle, and ends where arithmetic binds. What passes cost beside reading and computing, `launch`,
        makes steps of few rows cheaper to lengthen and drafts dearer.
        """
        shares = [acceptance] * drafts if isinstance(acceptance, (int, float)) else acceptance[:drafts]
        drafting = self.draft_seconds(rows) if draft_bytes is None else draft_bytes / self.bandwidth
        plain = self.step_seconds(rows, context) + launch.step_s
        checking = self.step_seconds(rows, context, 1 + drafts) + launch.step_s
        return tokens_per_step(shares) * plain / (checking + drafts * (drafting + launch.draft_s))

    def dollars_per_million(self, tokens_per_s: float) -> float:
        """Price of a million tokens at a rate that all devices reach together."""
        return self.devices.count * self.devices.hardware.dollars_per_hour / (tokens_per_s * 3600) * 1e6


def exchange_seconds(config: ModelConfig, rows: int, bandwidth: float, width: int | None = None) -> float:
    """A step's time in all-to-all where every chosen and shared expert is elsewhere (ISCA'25 2.3.2).

    Dispatch carries one byte an element, combine two; two micro-batches of `rows` tokens overlap their products with
    each other's exchange, so a step cannot be shorter. `bandwidth` in B/s per device.
    """
    experts = config.moe.num_experts_per_tok + config.moe.n_shared_experts
    each = (1 + 2) * rows * experts * (width or config.hidden_size) / bandwidth
    return config.num_hidden_layers * 2 * each


@dataclass(frozen=True, kw_only=True)
class ServingDay:
    """A day of a public service, in tokens and nodes of eight devices."""

    input_tokens: float
    cached_tokens: float  # of the input, found in the cache on disk
    output_tokens: float
    prefill_tokens_per_s: float  # per node, cached ones included
    decode_tokens_per_s: float  # per node
    nodes: float  # on average over the day
    dollars_per_hour: float  # per device
    prices: tuple[float, float, float]  # dollars per million tokens: cached input, other input, output

    @property
    def prefill_nodes(self) -> float:
        """Nodes that read the input."""
        return self.input_tokens / 86_400 / self.prefill_tokens_per_s

    @property
    def decode_nodes(self) -> float:
        """Nodes that write the output."""
        return self.output_tokens / 86_400 / self.decode_tokens_per_s

    @property
    def cost(self) -> float:
        """Dollars for the nodes."""
        return self.nodes * 8 * 24 * self.dollars_per_hour

    @property
    def revenue(self) -> float:
        """Dollars if every token were paid."""
        fresh = self.input_tokens - self.cached_tokens
        counts = (self.cached_tokens, fresh, self.output_tokens)
        return sum(tokens * price / 1e6 for tokens, price in zip(counts, self.prices, strict=True))

    @property
    def margin(self) -> float:
        """Profit as a share of the cost."""
        return self.revenue / self.cost - 1


# DeepSeek's own service on 27-28 February 2025, all tokens priced as R1's (open-infra-index, day 6), where the revenue
# is given as $562,027.
DEEPSEEK_DAY = ServingDay(
    input_tokens=608e9,
    cached_tokens=342e9,
    output_tokens=168e9,
    prefill_tokens_per_s=73.7e3,
    decode_tokens_per_s=14.8e3,
    nodes=226.75,
    dollars_per_hour=2.0,
    prices=(0.14, 0.55, 2.19),
)
