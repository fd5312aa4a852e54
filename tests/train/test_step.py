"""One optimizer step: the cut into micro-batches, clipping, the average of weights, the selection bias."""

import copy
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fathom.config import AttentionConfig, ModelConfig, MoEConfig, OptimizerConfig
from fathom.model import Transformer
from fathom.model.moe import moe_layers
from fathom.parallel.world import World
from fathom.text.packing import Batch
from fathom.train.loop import split_rows
from fathom.train.loss import Denominators, language_losses
from fathom.train.step import Rates, StepReport, TrainState, clip_gradients, train_step

WORLD = World(0, 1, torch.device("cpu"))
MODEL = ModelConfig(
    vocab_size=23,
    hidden_size=12,
    num_hidden_layers=1,
    initializer_range=0.3,
    attention=AttentionConfig(
        num_attention_heads=2,
        num_key_value_heads=2,
        kv_lora_rank=6,
        qk_nope_head_dim=4,
        qk_rope_head_dim=2,
        v_head_dim=4,
    ),
    moe=MoEConfig(moe_intermediate_size=6),
)
RATES = Rates(lr=1.0, clip_norm=0.0, bias_speed=0.0)


def build() -> Transformer:
    model = Transformer(MODEL)
    model.initialise(torch.Generator().manual_seed(0))
    return model


def some_batch(rows: int = 8) -> Batch:
    """Rows with prompts and padding of different lengths, so that equal shares of rows are unequal shares of tokens."""
    rng = np.random.default_rng(3)
    tokens = rng.integers(1, 23, (rows, 8))
    lengths = rng.integers(3, 8, (rows, 1))
    places = np.arange(7)
    return Batch(
        tokens=tokens[:, :-1],
        targets=tokens[:, 1:],
        weights=((places < lengths) & (places > 0)).astype(np.float32),
        positions=np.tile(places, (rows, 1)),
        segments=np.where(places < lengths, 0, -1),
    )


def flat(model: Transformer) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def take_step(state: TrainState, micro_rows: int = 8, rates: Rates = RATES, batch: Batch | None = None) -> StepReport:
    micro_batches = split_rows(some_batch() if batch is None else batch, micro_rows)
    denominators = Denominators.of(micro_batches, len(state.model.mtp), WORLD)
    losses_of = partial(_losses, state.model, denominators)
    return train_step(state, micro_batches, losses_of, rates, WORLD)


def _losses(model: Transformer, denominators: Denominators, batch: Batch) -> Any:
    return language_losses(model, batch, denominators, 0.3, WORLD.device)


def sgd(model: Transformer) -> TrainState:
    """Plain descent at rate 1: what a step subtracts is the gradient."""
    return TrainState(model, torch.optim.SGD(model.parameters(), lr=1.0))


def test_rows_are_cut_into_micro_batches_that_together_are_the_batch() -> None:
    parts = split_rows(some_batch(), 3)
    assert [len(part.tokens) for part in parts] == [3, 3, 2]
    assert np.array_equal(np.concatenate([part.targets for part in parts]), some_batch().targets)


@pytest.mark.parametrize("micro_rows", [1, 2, 5])
def test_the_gradient_does_not_depend_on_the_micro_batch_size(micro_rows: int) -> None:
    model = build()
    whole, cut = sgd(copy.deepcopy(model)), sgd(copy.deepcopy(model))
    report, cut_report = take_step(whole), take_step(cut, micro_rows)
    gradient = flat(model) - flat(whole.model)
    torch.testing.assert_close(flat(model) - flat(cut.model), gradient, rtol=0, atol=1e-6)
    assert float(gradient.abs().max()) > 0.01
    assert cut_report.parts == pytest.approx(report.parts, abs=1e-6)
    assert torch.equal(cut_report.loads, report.loads)
    assert report.grad_norm == pytest.approx(float(gradient.norm()), rel=1e-4)


def test_gradients_do_not_pile_up_from_step_to_step() -> None:
    """A learning rate of zero moves nothing, so the same gradient must come out again."""
    state = sgd(build())
    norms = [take_step(state, rates=replace(RATES, lr=0.0)).grad_norm for _ in range(2)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-6)


