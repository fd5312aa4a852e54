"""GRPO of a policy in parts against one process, and what stops a run whose weights differ."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from fathom.config import (
    AttentionConfig,
    GRPOConfig,
    ModelConfig,
    MoEConfig,
    ObjectiveConfig,
    OptimizerConfig,
    ParallelConfig,
    SamplingConfig,
)
from fathom.model import Transformer
from fathom.model.parallelize import gathered, parallelize
from fathom.parallel.mesh import build_mesh
from fathom.parallel.world import World, launch
from fathom.rl.loop import update
from fathom.rl.reference import Reference
from fathom.rl.reward import Reward
from fathom.rl.rollout import Episode, Rollout
from fathom.rl.sync import Sampler, fingerprint, require_whole_layers
from fathom.runs import Run
from fathom.tasks import Problem
from fathom.train.loop import Place
from fathom.train.step import TrainState

CPU = torch.device("cpu")
MODEL = ModelConfig(
    vocab_size=32,
    hidden_size=16,
    num_hidden_layers=1,
    initializer_range=0.2,
    attention=AttentionConfig(
        num_attention_heads=2,
        num_key_value_heads=2,
        kv_lora_rank=8,
        qk_nope_head_dim=4,
        qk_rope_head_dim=4,
        v_head_dim=4,
    ),
    moe=MoEConfig(moe_intermediate_size=8, bias_update_speed=0.01),
)
OPTIMIZER = OptimizerConfig(lr=1e-3, eps=1e-4)
LAYOUTS = [ParallelConfig(shard=2), ParallelConfig(shard=2, zero=3, expert=2), ParallelConfig(expert=2)]


def build() -> Transformer:
    model = Transformer(MODEL)
    model.initialise(torch.Generator().manual_seed(0))
    return model


def episodes() -> list[Episode]:
    """Four groups of three answers of different lengths."""
    rng = np.random.default_rng(0)
    problem, rows = Problem("1,2:3", "0", (1, 2), 3), list[Episode]()
    for row in range(12):
        completion = rng.integers(1, 31, int(rng.integers(1, 8))).tolist()
        reward = Reward(float(rng.integers(0, 3)), 0.0, 1.0, 1.0)
        logprobs = [-1.0] * len(completion)
        rows.append(Episode(problem, row // 3, [1, 3, row + 1, 4], completion, logprobs, False, reward, 0))
    return rows


def reinforce(world: World, path: Path) -> dict[str, Tensor]:
    """Two updates against a reference, the processes with different numbers of answers, then the sampler's weights."""
    config = GRPOConfig(
        steps=2,
        prompts=4,
        group=3,
        micro_batch_rows=2,
        objective=ObjectiveConfig(kl_beta=0.1, reference_reset_steps=2),
        sampling=SamplingConfig(max_tokens=8),
        optimizer=OPTIMIZER,
    )
    state = TrainState.start(parallelize(build(), world), OPTIMIZER)
    reference = Reference(state, config, world)
    sampler = Sampler(state.model, world, torch.float32)
    mine = [e for e in episodes() if world.size == 1 or (e.group == 3) == bool(world.rank)]
    for _ in range(2):
        sampler.refresh()
        update(Place(Run(path), "grpo", world), config, state, reference, Rollout(mine, mine, 0, 0))
        reference.refresh(state)
    sampler.refresh()
    assert fingerprint(sampler.model) == fingerprint(gathered(state.model))
    return {name: tensor.clone() for name, tensor in sampler.model.state_dict().items()}


def tamper(world: World, where: str) -> str:
    """The error when a process holds weights that it should not."""
    model = parallelize(build(), world)
    sampler = Sampler(model, world, torch.float32)
    sampler.refresh()
    with torch.no_grad():
        if where == "a replica" and world.rank == 1:
            model.norm.weight[3].mul_(1 + 1e-7)
        if where == "the sampler":  # weights that never arrive
            sampler.model.load_state_dict({name: 2 * t for name, t in sampler.model.state_dict().items()})
            sampler.compare_logits()
    sampler.refresh()
    return "nothing"


def everything(world: World, path: Path) -> list[object]:
    results: list[object] = []
    for layout in LAYOUTS:
        results.append(reinforce(replace(world, mesh=build_mesh(layout, 2, CPU), layout=layout), path))
    for layout, where in ((ParallelConfig(), "a replica"), (ParallelConfig(shard=2), "the sampler")):
        try:
            tamper(replace(world, mesh=build_mesh(layout, 2, CPU), layout=layout), where)
        except RuntimeError as error:
            results.append(str(error))
    return results


@pytest.mark.ranks
def test_grpo_over_ranks_trains_what_one_process_trains_and_stops_where_weights_differ(tmp_path: Path) -> None:
    wanted = reinforce(World(0, 1, CPU), tmp_path)
    *found, replica, stale = launch(2, "cpu", everything, tmp_path)
    assert len(found) == len(LAYOUTS)
    for layout, weights in zip(LAYOUTS, found, strict=True):
        for name, tensor in wanted.items():
            torch.testing.assert_close(
                weights[name], tensor, rtol=1e-5, atol=1e-5, msg=lambda m, n=name, at=layout: f"{at} {n}: {m}"
            )
        bias = "layers.0.feed_forward.router.selection_bias"
        assert torch.equal(weights[bias], wanted[bias])
    assert "processes [1] hold other weights" in replica
    assert "the sampler's logits lie" in stale


def test_a_fingerprint_sees_every_bit() -> None:
    model = build()
    before = fingerprint(model)
    assert fingerprint(build()) == before
    for name, tensor in model.state_dict().items():
        kept = tensor.clone()
        tensor.view(torch.int32).flatten()[-1] ^= 1
        assert fingerprint(model) != before, name
        tensor.copy_(kept)
    weight = model.layers[0].attention.o_proj.weight.data
    weight.copy_(weight.flatten().roll(1).view_as(weight))  # the same numbers in another order
    assert fingerprint(model) != before


def test_what_grpo_does_not_spread_is_refused() -> None:
    with pytest.raises(ValueError, match=r"parallel\.pipeline=2 spreads layers"):
        require_whole_layers(World(0, 2, CPU, layout=ParallelConfig(pipeline=2)))
    with pytest.raises(ValueError, match=r"parallel\.context=2 spreads rows"):
        require_whole_layers(World(0, 2, CPU, layout=ParallelConfig(context=2)))


def test_weights_in_float32_are_sampled_in_bf16_where_they_are_multiplied_so() -> None:
    model = build()
    biases = dict(model.named_buffers())
    for bias in biases.values():
        bias.fill_(0.3)  # no number of BF16
    sampler = Sampler(model, World(0, 1, CPU), torch.bfloat16)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01)
    sampler.refresh()
    for name, tensor in sampler.model.state_dict().items():
        wanted = model.state_dict()[name]
        if name in biases:
            assert torch.equal(tensor, wanted)
        else:
            assert torch.equal(tensor, wanted.bfloat16())
    assert Sampler(model, World(0, 1, CPU), torch.float32).model is model


def test_a_copy_that_is_not_the_trained_model_stops_the_run() -> None:
    model = build()
    sampler = Sampler(model, World(0, 1, CPU), torch.bfloat16)
    with torch.no_grad():
        sampler.model.embedding.weight.neg_()
    with pytest.raises(RuntimeError, match="another policy"):
        sampler.compare_logits()
