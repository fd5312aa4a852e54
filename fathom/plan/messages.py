"""Bytes that one process sends to others in one optimizer step, by what they carry; messages go around rings.

What the trainer counts of its own messages is compared with these sums.
"""

from math import comb

from fathom.config import ModelConfig
from fathom.plan.layout import Layout
from fathom.plan.share import share_of
from fathom.plan.throughput import moe_layers

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


def _others(ways: int) -> float:
    """What one process sends of a tensor that is gathered, or summed into parts, among `ways`: all parts but one."""
    return (ways - 1) / ways
