"""PPO: the critic in the loop, its notes, its checkpoints."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fathom.checkpoint.state import weights_hash
from fathom.config import CriticConfig, GRPOConfig, OptimizerConfig, SamplingConfig, ScheduleConfig
from fathom.config.objectives import named_objective
from fathom.infer.engine import Engine
from fathom.parallel.world import World
from fathom.rl.batch import collate
from fathom.rl.critic import Critic, CriticState
from fathom.rl.gae import gae, token_rewards
from fathom.rl.loop import train_grpo, update
from fathom.rl.losses import take_notes
from fathom.rl.reference import Reference
from fathom.rl.rollout import Rollout, roll_out
from fathom.runs import Run
from fathom.train.loop import Place
from fathom.train.step import TrainState

CPU = World(0, 1, torch.device("cpu"))
PLAIN = OptimizerConfig(lr=0.3, weight_decay=0.0, clip_norm=0.0)
PPO = named_objective("ppo")


def ppo(policy, **changes) -> GRPOConfig:
    """PPO on the tiny policy, one answer a question."""
    own = {
        "prompts": 8,
        "group": 1,
        "objective": PPO,
        "critic": CriticConfig(optimizer=OptimizerConfig(lr=1e-2, weight_decay=0.0)),
        "schedule": ScheduleConfig(warmup_steps=0, decay="constant", bias_freeze=0.0),
    }
    return replace(policy.config, **{**own, **changes})


def place(path: Path) -> Place:
    return Place(Run(path), "grpo", CPU)


def sample(policy, config: GRPOConfig) -> Rollout:
    engine = Engine(policy.model, rows=config.prompts * config.group)
    return roll_out(engine, policy.task, policy.tokenizer, config, config.prompts, 0, "0/0/0")


def start(policy, config: GRPOConfig) -> tuple[TrainState, Reference, CriticState]:
    """Policy and critic under plain descent, the critic's values no longer zero."""
    model = copy.deepcopy(policy.model)
    state = TrainState(model, torch.optim.SGD(model.parameters(), lr=PLAIN.lr))
    critic = Critic(model)
    torch.nn.init.normal_(critic.value.weight, 0, 0.1, generator=torch.Generator().manual_seed(4))
    return state, Reference(state, config), CriticState(critic, torch.optim.SGD(critic.parameters(), lr=PLAIN.lr))


def flat(module: torch.nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])


def test_a_critic_starts_at_zero_with_the_policys_trunk_and_none_of_its_gradients(policy) -> None:
    critic = Critic(policy.model)
    tokens = torch.tensor([[1, 3, 20, 21]])
    assert critic(tokens).tolist() == [[0.0] * 4]
    assert torch.equal(critic.trunk(tokens), policy.model(tokens))
    assert not {id(p) for p in critic.parameters()} & {id(p) for p in policy.model.parameters()}
    critic(tokens).sum().backward()
    assert all(p.grad is None for p in policy.model.parameters())
    assert "trunk.head.weight" not in critic.state_dict()


