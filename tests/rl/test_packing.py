"""Padded, packed and with a shared prompt: the same log-probabilities, loss and gradient."""

import copy
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from fathom.config import ObjectiveConfig
from fathom.config.objectives import named_objective
from fathom.kernels.cross_entropy import token_logprobs
from fathom.model import RoutingTrace, Transformer
from fathom.rl.grpo import denominator, policy_loss
from fathom.train.loss import document_mask

PROMPT = [1, 3, 20, 21, 4, 5]
ANSWERS = [[30, 31, 2], [32, 33, 34, 35, 36, 2], [30, 2], [40, 41, 42, 43]]  # ragged; the last one is cut
GAINS = torch.tensor([1.0, -0.5, 0.7, -1.2])


@dataclass(frozen=True)
class Layout:
    """Answers laid out in rows, and where each answer's log-probabilities are found."""

    tokens: Tensor  # (B, T)
    positions: Tensor  # (B, T)
    mask: Tensor  # (B, T, T)
    places: list[list[tuple[int, int, int]]]  # of every answer: row, column that predicts, token


def padded(rows: list[int], width: int = 14) -> Layout:
    """One answer a row, padded on the right."""
    tokens = torch.zeros(len(rows), width, dtype=torch.long)
    places: list[list[tuple[int, int, int]]] = []
    for row, answer in enumerate(ANSWERS[i] for i in rows):
        tokens[row, : len(PROMPT) + len(answer)] = torch.tensor(PROMPT + answer)
        places.append([(row, len(PROMPT) - 1 + k, token) for k, token in enumerate(answer)])
    causal = torch.ones(width, width, dtype=torch.bool).tril().expand(len(rows), -1, -1)
    return Layout(tokens, torch.arange(width).expand(len(rows), -1), causal, places)


def packed() -> Layout:
    """All answers with their prompts end to end in one row; none sees another."""
    tokens, positions, segments, places = [], [], [], []
    for number, answer in enumerate(ANSWERS):
        start = len(tokens) + len(PROMPT) - 1
        places.append([(0, start + k, token) for k, token in enumerate(answer)])
        tokens += PROMPT + answer
        positions += range(len(PROMPT) + len(answer))
        segments += [number] * (len(PROMPT) + len(answer))
    return Layout(torch.tensor([tokens]), torch.tensor([positions]), document_mask(torch.tensor([segments])), places)


def shared() -> Layout:
    """The prompt once, the answers behind it; each sees the prompt and itself."""
    tokens, positions, owners, places = [*PROMPT], [*range(len(PROMPT))], [-1] * len(PROMPT), []
    for number, answer in enumerate(ANSWERS):
        ends = [len(PROMPT) - 1, *range(len(tokens), len(tokens) + len(answer) - 1)]
        places.append([(0, at, token) for at, token in zip(ends, answer, strict=True)])
        tokens += answer
        positions += range(len(PROMPT), len(PROMPT) + len(answer))
        owners += [number] * len(answer)
    own, time = torch.tensor(owners), torch.arange(len(tokens))
    sees = (own.unsqueeze(1) == own) | (own == -1)
    return Layout(torch.tensor([tokens]), torch.tensor([positions]), (sees & (time.unsqueeze(1) >= time))[None], places)


def logprobs(model: Transformer, layout: Layout) -> Tensor:
    """(N, longest), 0 behind an answer's end."""
    hidden = model(layout.tokens, layout.positions, layout.mask, trace=RoutingTrace())
    table = torch.zeros(len(layout.places), max(map(len, ANSWERS)))
    rows = []
    for answer in layout.places:
        state = torch.stack([hidden[row, at] for row, at, _ in answer])
        found = token_logprobs(state, model.head_weight, torch.tensor([token for *_, token in answer]), 0.8).logprob
        rows.append(torch.nn.functional.pad(found, (0, table.shape[1] - len(found))))
    return torch.stack(rows)


def gradient(model: Transformer, layouts: list[Layout], objective: ObjectiveConfig) -> Tensor:
    """Of the whole loss, one pass a layout; all answers in order over the layouts."""
    model = copy.deepcopy(model)
    lengths = torch.tensor([len(answer) for answer in ANSWERS])
    mask = torch.arange(int(lengths.max())) < lengths.unsqueeze(1)
    with torch.no_grad():  # another policy, but no far one
        old = logprobs(model, padded([0, 1, 2, 3])) + torch.linspace(-0.3, 0.3, mask.numel()).view(mask.shape)
    total, start = denominator(mask, objective, 8), 0
    for layout in layouts:
        rows = slice(start, start + len(layout.places))
        found = logprobs(model, layout)
        loss, _ = policy_loss(found, old[rows], GAINS[rows], mask[rows], objective, total, old[rows] - 0.2)
        loss.backward()
        start = rows.stop
    return torch.cat([torch.zeros(p.numel()) if p.grad is None else p.grad.flatten() for p in model.parameters()])


@pytest.mark.parametrize("name", ["default", "r1", "dr_grpo", "gspo"])  # every denominator and form of ratio
def test_the_gradient_is_one_for_padded_packed_shared_and_cut_rows(policy, name: str) -> None:
    objective = named_objective(name)
    whole = gradient(policy.model, [padded([0, 1, 2, 3])], objective)
    assert float(whole.abs().max()) > 1e-3
    others = {
        "packed": [packed()],
        "shared prompt": [shared()],
        "wider": [padded([0, 1, 2, 3], width=30)],
        "micro-batches of 1": [padded([row]) for row in range(4)],
        "micro-batches of 3 and 1": [padded([0, 1, 2]), padded([3])],
    }
    for form, layouts in others.items():
        found = gradient(policy.model, layouts, objective)
        torch.testing.assert_close(found, whole, rtol=1e-4, atol=2e-6, msg=lambda text, form=form: f"{form}: {text}")


def test_logprobs_of_an_answer_do_not_depend_on_its_batch_mates_or_layout(policy) -> None:
    together = logprobs(policy.model, padded([0, 1, 2, 3]))
    for row in range(4):
        torch.testing.assert_close(logprobs(policy.model, padded([row], width=22))[0], together[row])
    torch.testing.assert_close(logprobs(policy.model, packed()), together, rtol=0, atol=1e-5)
    torch.testing.assert_close(logprobs(policy.model, shared()), together, rtol=0, atol=1e-5)


def test_a_packed_row_without_its_mask_would_differ(policy) -> None:
    """What the equality above rests on: the mask parts the answers."""
    layout = packed()
    causal = torch.ones(layout.tokens.shape[1], layout.tokens.shape[1], dtype=torch.bool).tril()[None]
    mixed = logprobs(policy.model, Layout(layout.tokens, layout.positions, causal, layout.places))
    assert float((mixed[1:] - logprobs(policy.model, packed())[1:]).detach().abs().max()) > 1e-2
