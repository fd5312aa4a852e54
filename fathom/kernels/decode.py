"""The pieces of a decoding step: few rows, so each is bound by reading weights once and by its launch.

N counts rows (one new token each, or several where drafts are checked). Products are summed in float32 and stay in
float32 until something reads them as an operand: the twins fuse a norm in front and a residual sum behind, and a
rounding in between would cost both time and accuracy.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from fathom.kernels.dispatch import twin
from fathom.kernels.latents import quantize_latents
from fathom.kernels.router import choose_experts, gate_weights, router_scores


@twin
def norm_linear(
    x: Float[Tensor, "N D"],
    gain: Float[Tensor, " D"],
    eps: float,
    weight: Float[Tensor, "O D"],
    second: Float[Tensor, "P D"] | None = None,
) -> Float[Tensor, "N OP"]:
    """RMSNorm and a linear map, or two side by side: (rms_norm(x) * gain) @ [weight; second].T in float32."""
    normed = F.rms_norm(x.float(), (x.shape[-1],), gain.float(), eps).to(weight.dtype)
    result = (normed @ weight.T).float()
    if second is not None:
        result = torch.cat((result, (normed @ second.T).float()), dim=-1)
    return result


@twin
def linear(x: Float[Tensor, "N D"], weight: Float[Tensor, "O D"]) -> Float[Tensor, "N O"]:
    """x @ weight.T in float32."""
    return (x.to(weight.dtype) @ weight.T).float()


def crowd_linear(x: Float[Tensor, "N D"], weight: Float[Tensor, "O D"]) -> Float[Tensor, "N O"]:
    """`linear` of many rows, for which torch's product is the faster one."""
    x = x.to(weight.dtype)
    if x.is_cuda and x.dtype != torch.float32:
        return torch.mm(x, weight.T, out_dtype=torch.float32)
    return (x @ weight.T).float()


@twin
def add_linear_(x: Float[Tensor, "N D"], inner: Float[Tensor, "N I"], weight: Float[Tensor, "D I"]) -> None:
    """x += inner @ weight.T in place."""
    x += inner.to(weight.dtype) @ weight.T


@twin
def add_swiglu_(x: Float[Tensor, "N D"], gate_up: Float[Tensor, "N I2"], weight: Float[Tensor, "D I"]) -> None:
    """x += (silu(gate) * up) @ weight.T in place; `gate_up` holds both halves."""
    gate, up = gate_up.float().chunk(2, dim=-1)
    x += (F.silu(gate) * up).to(weight.dtype) @ weight.T