def test_notes_hold_advantages_of_the_critic_with_the_kl_in_the_reward(policy) -> None:
    config = ppo(policy)
    state, reference, critic = start(policy, config)
    with torch.no_grad():
        for parameter in state.model.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    rollout = sample(policy, config)
    batch = collate(rollout.kept, config)
    notes = take_notes(state.model, reference.model, critic.model, batch, config, place(Path("unused"))).notes
    assert notes is not None and notes.gains is not None and notes.values is not None and reference.model is not None
    for row, each in enumerate(rollout.kept):
        tokens, first = torch.tensor([each.prompt + each.completion]), len(each.prompt) - 1
        law, ref = ((m.logits(m(tokens))[0]).log_softmax(-1) for m in (state.model, reference.model))
        values = critic.model(tokens)[0]
        penalty = [0.001 * (law[first + k, t] - ref[first + k, t]).item() for k, t in enumerate(each.completion)]
        ahead = 0.0  # gamma and lambda of 1: what is still to come, less what was foreseen
        for k in range(len(each.completion) - 1, -1, -1):
            ahead += (each.total if k == len(each.completion) - 1 else 0.0) - penalty[k]
            assert float(notes.gains[row, first + k]) == pytest.approx(ahead - values[first + k].item(), abs=1e-5)
    assert float(notes.gains[torch.from_numpy(~batch.mask)].abs().max()) == 0.0


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("updates", [1, 2])
def test_an_update_of_policy_and_critic_does_not_depend_on_micro_batch_rows(
    policy, tmp_path: Path, rows: int, updates: int
) -> None:
    config = ppo(policy, optimizer=PLAIN, critic=CriticConfig(optimizer=PLAIN), updates=updates)
    rollout = sample(policy, config)
    found = []
    for size in (64, rows):
        small = replace(config, micro_batch_rows=size)
        state, reference, critic = start(policy, small)
        metrics = update(place(tmp_path), small, state, reference, rollout, critic)
        found.append((flat(state.model), flat(critic.model), metrics["value_loss"], metrics["kl"]))
    before = flat(policy.model), flat(start(policy, config)[2].model)
    for one, two, was in zip(found[0][:2], found[1][:2], before, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=2e-6)
        assert float((one - was).abs().max()) > 1e-4
    assert found[0][2:] == pytest.approx(found[1][2:], abs=1e-5)


def test_a_critic_learns_what_answers_earn(policy, tmp_path: Path) -> None:
    """The same answers again and again, a policy that stands still: the values go to the returns."""
    config = ppo(policy, optimizer=replace(PLAIN, lr=1e-12), critic=CriticConfig(optimizer=PLAIN, value_clip=0.0))
    paid = [replace(e, reward=replace(e.reward, total=float(k % 2))) for k, e in enumerate(sample(policy, config).kept)]
    rollout = Rollout(paid, paid, 0, 0)
    state, reference, critic = start(policy, config)
    critic = CriticState(critic.model, torch.optim.AdamW(critic.model.parameters()))
    config = replace(config, critic=CriticConfig(optimizer=OptimizerConfig(lr=1e-2), value_clip=0.0))
    losses = [update(place(tmp_path), config, state, reference, rollout, critic)["value_loss"] for _ in range(30)]
    assert losses[-1] < 0.1 * losses[0]
    batch = collate(rollout.kept, config)
    mask = torch.from_numpy(batch.mask)
    values = critic.model(torch.from_numpy(batch.tokens))[:, :-1]
    _, returns = gae(token_rewards(torch.from_numpy(batch.advantages), mask), values.detach(), mask, 1.0, 1.0)
    assert float(torch.corrcoef(torch.stack((values[mask].detach(), returns[mask])))[0, 1]) > 0.8


def test_ppo_runs_from_the_config_and_resumes_with_its_critic(policy, tmp_path: Path) -> None:
    config = ppo(policy, steps=4, save_every=2, updates=2, sampling=SamplingConfig(max_tokens=14))
    unbroken = train_grpo(place(tmp_path / "a"), config, copy.deepcopy(policy.model), policy.task, policy.tokenizer, 0)
    half = replace(config, steps=2)
    train_grpo(place(tmp_path / "b"), half, copy.deepcopy(policy.model), policy.task, policy.tokenizer, 0)
    resumed = train_grpo(place(tmp_path / "b"), config, copy.deepcopy(policy.model), policy.task, policy.tokenizer, 0)
    assert weights_hash(resumed.model) == weights_hash(unbroken.model)
    for one, two in zip(resumed.copies["critic"], unbroken.copies["critic"], strict=True):
        assert torch.equal(one, two)
    lines = Run(tmp_path / "a").read_metrics("grpo")
    assert all({"value_loss", "value_clip", "kl"} <= line.keys() for line in lines)
    assert lines[-1]["kl"] > 0 and lines[0]["groups_kept"] == 8
