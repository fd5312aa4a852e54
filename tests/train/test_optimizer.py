"""The optimizer of a model: what decays, how moments are stored, and the way into a checkpoint and back."""

import copy

import pytest
import torch
from torch import Tensor, nn

from fathom.config import OptimizerConfig
from fathom.train.optimizer import LowMomentAdamW, build_optimizer, load_optimizer_tensors, optimizer_tensors

BFLOAT16 = OptimizerConfig(lr=1e-2, moments="bfloat16")
FLOAT32 = OptimizerConfig(lr=1e-2)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7), nn.Linear(7, 3))


def take_steps(model: nn.Module, optimizer: torch.optim.Optimizer, first: int, count: int) -> None:
    for step in range(first, first + count):
        inputs = torch.randn(4, 5, generator=torch.Generator().manual_seed(step))
        model(inputs).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)


def weights(model: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


@pytest.mark.parametrize("config", [FLOAT32, BFLOAT16])
def test_matrices_decay_and_norms_and_biases_do_not(config: OptimizerConfig) -> None:
    model = network()
    before = copy.deepcopy(model)
    optimizer = build_optimizer(config, model)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for now, then in zip(model.parameters(), before.parameters(), strict=True):
        kept = 1 - config.lr * config.weight_decay if now.ndim == 2 else 1.0
        torch.testing.assert_close(now, then * kept, rtol=1e-6, atol=0)


def test_moments_are_stored_as_the_config_says_and_both_kinds_stay_close() -> None:
    low, full = network(), network()
    optimizers = build_optimizer(BFLOAT16, low), build_optimizer(FLOAT32, full)
    assert isinstance(optimizers[0], LowMomentAdamW)
    take_steps(low, optimizers[0], 0, 20)
    take_steps(full, optimizers[1], 0, 20)
    for optimizer, dtype in zip(optimizers, (torch.bfloat16, torch.float32), strict=True):
        moments = [tensor for name, tensor in optimizer_tensors(optimizer).items() if "exp_avg" in name]
        assert len(moments) == 2 * len(list(low.parameters()))
        assert {moment.dtype for moment in moments} == {dtype}
    moved = (weights(full) - weights(network())).norm()
    assert 0 < float((weights(low) - weights(full)).norm() / moved) < 0.02


@pytest.mark.parametrize("config", [FLOAT32, BFLOAT16])
def test_a_restored_optimizer_goes_on_bit_for_bit(config: OptimizerConfig) -> None:
    model = network()
    optimizer = build_optimizer(config, model)
    take_steps(model, optimizer, 0, 3)
    again = copy.deepcopy(model)
    restored = build_optimizer(config, again)
    saved = {name: tensor.clone() for name, tensor in optimizer_tensors(optimizer).items()}
    load_optimizer_tensors(restored, saved)
    kept = optimizer_tensors(restored)
    assert kept.keys() == saved.keys()
    assert all(kept[name].dtype == saved[name].dtype and torch.equal(kept[name], saved[name]) for name in saved)
    take_steps(model, optimizer, 3, 4)
    take_steps(again, restored, 3, 4)
    assert torch.equal(weights(again), weights(model))


def test_weights_that_no_longer_get_a_gradient_move_on_alike_after_a_restore() -> None:
    """Their buffers hold zeros in an unbroken run, so momentum and decay still move them."""
    model = network()
    optimizer = build_optimizer(FLOAT32, model)
    take_steps(model, optimizer, 0, 2)
    again = copy.deepcopy(model)
    for parameter in again.parameters():
        parameter.grad = None
    restored = build_optimizer(FLOAT32, again)
    load_optimizer_tensors(restored, {name: t.clone() for name, t in optimizer_tensors(optimizer).items()})
    for each in (optimizer, restored):
        each.step()
    assert torch.equal(weights(again), weights(model))


def test_weights_that_never_had_a_gradient_have_no_state() -> None:
    model = network()
    optimizer = build_optimizer(FLOAT32, model)
    model[0].requires_grad_(False)
    take_steps(model, optimizer, 0, 1)
    restored = build_optimizer(FLOAT32, copy.deepcopy(model))
    load_optimizer_tensors(restored, optimizer_tensors(optimizer))
    assert len(restored.state) == len(optimizer.state) == len(list(model.parameters())) - 2
