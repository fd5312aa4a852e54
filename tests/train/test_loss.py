"""The training loss against slow loops: what is trained, what it is divided by, what padding and borders change."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fathom.config import AttentionConfig, ModelConfig, MoEConfig
from fathom.model import RoutingTrace, Transformer
from fathom.parallel.world import World
from fathom.text.packing import Batch
from fathom.text.padding import pad_dialogues
from fathom.train.loss import Denominators, Losses, document_mask, further_weights, language_losses

WORLD = World(0, 1, torch.device("cpu"))
MODEL = ModelConfig(
    vocab_size=29,
    hidden_size=16,
    num_hidden_layers=2,
    intermediate_size=24,
    initializer_range=0.3,
    num_nextn_predict_layers=2,
    attention=AttentionConfig(
        num_attention_heads=2,
        num_key_value_heads=2,
        kv_lora_rank=8,
        qk_nope_head_dim=4,
        qk_rope_head_dim=4,
        v_head_dim=4,
    ),
    moe=MoEConfig(moe_intermediate_size=8, first_k_dense_replace=1, seq_aux_alpha=0.1),
)


def build(**changes: Any) -> Transformer:
    model = Transformer(replace(MODEL, **changes))
    model.initialise(torch.Generator().manual_seed(0))
    return model


def packed(*rows: Sequence[Sequence[int]]) -> Batch:
    """Rows of documents, packed back to back, equally long together."""
    tokens = np.array([[token for document in row for token in document] for row in rows], np.int64)
    segments = np.array([[n for n, document in enumerate(row) for _ in document] for row in rows], np.int64)
    return Batch(
        tokens=tokens[:, :-1],
        targets=tokens[:, 1:],
        weights=(segments[:, 1:] == segments[:, :-1]).astype(np.float32),
        positions=np.tile(np.arange(tokens.shape[1] - 1), (len(rows), 1)),
        segments=segments[:, :-1],
    )


def padded(batch: Batch, columns: int) -> Batch:
    """The batch with columns of padding behind it."""

    def pad(array: np.ndarray, value: float) -> np.ndarray:
        return np.pad(array, ((0, 0), (0, columns)), constant_values=value)

    positions = np.tile(np.arange(batch.tokens.shape[1] + columns), (len(batch.tokens), 1))
    return Batch(pad(batch.tokens, 0), pad(batch.targets, 0), pad(batch.weights, 0), positions, pad(batch.segments, -1))


def losses(model: Transformer, batch: Batch, mtp_weight: float = 0.3, mask_documents: bool = False) -> Losses:
    denominators = Denominators.of([batch], len(model.mtp), WORLD)
    return language_losses(model, batch, denominators, mtp_weight, WORLD.device, mask_documents)


def gradient(model: Transformer, total: Tensor) -> Tensor:
    parameters = list(model.parameters())
    found = torch.autograd.grad(total, parameters, allow_unused=True)
    both = zip(parameters, found, strict=True)
    return torch.cat([torch.zeros(p.numel()) if g is None else g.flatten() for p, g in both])


A, B, C = [1, 7, 8, 9, 10, 2], [1, 20, 21, 2], [1, 11, 12, 13, 2]


def test_the_total_is_the_weighted_sum_of_its_parts() -> None:
    model = build()
    found = losses(model, packed([A, B], [B, A]), mtp_weight=0.3)
    parts = {name: float(value) for name, value in found.parts.items()}
    assert parts["loss"] == pytest.approx(parts["loss_main"] + 0.3 * parts["loss_mtp"] + 0.1 * parts["loss_balance"])
    assert found.total.item() == parts["loss"]
    assert min(parts["loss_main"], parts["loss_mtp"], parts["loss_balance"]) > 0.5
    assert len(found.loads) == 3  # the main model's one MoE layer and two MTP modules


def test_without_mtp_weight_or_experts_the_total_is_the_next_token_loss() -> None:
    plain = losses(build(), packed([A, B]), mtp_weight=0.0)
    assert plain.parts.keys() == {"loss_main", "loss_balance", "loss"}
    dense = losses(build(moe=MoEConfig(n_routed_experts=0), num_nextn_predict_layers=0), packed([A, B]))
    assert dense.parts.keys() == {"loss_main", "loss"}
    assert dense.loads == []
    assert dense.total.item() == dense.parts["loss_main"].item()


def test_next_token_loss_by_a_slow_loop() -> None:
    model, batch = build(), packed([A, B], [C, C])
    logprobs: list[float] = []
    for tokens, targets, weights in zip(batch.tokens, batch.targets, batch.weights, strict=True):
        rows = model.logits(model(torch.tensor([tokens.tolist()])))[0].log_softmax(-1)
        logprobs += [rows[at, targets[at]].item() for at in range(len(tokens)) if weights[at]]
    assert len(logprobs) == 5 + 3 + 4 + 4  # one target fewer than tokens in every document
    assert float(losses(model, batch).parts["loss_main"]) == pytest.approx(-np.mean(logprobs), abs=1e-6)


def test_mtp_losses_by_a_slow_loop() -> None:
    """Depth k joins the state at i with token i + k and predicts token i + k + 1; both lie in the document of i."""
    model = build()
    documents = ([1, 7, 8, 9, 10, 2], [1, 20, 21, 2, 3])
    means: list[float] = []
    for depth in (1, 2):
        logprobs: list[float] = []
        row = [token for document in documents for token in document]
        tokens = torch.tensor([row[:-1]])
        hidden = model(tokens)
        for k in range(1, depth + 1):
            hidden = model.predict_further(k - 1, hidden[:, :-1], tokens[:, k:])
        law = model.logits(hidden)[0].log_softmax(-1)
        begin = 0
        for document in documents:
            for place in range(len(document) - depth - 1):
                logprobs.append(law[begin + place, document[place + depth + 1]].item())
            begin += len(document)
        means.append(-float(np.mean(logprobs)))
    found = losses(model, packed(documents))
    assert float(found.parts["loss_mtp"]) == pytest.approx(np.mean(means), abs=1e-6)


def test_further_weights_by_hand() -> None:
    batch = packed([[1, 2, 3, 4], [5, 6, 7, 8, 9]])
    assert batch.weights.tolist() == [[1, 1, 1, 0, 1, 1, 1, 1]]
    assert further_weights(batch, 1).tolist() == [[1, 1, 0, 0, 1, 1, 1]]  # targets 3 4 | 7 8 9
    assert further_weights(batch, 2).tolist() == [[1, 0, 0, 0, 1, 1]]  # targets 4 | 8 9
    assert Denominators.of([batch, batch], 2, WORLD) == Denominators(14, (10, 6), 2)


def test_acceptance_is_the_share_of_drafts_that_the_model_itself_would_have_chosen() -> None:
    model, batch = build(), packed([A, B], [B, A])
    tokens = torch.from_numpy(batch.tokens)
    hidden = model(tokens)
    chosen = model.logits(hidden).argmax(-1)
    drafts = model.logits(model.predict_further(0, hidden[:, :-1], tokens[:, 1:])).argmax(-1)
    counts = torch.from_numpy(further_weights(batch, 1)) > 0
    share = (drafts == chosen[:, 1:])[counts].float().mean()
    assert float(losses(model, batch).parts["mtp_acceptance"]) == pytest.approx(float(share))


def test_acceptance_is_one_where_the_draft_always_agrees() -> None:
    model = build()
    for module in (model.norm, model.mtp[0].norm):  # states of zeros score all tokens alike: 0 is chosen, and drafted
        torch.nn.init.zeros_(module.weight)
    assert float(losses(model, packed([A, B])).parts["mtp_acceptance"]) == 1.0


def test_prompts_and_padding_carry_no_loss() -> None:
    dialogues = [(np.array([1, 3, 7, 4]), np.array([8, 9, 2])), (np.array([1, 3]), np.array([5, 2]))]
    batch = pad_dialogues(dialogues, pad_id=0)
    model = build()
    found = losses(model, batch)
    logprobs: list[float] = []
    for prompt, reply in dialogues:
        tokens = [*prompt.tolist(), *reply.tolist()]
        law = model.logits(model(torch.tensor([tokens])))[0].log_softmax(-1)
        logprobs += [law[place - 1, tokens[place]].item() for place in range(len(prompt), len(tokens))]
    assert len(logprobs) == 5
    assert float(found.parts["loss_main"]) == pytest.approx(-np.mean(logprobs), abs=1e-6)


@pytest.mark.parametrize("alpha", [0.0, 0.1])
def test_padding_changes_neither_losses_nor_gradients_nor_loads(alpha: float) -> None:
    model = build(moe=replace(MODEL.moe, seq_aux_alpha=alpha))
    batch = packed([A, B], [B, A])
    plain, wide = losses(model, batch), losses(model, padded(batch, 5))
    assert plain.parts.keys() == wide.parts.keys()
    for name, value in plain.parts.items():
        assert float(wide.parts[name]) == pytest.approx(float(value), abs=1e-6), name
    assert [load.tolist() for load in wide.loads] == [load.tolist() for load in plain.loads]
    torch.testing.assert_close(gradient(model, wide.total), gradient(model, plain.total), rtol=0, atol=1e-6)


def test_loads_count_every_token_of_every_moe_layer_once() -> None:
    model, batch = build(), packed([A, B], [B, A])
    found = losses(model, batch)
    rows, length = batch.tokens.shape
    assert [int(load.sum()) for load in found.loads] == [rows * (length - depth) * 2 for depth in range(3)]


def test_balance_loss_is_averaged_over_the_rows_of_the_whole_step() -> None:
    model, batch = build(), packed([A, B], [B, A], [A, B], [C, C])
    denominators = Denominators.of([batch], 2, WORLD)
    whole = language_losses(model, batch, denominators, 0.3, WORLD.device)
    parts = [language_losses(model, batch.rows(r, r + 1), denominators, 0.3, WORLD.device).parts for r in range(4)]
    for name in whole.parts:
        assert sum(float(part[name]) for part in parts) == pytest.approx(float(whole.parts[name]), abs=1e-6), name


def test_the_document_mask_by_hand() -> None:
    mask = document_mask(torch.tensor([[0, 0, 1, 1]]))[0].int().tolist()
    assert mask == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]]


def test_masked_documents_of_a_packed_row_are_as_good_as_rows_of_their_own() -> None:
    model, batch = build(), packed([A, B, C])
    segments = torch.from_numpy(batch.segments)
    positions = torch.from_numpy(batch.positions)
    together = model.logits(model(torch.from_numpy(batch.tokens), positions=positions, mask=document_mask(segments)))[0]
    begin = 0
    for document in (A, B, C[:-1]):
        alone = model.logits(model(torch.tensor([document])))[0]
        torch.testing.assert_close(together[begin : begin + len(document)], alone, rtol=0, atol=1e-5)
        begin += len(document)
    unmasked = model.logits(model(torch.from_numpy(batch.tokens)))[0]
    assert (unmasked - together)[len(A) :].abs().max().item() > 0.01


def test_masked_documents_have_the_losses_and_gradients_of_rows_of_their_own() -> None:
    """MTP modules included: no state of one document reaches the next through them."""
    model = build(moe=replace(MODEL.moe, seq_aux_alpha=0.0))
    together = losses(model, packed([A, B, C]), mask_documents=True)
    apart = losses(model, pad_dialogues([(np.array(d[:1]), np.array(d[1:])) for d in (A, B, C)], pad_id=0))
    for name in ("loss_main", "loss_mtp", "mtp_acceptance"):
        assert float(together.parts[name]) == pytest.approx(float(apart.parts[name]), abs=1e-5), name
    torch.testing.assert_close(gradient(model, together.total), gradient(model, apart.total), rtol=0, atol=1e-5)


def test_a_batch_without_weights_has_no_loss_and_zero_gradients() -> None:
    batch = packed([A, B])
    silent = replace(batch, weights=np.zeros_like(batch.weights))
    model = build(moe=replace(MODEL.moe, seq_aux_alpha=0.0))
    found = losses(model, silent)
    assert found.total.item() == 0.0
    assert float(gradient(model, found.total).abs().max()) == 0.0


def test_the_trace_of_a_step_covers_the_loss_alone() -> None:
    """A forward pass without a trace counts nothing."""
    trace = RoutingTrace()
    model = build()
    model(torch.tensor([A]), trace=trace)
    assert len(trace.loads) == len(trace.balance) == 1
    model(torch.tensor([A]))
    assert len(trace.loads) == 1
