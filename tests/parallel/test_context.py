"""Rows spread over processes against whole rows: losses, gradients, loads, biases, and what is exchanged."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from fathom.config import AttentionConfig, ModelConfig, MoEConfig, OptimizerConfig, ParallelConfig
from fathom.model import Transformer
from fathom.parallel.context import causal_mask, pieces_of, places_of, row_attention
from fathom.parallel.mesh import Axis, build_mesh
from fathom.parallel.world import World, launch
from fathom.plan.messages import context_bytes, full_keys_bytes
from fathom.text.packing import Batch
from fathom.train.loss import Denominators, Inputs, document_mask, language_losses
from fathom.train.step import Rates, TrainState, train_step

CPU = torch.device("cpu")
ALONE = World(0, 1, CPU)
MLA = ModelConfig(
    vocab_size=31,
    hidden_size=16,
    num_hidden_layers=2,
    intermediate_size=24,
    initializer_range=0.3,
    num_nextn_predict_layers=2,
    attention=AttentionConfig(
        num_attention_heads=4,
        num_key_value_heads=4,
        kv_lora_rank=8,
        qk_nope_head_dim=4,
        qk_rope_head_dim=4,
        v_head_dim=4,
    ),
    moe=MoEConfig(moe_intermediate_size=8, first_k_dense_replace=1, bias_update_speed=0.01, seq_aux_alpha=0.1),
)
GQA = replace(MLA, attention=AttentionConfig(kind="gqa", num_attention_heads=4, num_key_value_heads=2, head_dim=4))
STEPS, ROWS = 5, 2
OPTIMIZER = OptimizerConfig(lr=1e-3, weight_decay=0.1)
RATES = Rates(lr=1e-3, clip_norm=0.5, bias_speed=0.01)


@dataclass(frozen=True)
class Case:
    """A model, and rows of `length` that may be padded or hold documents that do not see each other."""

    model: ModelConfig = MLA
    length: int = 16
    padded: bool = False
    mask_documents: bool = False

    def build(self) -> Transformer:
        model = Transformer(self.model)
        model.initialise(torch.Generator().manual_seed(0))
        return model

    def batch(self, step: int) -> Batch:
        rng = np.random.default_rng(step)
        tokens = rng.integers(1, 31, (ROWS, self.length + 1))
        segments = np.sort(rng.integers(0, 3, (ROWS, self.length + 1)), axis=1)
        places = np.tile(np.arange(self.length), (ROWS, 1))
        weights = (segments[:, 1:] == segments[:, :-1]).astype(np.float32)
        own = segments[:, :-1]
        if self.padded:
            ends = rng.integers(5, self.length, (ROWS, 1))
            own, weights = np.where(places < ends, own, -1), weights * (places < ends)
        return Batch(tokens[:, :-1], tokens[:, 1:], weights.astype(np.float32), places, own)


CASES = {
    "latents": Case(),
    "documents": Case(mask_documents=True),
    "padding and a length that does not divide": Case(length=13, padded=True, mask_documents=True),
    "keys and values": Case(model=GQA, length=11),
}


def train(world: World, case: Case) -> dict[str, Any]:
    """The first gradient, then a few steps: losses, loads, biases, weights."""
    model = case.build()
    model.spread_rows(world.mesh.context)
    state = TrainState.start(model, OPTIMIZER)

    def losses_of(batch: Batch) -> Any:
        denominators = Denominators.of([batch], len(model.mtp), world)
        return language_losses(model, batch, denominators, 0.3, CPU, case.mask_documents)

    losses_of(case.batch(0)).total.backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    world.sum(gradients)
    first = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    reports = [train_step(state, [case.batch(step)], losses_of, RATES, world) for step in range(STEPS)]
    return {
        "gradients": first,
        "parts": [report.parts for report in reports],
        "norms": [report.grad_norm for report in reports],
        "loads": [report.loads.tolist() for report in reports],
        "weights": {name: tensor.clone() for name, tensor in model.state_dict().items()},
    }


def train_all(world: World, names: Sequence[str]) -> dict[str, Any]:
    """Cases with their rows spread over all processes, and the bytes that one pass exchanges."""
    world = replace(world, mesh=build_mesh(ParallelConfig(context=world.size), world.size, CPU))
    found: dict[str, Any] = {name: train(world, CASES[name]) for name in names}
    sent = world.mesh.context.sent
    sent.clear()
    for name in ("latents", "keys and values"):
        model, batch = CASES[name].build(), Case().batch(0)
        model.spread_rows(world.mesh.context)
        denominators = Denominators.of([batch], 2, world)
        language_losses(model, batch, denominators, 0.3, CPU).total.backward()
    found["sent"] = dict(sent)
    return found


@pytest.mark.ranks
@pytest.mark.parametrize(("ways", "names"), [(2, list(CASES)), (4, list(CASES)[2:])])
def test_rows_over_processes_train_as_whole_ones(ways: int, names: list[str]) -> None:
    spread = launch(ways, "cpu", train_all, names)
    for name in names:
        found, wanted = spread[name], train(ALONE, CASES[name])
        assert found["loads"] == wanted["loads"], name
        assert found["norms"] == pytest.approx(wanted["norms"], rel=1e-5), name
        for step, parts in enumerate(wanted["parts"]):
            assert parts.keys() >= {"loss_main", "loss_mtp", "mtp_acceptance", "loss_balance"}
            for part, value in parts.items():
                assert found["parts"][step][part] == pytest.approx(value, rel=1e-5), (name, step, part)
        assert found["gradients"].keys() == wanted["gradients"].keys()
        for weight, gradient in wanted["gradients"].items():
            assert difference(found["gradients"][weight], gradient) < 1e-5, (name, weight)
        for weight, value in wanted["weights"].items():
            if weight.endswith("selection_bias"):
                assert torch.equal(found["weights"][weight], value), (name, weight)
                assert value.abs().max() > 0
    check_bytes(spread["sent"], ways)


def difference(found: Tensor, wanted: Tensor) -> float:
    """Relative, in the norm of the whole tensor."""
    return float((found - wanted).norm() / wanted.norm().clamp(min=1e-6))


def check_bytes(sent: dict[str, int], ways: int) -> None:
    for kind, model in (("latents", MLA), ("keys and values", GQA)):
        forward, backward = sent[kind], sent[f"{kind} gradient"]
        assert forward == backward
        assert forward + backward == context_bytes(model, ROWS, 16, ways, bytes_each=4), kind
    assert full_keys_bytes(MLA, ROWS, 16, ways, 4) * 12 == context_bytes(MLA, ROWS, 16, ways, 4) * 4 * (8 + 4)


def test_the_latents_of_v3_are_a_seventieth_of_its_keys_and_values() -> None:
    """512 + 64 numbers a token against 128 heads of 192 + 128 (V3 4.2), bytes of one pass over 128 K tokens on 8."""
    v3 = ModelConfig(
        hidden_size=7168,
        num_hidden_layers=61,
        attention=AttentionConfig(
            num_attention_heads=128,
            num_key_value_heads=128,
            kv_lora_rank=512,
            qk_nope_head_dim=128,
            qk_rope_head_dim=64,
            v_head_dim=128,
        ),
    )
    latents, full = (count(v3, 1, 2**17, 8, 2) for count in (context_bytes, full_keys_bytes))
    assert latents == 2 * 62 * 2**17 * 576 * 2 * 7 // 8
    assert full / latents == pytest.approx(128 * (192 + 128) / 576)


@pytest.mark.parametrize("ways", [2, 3, 4, 8])
def test_every_process_has_the_same_attention_work(ways: int) -> None:
    length = 48
    seen = [visible(length, Axis(rank, ways)) for rank in range(ways)]
    assert {int(mask.sum()) for mask in seen} == {length * (length + 1) // (2 * ways)}
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    rows = torch.cat([places_of(length, Axis(rank, ways)) for rank in range(ways)])
    assert rows.sort().values.tolist() == list(range(length))
    assert torch.equal(torch.cat(seen), causal[rows])


def visible(length: int, axis: Axis) -> Tensor:
    """What the process's queries see of the whole row, piece by piece."""
    size = length // (2 * axis.size)
    masks = [causal_mask(size, piece, CPU) for piece in pieces_of(axis)]
    return torch.cat([torch.nn.functional.pad(mask, (0, length - mask.shape[1])) for mask in masks])