def test_clipping_scales_the_whole_gradient_to_the_norm() -> None:
    gradients = [torch.tensor([3.0, 0.0]), torch.tensor([[4.0]])]
    assert clip_gradients(gradients, 10.0) == 5.0
    assert gradients[0].tolist() == [3.0, 0.0]
    assert clip_gradients(gradients, 0.0) == 5.0  # zero leaves them
    assert clip_gradients(gradients, 1.0) == 5.0  # the norm before clipping is what is reported
    torch.testing.assert_close(gradients[0], torch.tensor([0.6, 0.0]))
    torch.testing.assert_close(gradients[1], torch.tensor([[0.8]]))


def test_a_clipped_step_has_the_length_of_the_clip_norm() -> None:
    model = build()
    state = sgd(copy.deepcopy(model))
    report = take_step(state, rates=replace(RATES, clip_norm=0.01))
    assert report.grad_norm > 0.02
    assert float((flat(model) - flat(state.model)).norm()) == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("clip_norm", [0.0, 1.0])
def test_a_gradient_that_is_not_finite_stops_the_run_before_it_spoils_the_weights(clip_norm: float) -> None:
    model = build()
    state = sgd(copy.deepcopy(model))
    with torch.no_grad():
        state.model.head_weight[5] = torch.inf
    before = flat(state.model)
    with pytest.raises(RuntimeError, match="gradient is not finite"):
        take_step(state, rates=replace(RATES, clip_norm=clip_norm))
    assert torch.equal(flat(state.model), before)


def test_the_average_of_weights_follows_by_its_decay() -> None:
    model = build()
    state = TrainState.start(model, OptimizerConfig(ema_decay=0.75))
    expected = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for _ in range(3):
        take_step(state, rates=Rates(lr=0.1, clip_norm=1.0, bias_speed=0.01, ema_decay=0.75))
        for name, tensor in model.state_dict().items():
            expected[name] = 0.75 * expected[name] + 0.25 * tensor
    for kept, wanted in zip(state.copies["ema"], expected.values(), strict=True):
        torch.testing.assert_close(kept, wanted)
    assert not torch.equal(state.copies["ema"][0], model.embedding.weight)
    assert TrainState.start(model, OptimizerConfig()).copies == {}


@pytest.mark.parametrize("micro_rows", [8, 1])
def test_the_selection_bias_moves_once_by_the_sign_of_the_whole_batch(micro_rows: int) -> None:
    state = sgd(build())
    report = take_step(state, micro_rows, replace(RATES, bias_speed=0.125))
    layers = list(moe_layers(state.model))
    assert report.loads.shape == (len(layers), 4)
    for layer, load in zip(layers, report.loads.float(), strict=True):
        expected = 0.125 * (load.mean() - load).sign()
        assert layer.router.selection_bias.tolist() == expected.tolist()
        assert expected.abs().max() == 0.125
    real_tokens = int((some_batch().segments >= 0).sum())
    assert int(report.loads[0].sum()) == real_tokens * MODEL.moe.num_experts_per_tok


def test_the_selection_bias_stands_still_at_speed_zero() -> None:
    state = sgd(build())
    take_step(state)
    assert all(layer.router.selection_bias.abs().max() == 0 for layer in moe_layers(state.model))


def test_every_group_of_weights_gets_the_rate_of_the_step() -> None:
    state = TrainState.start(build(), OptimizerConfig())
    take_step(state, rates=replace(RATES, lr=0.123))
    assert [group["lr"] for group in state.optimizer.param_groups] == [0.123, 0.123]


def test_lower_precision_leaves_masters_and_gradients_in_float32() -> None:
    model = build()
    state = sgd(copy.deepcopy(model))
    batches = [some_batch()]
    denominators = Denominators.of(batches, 1, WORLD)
    report = train_step(state, batches, partial(_losses, state.model, denominators), RATES, WORLD, torch.bfloat16)
    exact = take_step(sgd(copy.deepcopy(model)))
    assert all(parameter.dtype == torch.float32 for parameter in state.model.parameters())
    assert report.parts["loss"] == pytest.approx(exact.parts["loss"], rel=0.02)
    assert report.parts["loss"] != exact.parts["loss"]
