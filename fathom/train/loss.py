"""The training loss: next token, tokens further on, expert balance; the total is their weighted sum."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fathom.kernels.cross_entropy import token_logprobs
from fathom.kernels.linear_loss import linear_loss
from fathom.model import RoutingTrace, Transformer
from fathom.parallel.context import places_of, whole_rows
from fathom.parallel.mesh import ALONE, Axis
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
    """A micro-batch on the device, as the model and the loss read it: the places of its rows that this process holds.

    (B, T) unless a shape stands beside it; where rows are spread over c processes, T is T/c, and S the whole row.
    """

    tokens: Tensor
    targets: Tensor
    weights: Tensor
    positions: Tensor | None  # None counts each row from zero
    mask: Tensor | None  # (B, T, S), True where a token may see another; None is causal
    valid: Tensor | None  # 1.0 where there is a token, 0.0 where a row is filled up; None has tokens everywhere
    further: tuple["Inputs", ...] = ()  # of every MTP depth: tokens, targets, weights and valid of d places on
    context: Axis = ALONE  # the processes over which the rows are spread
    counted: Tensor | None = None  # (C,) places with a weight in the flattened rows; None leaves them to be sought

    @staticmethod
    def of(
        batch: Batch, depths: int, device: torch.device, mask_documents: bool = False, context: Axis = ALONE
    ) -> "Inputs":
        """The micro-batch with what `depths` MTP modules need."""
        if context.size > 1:
            return _spread_inputs(batch, depths, device, mask_documents, context)
        segments = sent(batch.segments, device)
        tokens, targets, weights = (sent(array, device) for array in (batch.tokens, batch.targets, batch.weights))
        positions = sent(batch.positions, device) if mask_documents else None
        mask = document_mask(segments) if mask_documents else None
        valid = (segments >= 0).float() if (batch.segments < 0).any() else None
        ahead = [further_weights(batch, d) for d in range(1, depths + 1)]
        further = tuple(
            Inputs(
                tokens=tokens[:, d:],
                targets=targets[:, d:],
                weights=sent(further, device),
                # a joined state belongs to the document of its hidden state, not to that of the token further on
                positions=None if positions is None else positions[:, :-d],
                mask=None if mask is None else mask[:, :-d, :-d],
                valid=None if valid is None else valid[:, d:],
                counted=sent(np.flatnonzero(further), device),
            )
            for d, further in enumerate(ahead, 1)
        )
        counted = sent(np.flatnonzero(batch.weights), device)
        return Inputs(tokens, targets, weights, positions, mask, valid, further, counted=counted)


def sent(array: NDArray[Any], device: torch.device) -> Tensor:
    """The array on the device; a host does not wait for its GPU to take it."""
    tensor = torch.from_numpy(array)
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.contiguous().pin_memory().to(device, non_blocking=True)


def _spread_inputs(batch: Batch, depths: int, device: torch.device, mask_documents: bool, context: Axis) -> Inputs:
    """The places that this process holds of rows that all of `context` know whole.

    Rows are filled up until they divide into pieces. Places from which an MTP depth looks beyond the row have a state
    all the same, which no other sees and nothing counts.
    """
    rows, columns = batch.tokens.shape
    length = -(-columns // (2 * context.size)) * 2 * context.size
    places = places_of(length, context)

    def held(array: NDArray[Any], fill: float = 0, ahead: int = 0) -> Tensor:
        """The places held, each with what stands `ahead` of it, `fill` beyond the row."""
        filled = np.full((rows, length), fill, array.dtype)
        filled[:, : array.shape[1] - ahead] = array[:, ahead:]
        return torch.from_numpy(filled)[:, places].to(device)

    segments = torch.from_numpy(np.pad(batch.segments, ((0, 0), (0, length - columns)), constant_values=-1))
    mask = document_mask(segments, places).to(device) if mask_documents else None
    positions = held(batch.positions) if mask_documents else places.unsqueeze(0).to(device)
    is_filled = length > columns or bool((batch.segments < 0).any())

    def looking(ahead: int, weights: NDArray[np.float32], further: tuple[Inputs, ...] = ()) -> Inputs:
        valid = (held(batch.segments, -1, ahead) >= 0).float() if is_filled or ahead else None
        tokens, targets = held(batch.tokens, ahead=ahead), held(batch.targets, ahead=ahead)
        return Inputs(tokens, targets, held(weights), positions, mask, valid, further, context)

    further = tuple(looking(d, further_weights(batch, d)) for d in range(1, depths + 1))
    return looking(0, batch.weights, further)


def language_losses(
    model: Transformer,
    batch: Batch,
    denominators: Denominators,
    mtp_weight: float,
    device: torch.device,
    mask_documents: bool = False,
) -> Losses:
    """Next-token loss, MTP losses (V3 eq. 24-25) and sequence-wise balance loss (V3 eq. 17) of one micro-batch.

    Where the model's rows are spread over processes, the losses are this one's: theirs add up to those of the rows.
    """
    inputs = Inputs.of(batch, len(model.mtp) if mtp_weight > 0 else 0, device, mask_documents, model.context)
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
    loss, best = _weighted_loss(model, hidden, inputs, denominators.tokens)
    parts = {"loss_main": loss.detach()}
    total = loss
    depths = len(inputs.further)
    for depth, further in enumerate(inputs.further, 1):
        hidden = hidden[:, : further.tokens.shape[1]]
        hidden = model.predict_further(
            depth - 1,
            hidden,
            further.tokens,
            positions=further.positions,
            mask=further.mask,
            trace=trace.counting(further.valid),
        )
        loss, draft = _weighted_loss(model, hidden, further, denominators.further[depth - 1])
        total = total + mtp_weight / depths * loss
        parts["loss_mtp"] = parts.get("loss_mtp", 0) + loss.detach() / depths
        if depth == 1:
            agree = ((draft == _one_on(best, inputs.context)) & (further.weights > 0)).sum()
            parts["mtp_acceptance"] = agree / denominators.further[0]
    if trace.balance:
        balance = torch.stack(trace.balance).sum() * (inputs.tokens.shape[0] / denominators.rows)
        total = total + model.config.moe.seq_aux_alpha * balance
        parts["loss_balance"] = balance.detach()
    parts["loss"] = total.detach()
    return Losses(total, parts, trace.loads)


def document_mask(segments: Tensor, places: Tensor | None = None) -> Tensor:
    """(B, T, S), True where a token may see another: not later, and in the same document; T are all places, or some."""
    time = torch.arange(segments.shape[1], device=segments.device)
    queries, places = (segments, time) if places is None else (segments[:, places], places)
    return (queries.unsqueeze(2) == segments.unsqueeze(1)) & (places.unsqueeze(1) >= time)


def _one_on(best: Tensor, context: Axis) -> Tensor:
    """What stands one place on in the row: without the last place in a whole one, -1 there in one that is spread."""
    if context.size == 1:
        return best[:, 1:]
    shifted = torch.nn.functional.pad(whole_rows(best, context, "guesses")[:, 1:], (0, 1), value=-1)
    return shifted[:, places_of(shifted.shape[1], context).to(best.device)]


def _weighted_loss(model: Transformer, hidden: Tensor, inputs: Inputs, denominator: float) -> tuple[Tensor, Tensor]:
    """The weighted sum of -log p over `denominator`, and the likeliest tokens (B, T), -1 where there is no loss.

    Only places with a weight reach the head, which is most of a small model's compute.
    """
    states, targets, weights = hidden.flatten(0, 1), inputs.targets.flatten(), inputs.weights.flatten()
    at = weights.nonzero().squeeze(1) if inputs.counted is None else inputs.counted
    some = len(at) < len(weights)
    if some:
        states, targets, weights = states.index_select(0, at), targets[at], weights[at]
    if states.is_cuda and states.dtype == torch.bfloat16:
        loss, best = linear_loss(states, model.head_weight, targets, weights / denominator)
    else:
        out = token_logprobs(states, model.head_weight, targets)
        loss, best = -(weights * out.logprob).sum() / denominator, out.best
    best = best.new_full((inputs.weights.numel(),), -1).index_copy_(0, at, best) if some else best
    return loss, best.view_as(inputs.weights)