def test_products_that_attention_multiplies_are_counted_equal() -> None:
    """Two products of 4 numbers a head for (S / 2c)^2 (2c + 1) pairs, wherever the pieces lie."""
    length, ways, heads, width = 32, 4, 2, 4
    k = torch.randn(1, length, heads, width)
    counted: list[int] = []
    for rank in range(ways):
        q = torch.randn(1, length // ways, heads, width)
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            row_attention(q, k, k, 0.5, None, Axis(rank, ways))
        counted.append(counter.get_total_flops())
    assert counted == [2 * 2 * heads * width * (length // (2 * ways)) ** 2 * (2 * ways + 1)] * ways


def test_a_row_that_does_not_divide_is_refused_and_inputs_fill_it_up() -> None:
    with pytest.raises(ValueError, match=r"rows of 10 tokens .* context=2; choose a multiple of 4"):
        places_of(10, Axis(0, 2))
    inputs = Inputs.of(Case(length=10).batch(0), 1, CPU, context=Axis(1, 2))
    assert inputs.tokens.shape == (ROWS, 6)
    assert inputs.positions is not None
    assert inputs.positions.tolist() == [[3, 4, 5, 6, 7, 8]]
    inputs = Inputs.of(Case(length=10).batch(0), 1, CPU, context=Axis(0, 2))
    assert inputs.valid is not None
    assert inputs.valid.tolist() == [[1, 1, 1, 1, 0, 0]] * ROWS  # places 0 1 2 9 10 11
    valid = inputs.further[0].valid
    assert valid is not None
    assert valid.tolist() == [[1, 1, 1, 0, 0, 0]] * ROWS  # what stands one on: 1 2 3 10 11 12


def test_the_mask_of_held_places_is_that_of_their_rows() -> None:
    batch = Case(mask_documents=True).batch(0)
    whole = document_mask(torch.from_numpy(batch.segments))
    for rank in range(4):
        axis = Axis(rank, 4)
        held = Inputs.of(batch, 0, CPU, mask_documents=True, context=axis)
        assert held.mask is not None
        assert torch.equal(held.mask, whole[:, places_of(16, axis)])
