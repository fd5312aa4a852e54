"""The training loss: next token, tokens further on, expert balance; the total is their weighted sum."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fathom.kernels.cross_entropy import token_logprobs
from fathom.model import RoutingTrace, Transformer
from fathom.parallel.world import World
from fathom.text.packing import Batch


@dataclass(frozen=True)
class Losses:
    """The total, differentiable, and its parts, plain: total = sum of the parts with a weight, nothing hidden."""

    total: Tensor
    parts: dict[str, Tensor]
    loads: list[Tensor]  # (E,) token-expert pairs per MoE layer


@dataclass(frozen=True)
class Denominators:
    """What sums are divided by: counts over the whole step, all micro-batches and processes included."""

    tokens: float  # sum of the loss weights
    further: tuple[float, ...]  # the same for every MTP depth, whose targets lie further on
    rows: float

    @staticmethod
    def of(batches: Sequence[Batch], depths: int, world: World) -> "Denominators":
        tokens = sum(float(batch.weights.sum()) for batch in batches)
        further = [sum(float(further_weights(batch, d + 1).sum()) for batch in batches) for d in range(depths)]
        rows = sum(batch.tokens.shape[0] for batch in batches)
        tokens, rows, *further = world.rows.sum_numbers(tokens, rows, *further)
        return Denominators(max(tokens, 1.0), tuple(max(f, 1.0) for f in further), rows)


def further_weights(batch: Batch, depth: int) -> NDArray[np.float32]:
    """Loss weights of MTP depth `depth`: of the target `depth` places on, if it is in the same document."""
    same = batch.segments[:, depth:] == batch.segments[:, :-depth]
    return batch.weights[:, depth:] * same


@dataclass(frozen=True)
class Inputs:
    """A micro-batch on the device, as the model and the loss read it; all (B, T)."""

    tokens: Tensor
    targets: Tensor
    weights: Tensor
    further: tuple[Tensor, ...]  # loss weights of every MTP depth d, (B, T - d)
    positions: Tensor | None  # None counts each row from zero
    mask: Tensor | None  # (B, T, T), True where a token may see another; None is causal
    valid: Tensor | None  # 1.0 where there is a token, 0.0 where a row is filled up; None has tokens everywhere

    @staticmethod
    def of(batch: Batch, depths: int, device: torch.device, mask_documents: bool = False) -> "Inputs":
        """The micro-batch with what `depths` MTP modules need."""
        segments = torch.from_numpy(batch.segments).to(device)
        return Inputs(
            *(torch.from_numpy(a).to(device) for a in (batch.tokens, batch.targets, batch.weights)),
            further=tuple(torch.from_numpy(further_weights(batch, d + 1)).to(device) for d in range(depths)),
            positions=torch.from_numpy(batch.positions).to(device) if mask_documents else None,
            mask=document_mask(segments) if mask_documents else None,
            valid=(segments >= 0).float() if (batch.segments < 0).any() else None,
        )


def language_losses(
    model: Transformer,
    batch: Batch,
    denominators: Denominators,
    mtp_weight: float,
    device: torch.device,
    mask_documents: bool = False,
) -> Losses:
    """Next-token loss, MTP losses (V3 eq. 24-25) and sequence-wise balance loss (V3 eq. 17) of one micro-batch."""
    inputs = Inputs.of(batch, len(model.mtp) if mtp_weight > 0 else 0, device, mask_documents)
    trace = RoutingTrace(valid=inputs.valid)
    hidden = model(inputs.tokens, positions=inputs.positions, mask=inputs.mask, trace=trace)
    return losses_behind(model, hidden, inputs, denominators, mtp_weight, trace)


def losses_behind(
    model: Transformer,
    hidden: Tensor,
    inputs: Inputs,
    denominators: Denominators,
    mtp_weight: float,
    trace: RoutingTrace,
) -> Losses:
    """The losses of a micro-batch whose states (B, T, D) behind the final norm are known."""
    loss, best = _weighted_loss(model, hidden, inputs.targets, inputs.weights, denominators.tokens)
    parts = {"loss_main": loss.detach()}
    total = loss
    depths = len(inputs.further)
    for depth, further in enumerate(inputs.further, 1):
        hidden = model.predict_further(
            depth - 1,
            hidden[:, :-1],
            inputs.tokens[:, depth:],
            # a joined state belongs to the document of its hidden state, not to that of the token further on
            positions=None if inputs.positions is None else inputs.positions[:, :-depth],
            mask=None if inputs.mask is None else inputs.mask[:, :-depth, :-depth],
            trace=trace,
        )
        loss, draft = _weighted_loss(model, hidden, inputs.targets[:, depth:], further, denominators.further[depth - 1])
        total = total + mtp_weight / depths * loss
        parts["loss_mtp"] = parts.get("loss_mtp", 0) + loss.detach() / depths
        if depth == 1:
            agree = ((draft == best[:, 1:]) & (further > 0)).sum()
            parts["mtp_acceptance"] = agree / denominators.further[0]
    if trace.balance:
        balance = torch.stack(trace.balance).sum() * (inputs.tokens.shape[0] / denominators.rows)
        total = total + model.config.moe.seq_aux_alpha * balance
        parts["loss_balance"] = balance.detach()
    parts["loss"] = total.detach()
    return Losses(total, parts, trace.loads)


def document_mask(segments: Tensor) -> Tensor:
    """(B, T, T), True where a token may see another: not later, and in the same document."""
    time = torch.arange(segments.shape[1], device=segments.device)
    return (segments.unsqueeze(2) == segments.unsqueeze(1)) & (time.unsqueeze(1) >= time)


def _weighted_loss(
    model: Transformer, hidden: Tensor, targets: Tensor, weights: Tensor, denominator: float
) -> tuple[Tensor, Tensor]:
    """The weighted sum of -log p over `denominator`, and the likeliest tokens (B, T), -1 where there is no loss.

    Only places with a weight reach the head, which is most of a small model's compute.
    """
    at = weights.flatten().nonzero().squeeze(1)
    best = torch.full((weights.numel(),), -1, device=weights.device)
    out = token_logprobs(hidden.flatten(0, 1).index_select(0, at), model.head_weight, targets.flatten()[at])
    best[at] = out.best
    return -(weights.flatten()[at] * out.logprob).sum() / denominator, best.view_as(weights)
