"""Many answers to few prompts in one differentiable pass: every prompt is computed once."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fathom.kernels.router import expert_load
from fathom.model.moe import RoutingTrace
from fathom.model.prompts import Prompts, RowSlots
from fathom.model.transformer import Transformer


@dataclass(frozen=True)
class Shared:
    """Rows of prompt and answer, (N, T), taken apart: where every token of a row is computed."""

    first: Int[Tensor, " G"]  # a row of every prompt
    owners: Int[Tensor, " N"]  # the prompt of each row
    lengths: Int[Tensor, " N"]  # tokens of its prompt
    places: Int[Tensor, "N A"]  # columns of a row that its answer takes, the last one again behind its end
    columns: Int[Tensor, "N T"]  # of each token among a prompt's P columns and then the answer's A

    @staticmethod
    def of(groups: Int[Tensor, " N"], lengths: Int[Tensor, " N"], width: int) -> "Shared":
        """Rows of equal `groups` begin with the same prompt of `lengths` tokens; `width` is T."""
        _, owners = torch.unique(groups, return_inverse=True)
        count, rows = int(owners.max()) + 1, torch.arange(len(groups), device=groups.device)
        first = torch.zeros(count, dtype=torch.long, device=groups.device).scatter_(0, owners, rows)
        longest, shortest = int(lengths.max()), int(lengths.min())
        answer = torch.arange(width - shortest, device=groups.device)
        places = (lengths.unsqueeze(1) + answer).clamp(max=width - 1)
        column = torch.arange(width, device=groups.device).expand(len(groups), -1)
        behind = lengths.unsqueeze(1)
        columns = torch.where(column < behind, column, longest + column - behind)
        return Shared(first, owners, lengths, places, columns)

    @property
    def prompt_width(self) -> int:
        """P, the tokens of the longest prompt."""
        return int(self.lengths.max())


def forward_shared(
    model: Transformer, tokens: Int[Tensor, "N T"], shared: Shared, trace: RoutingTrace
) -> Float[Tensor, "N T D"]:
    """What `model(tokens, trace=trace)` gives for rows of few prompts, each prompt computed once.

    The trace's loads count a prompt once a row, as the plain pass does; balance losses are not gathered. Prompts that
    are to repeat recorded experts take those of one of their rows.
    """
    width, length = shared.prompt_width, tokens.shape[1]
    columns = torch.arange(max(width, length), device=tokens.device)
    in_prompt = columns[:width] < shared.lengths.unsqueeze(1)  # (N, P)
    in_answer = (shared.lengths.unsqueeze(1) + columns[: shared.places.shape[1]] < length).float()  # (N, A)
    if trace.valid is not None:
        in_answer = in_answer * trace.valid.gather(1, shared.places)
    before = RoutingTrace(in_prompt[shared.first].float(), records=True)
    behind = RoutingTrace(in_answer, records=trace.records)
    if trace.replay is not None:
        replay = trace.replay.to(tokens.device)
        before.replay = replay[:, shared.first, :width]
        behind.replay = torch.stack([_pick(experts, shared.places) for experts in replay])
    prompts = RowSlots(columns[:width].expand(len(shared.first), -1))
    answers = RowSlots(shared.places, Prompts(prompts, shared.owners, shared.lengths))
    states = model(tokens[shared.first, :width], slots=prompts, trace=before).index_select(0, shared.owners)
    states = torch.cat((states, model(tokens.gather(1, shared.places), slots=answers, trace=behind)), dim=1)
    for layer, load in enumerate(behind.loads):
        experts = before.experts[layer].index_select(0, shared.owners)  # (N, P, K)
        trace.loads.append(load + expert_load(experts[in_prompt], len(load)))
        if trace.records:
            trace.experts.append(_pick(torch.cat((experts, behind.experts[layer]), dim=1), shared.columns))
    return _pick(states, shared.columns)


def _pick(values: Tensor, columns: Int[Tensor, "N T"]) -> Tensor:
    """(N, T, W) of (N, C, W): a column of its own for every place of a row."""
    return values.gather(1, columns.unsqueeze(-1).expand(-1, -1, values.shape[-1]))