@twin
def absorb_query(
    q: Float[Tensor, "N HQ"],
    kv: Float[Tensor, "N W"],
    kv_gain: Float[Tensor, " R"],
    eps: float,
    w_kv: Float[Tensor, "H NV R"],
    turns: Float[Tensor, "L F 2"],
    place: Int[Tensor, " N"],
    table: Int[Tensor, "B C"],
    pages: Float[Tensor, "P S W"] | UInt8[Tensor, "P S Y"],
) -> Float[Tensor, "N H W"]:
    """Queries in the latent space, and the latents of these tokens written to their pages (V2 appendix C).

    `q` holds nope and rope parts of every head, `kv` the latent before its norm and the key that all heads share.
    The nope part is multiplied by W_UK, the first rows of `w_kv`; both rope parts are turned by `turns[place]`. The N
    rows are B rows of the table with N / B tokens each. Rows at place -1 are idle: nothing is written for them. Pages
    of bytes take what `quantize_latents` makes of the latents.
    """
    heads, rank, rope = w_kv.shape[0], w_kv.shape[2], 2 * turns.shape[1]
    nope, turning = q.view(len(q), heads, -1).split((q.shape[1] // heads - rope, rope), dim=-1)
    absorbed = torch.einsum("nhd,hdr->nhr", nope.to(w_kv.dtype), w_kv[:, : nope.shape[-1]])
    latent, key = kv.split((rank, rope), dim=-1)
    unit = torch.view_as_complex(turns[place.clamp(min=0)])
    vectors = torch.cat((F.rms_norm(latent.float(), (rank,), kv_gain.float(), eps), _turn(key, unit)), dim=-1)
    busy = place >= 0
    row = torch.arange(len(q), device=q.device)[busy] // (len(q) // len(table))
    page = table[row, (place[busy] // pages.shape[1]).long()].long()
    entries = vectors[busy]
    entries = quantize_latents(entries, rank) if pages.dtype == torch.uint8 else entries.to(pages.dtype)
    pages[page, (place[busy] % pages.shape[1]).long()] = entries
    return torch.cat((absorbed.float(), _turn(turning, unit.unsqueeze(1))), dim=-1).to(w_kv.dtype)


@twin
def turn_heads(
    q: Float[Tensor, "N HD"],
    k: Float[Tensor, "N GD"],
    v: Float[Tensor, "N GD"],
    biases: tuple[Tensor, Tensor, Tensor] | None,
    gains: tuple[Tensor, Tensor] | None,
    eps: float,
    turns: Float[Tensor, "L F 2"],
    place: Int[Tensor, " N"],
    table: Int[Tensor, "B C"],
    pages: Float[Tensor, "P S W"],
) -> Float[Tensor, "N H D"]:
    """Queries of grouped-query attention, turned, and the keys and values of these tokens written to their pages.

    Biases are added, heads of q and k are normalised where there are `gains`, and both are turned by `turns[place]`, in
    pairs that lie half a head apart. An entry of `pages` is all keys, then all values. Rows as in `absorb_query`.
    """
    size = 2 * turns.shape[1]
    if biases is not None:
        q, k, v = (x + bias for x, bias in zip((q, k, v), biases, strict=True))
    q, k = (x.float().unflatten(-1, (-1, size)) for x in (q, k))
    if gains is not None:
        q, k = (F.rms_norm(x, (size,), gain.float(), eps) for x, gain in zip((q, k), gains, strict=True))
    cos, sin = turns[place.clamp(min=0)].unsqueeze(1).unbind(-1)  # (N, 1, F)
    q, k = (_turn_halves(x, cos, sin) for x in (q, k))
    vectors = torch.cat((k.flatten(1), v.float()), dim=-1)
    busy = place >= 0
    row = torch.arange(len(q), device=q.device)[busy] // (len(q) // len(table))
    page = table[row, (place[busy] // pages.shape[1]).long()].long()
    pages[page, (place[busy] % pages.shape[1]).long()] = vectors[busy].to(pages.dtype)
    return q.to(pages.dtype)


def _turn_halves(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def _turn(x: Float[Tensor, "*N F2"], unit: Tensor) -> Float[Tensor, "*N F2"]:
    numbers = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(numbers * unit).flatten(-2)


@twin
def expand_value(context: Float[Tensor, "N H R"], w_kv: Float[Tensor, "H NV R"], nope: int) -> Float[Tensor, "N HV"]:
    """What attention found in the latent space, through each head's W_UV: rows `nope` and on of its `w_kv`."""
    return torch.einsum("nhr,hvr->nhv", context.to(w_kv.dtype), w_kv[:, nope:]).flatten(1)


@twin
def route(
    logits: Float[Tensor, "N E"],
    bias: Float[Tensor, " E"],
    k: int,
    scoring: str,
    biased: bool,
    n_group: int,
    topk_group: int,
    normalise: bool,
    scale: float,
) -> tuple[Int[Tensor, "N K"], Float[Tensor, "N K"]]:
    """The k experts of each token, by score plus bias within its best groups, and their gate weights (V3 eq. 13-16)."""
    scores = router_scores(logits.float(), scoring)
    choice = scores + bias if biased else scores
    experts = choose_experts(choice, k, n_group, topk_group, 2 if biased else 1)
    return experts.int(), gate_weights(scores, experts.long(), normalise, scale)


@twin
def add_experts_(
    x: Float[Tensor, "N D"],
    gain: Float[Tensor, " D"],
    eps: float,
    experts: Int[Tensor, "N K"],
    weights: Float[Tensor, "N K"],
    gate_up: Float[Tensor, "E M2 D"],
    down: Float[Tensor, "E D M"],
    shared_gate_up: Float[Tensor, "N S2"] | None = None,
    shared_down: Float[Tensor, "D S"] | None = None,
    gather: bool | None = None,
) -> None:
    """x += the sum of each token's experts, read behind a norm of x, and of the shared expert, in place (V3 eq. 12).

    Of the shared expert the gate and up projections are given: they are computed beside the router's scores. On a GPU
    experts `gather` their tokens, or tokens read their experts, whichever moves less unless said; that changes rounding
    alone.
    """
    normed = F.rms_norm(x.float(), (x.shape[-1],), gain.float(), eps).to(gate_up.dtype)
    gate, up = torch.einsum("nd,nkmd->nkm", normed, gate_up[experts.long()]).float().chunk(2, dim=-1)
    inner = (F.silu(gate) * up * weights.unsqueeze(-1)).to(down.dtype)
    total = torch.einsum("nkm,nkdm->nd", inner.float(), down[experts.long()].float())
    if shared_gate_up is not None and shared_down is not None:
        gate, up = shared_gate_up.float().chunk(2, dim=-1)
        total += (F.silu(gate) * up).to(down.dtype).float() @ shared_down.float().T
    x += total.to(x.dtype)
