"""Bytes that one process sends to others, by what they carry; messages go around rings.

What the trainer counts of its own messages is compared with these sums, by tests and by `fathom bench scale`.
"""

from math import comb

from fathom.config import ModelConfig
from fathom.plan.count import moe_layers, mtp_layers
from fathom.plan.layout import Layout
from fathom.plan.share import share_of

GRADIENT = 4  # bytes; gradients are summed in float32


def state_bytes(config: ModelConfig, layout: Layout, weight_bytes: int = 4) -> dict[str, float]:
    """Weights gathered and gradients summed, for a model without a pipeline whose weights travel in `weight_bytes`.

    ZeRO-1 gathers once a step and sums once. ZeRO-3 gathers each micro-batch's weights forward and backward, but
    embedding, head and last norm once, scatters its gradients, and sums over replicas once a step. Experts that are
    spread share what they hold with all processes that have the same ones.
    """
    share = share_of(config, layout, 0)
    biases = moe_layers(config) * config.moe.n_routed_experts * config.moe.has_selection_bias  # no gradient moves them
    own = share.dense - biases
    tokens, holders = layout.replicas * layout.context, layout.shard * layout.context
    root = share.tables + config.hidden_size
    if layout.expert > 1:
        dense, routed = own, share.routed
    else:
        dense, routed = own + share.routed, 0
    same = tokens // layout.expert  # processes with the same experts
    if layout.shard == 1:
        return {"weights": 0.0, "gradients": GRADIENT * 2 * (dense * _others(tokens) + routed * _others(same))}
    whole = layout.zero == 3
    gathers, passes = (2 * layout.micro_batches, layout.micro_batches) if whole else (1, 1)
    held = (dense - root) * gathers + root * passes
    gradients = passes * (dense * _others(holders) + routed * _others(same))
    gradients += 2 * dense / holders * _others(layout.data)
    return {
        "weights": weight_bytes * (held * _others(holders) + routed * gathers * _others(same)),
        "gradients": GRADIENT * gradients,
    }


def sum_bytes(numbers: int, ways: int) -> float:
    """A sum of so many numbers beside the gradients, such as losses and loads, in float32."""
    return GRADIENT * 2 * numbers * _others(ways)


def expert_bytes(config: ModelConfig, tokens: int, ways: int, bytes_each: int = 4, recompute: str = "none") -> float:
    """What `tokens` of a process send in a step's forward and backward passes where `ways` processes share the experts.

    Expected, were all choices equally likely. A token goes once to each process that has one of its experts, with K
    numbers of experts and K gate weights, and comes back; so do the gradients of rows and gate weights. Where whole
    layers are computed again the way forward is gone twice.
    """
    d, k = config.hidden_size, config.moe.num_experts_per_tok
    forward = 2 * d * bytes_each + k * (4 + bytes_each)
    backward = 2 * d * bytes_each + k * bytes_each
    passed = (2 if recompute == "full" else 1) * forward + backward
    return moe_layers(config) * tokens * processes_reached(config, ways) * passed


def processes_reached(config: ModelConfig, ways: int) -> float:
    """Other processes, of `ways` that share the experts, to which a token goes, were all choices equally likely.

    Groups bound it (V3 2.1.2, node-limited routing): a process is reached if a group that it has experts of is among
    the chosen ones, and one of its experts among the K of those.
    """
    c = config.moe
    own, group = c.n_routed_experts // ways, c.n_routed_experts // c.n_group
    if c.topk_group >= c.n_group or c.topk_method == "greedy":
        missed = comb(c.n_routed_experts - own, c.num_experts_per_tok) / comb(c.n_routed_experts, c.num_experts_per_tok)
        return (1 - missed) * (ways - 1)
    candidates, held = c.topk_group * group, max(1, own // group)  # experts of chosen groups; groups of a process
    reached = 0.0
    for chosen in range(max(0, c.topk_group - (c.n_group - held)), min(held, c.topk_group) + 1):
        likely = comb(held, chosen) * comb(c.n_group - held, c.topk_group - chosen) / comb(c.n_group, c.topk_group)
        theirs = chosen * min(own, group)
        missed = comb(candidates - theirs, c.num_experts_per_tok) / comb(candidates, c.num_experts_per_tok)
        reached += likely * (1 - missed)
    return reached * (ways - 1)


def context_bytes(config: ModelConfig, rows: int, seq_len: int, context: int, bytes_each: int) -> int:
    """What a forward and backward pass over `rows` of `seq_len` sends where each row is spread over `context`.

    Every layer, those of the MTP modules among them, gathers what its keys and values are made of and sums its
    gradient: MLA's latents with the shared rotated key, or GQA's keys and values.
    """
    layers = config.num_hidden_layers + len(mtp_layers(config))
    return 2 * layers * int(rows * seq_len * config.attention.cache_width * bytes_each * _others(context))


def full_keys_bytes(config: ModelConfig, rows: int, seq_len: int, context: int, bytes_each: int) -> int:
    """What `context_bytes` would be if MLA exchanged every head's keys and values instead of their latents."""
    a = config.attention
    width = a.num_attention_heads * (a.qk_head_dim + a.v_head_dim) if a.kind == "mla" else a.cache_width
    layers = config.num_hidden_layers + len(mtp_layers(config))
    return 2 * layers * int(rows * seq_len * width * bytes_each * _others(context))


def _others(ways: int) -> float:
    """What one process sends of a tensor that is gathered, or summed into parts, among `ways`: all parts but one."""
    return (ways - 1) / ways
