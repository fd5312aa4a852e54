"""The GRPO update against slow loops: ratios, gradients, what is trained, what the reference is."""

import copy
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from fathom.config import GRPOConfig, ObjectiveConfig, OptimizerConfig, SamplingConfig, ScheduleConfig, TaskConfig
from fathom.config.objectives import named_objective
from fathom.infer.engine import Engine
from fathom.model import Transformer
from fathom.model.moe import moe_layers
from fathom.parallel.world import World
from fathom.rl.batch import collate, in_micro_batches, nothing
from fathom.rl.grpo import advantages, policy_loss
from fathom.rl.loop import share, train_grpo, update
from fathom.rl.losses import draft_loss, grpo_losses, policy_logprobs
from fathom.rl.outcome import rollout_metrics
from fathom.rl.reference import Reference
from fathom.rl.reward import Reward
from fathom.rl.rollout import Episode, Rollout, is_equal, roll_out
from fathom.runs import Run
from fathom.tasks import Countdown, GradingError, Problem, build
from fathom.tasks.sandbox import can_isolate
from fathom.train.loop import Place
from fathom.train.step import TrainState

CPU = torch.device("cpu")
WORLD = World(0, 1, CPU)
FLAT = ScheduleConfig(warmup_steps=0, decay="constant", bias_freeze=0.0)
PLAIN = OptimizerConfig(lr=0.5, weight_decay=0.0, clip_norm=0.0)


def descent(policy, **changes) -> tuple[TrainState, GRPOConfig]:
    """Plain descent instead of AdamW, so that a step shows its gradient, and a config to go with it."""
    model = copy.deepcopy(policy.model)
    config = replace(policy.config, optimizer=PLAIN, schedule=FLAT, **changes)
    return TrainState(model, torch.optim.SGD(model.parameters(), lr=PLAIN.lr)), config


def place(path: Path, stage: str = "grpo") -> Place:
    return Place(Run(path), stage, WORLD)


def sample(policy, config: GRPOConfig | None = None, seed: str = "0/0/0") -> Rollout:
    config = config or policy.config
    engine = Engine(policy.model, rows=config.prompts * config.group)
    return roll_out(engine, policy.task, policy.tokenizer, config, config.prompts, 0, seed)


def flat(model: Transformer) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def slow_logprobs(model: Transformer, episode: Episode, temperature: float) -> Tensor:
    """Log-probabilities of an answer's tokens, one row at a time from a full table of logits."""
    tokens = torch.tensor([episode.prompt + episode.completion])
    table = (model.logits(model(tokens))[0] / temperature).log_softmax(-1)
    start = len(episode.prompt)
    return torch.stack([table[start + i - 1, token] for i, token in enumerate(episode.completion)])


def gains_of(episodes: list[Episode], objective: ObjectiveConfig) -> list[float]:
    rewards, groups = torch.tensor([e.total for e in episodes]), torch.tensor([e.group for e in episodes])
    return advantages(rewards, groups, objective).tolist()


def episode(prompt: list[int], completion: list[int], group: int, total: float | None, cut: bool = False) -> Episode:
    accuracy = None if total is None else total
    logprobs = [-1.0] * len(completion)
    problem = Problem("1,2:3", "0", (1, 2), 3)
    failure = "crash" if total is None else ""
    reward = Reward(total, accuracy, format=1.0, language=1.0, soundness=accuracy or 0.0, failure=failure)
    return Episode(problem, group, prompt, completion, logprobs, cut, reward, 0)


def test_a_first_update_clips_nothing_and_its_loss_is_minus_the_mean_gain(policy, tmp_path: Path) -> None:
    state, config = descent(policy)
    rollout = sample(policy)
    reference = Reference(state, config)
    metrics = update(place(tmp_path), config, state, reference, rollout)
    assert metrics["clip_share"] == 0.0
    gains = gains_of(rollout.kept, config.objective)
    lengths = [len(e.completion) for e in rollout.kept]
    mean_gain = sum(gain * length for gain, length in zip(gains, lengths, strict=True)) / sum(lengths)
    assert metrics["loss"] == pytest.approx(-mean_gain, abs=1e-7)  # every ratio is exactly 1
    assert reference.model is None
    assert metrics["trained_tokens"] == sum(len(e.prompt) for e in rollout.kept) + sum(lengths)


def test_the_gradient_is_minus_gain_times_that_of_the_logprob_by_a_slow_loop(policy, tmp_path: Path) -> None:
    state, config = descent(policy, sampling=SamplingConfig(temperature=1.3, max_tokens=14))
    rollout = sample(policy, config)
    model = copy.deepcopy(policy.model)
    gains = gains_of(rollout.kept, config.objective)
    tokens = sum(len(e.completion) for e in rollout.kept)
    for gain, each in zip(gains, rollout.kept, strict=True):
        (-gain * slow_logprobs(model, each, 1.3).sum() / tokens).backward()
    wanted = torch.cat([torch.zeros(p.numel()) if p.grad is None else p.grad.flatten() for p in model.parameters()])
    update(place(tmp_path), config, state, Reference(state, config), rollout)
    found = (flat(model) - flat(state.model)) / PLAIN.lr
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)
    assert float(wanted.abs().max()) > 1e-3


@pytest.mark.parametrize("aggregation", ["token", "sequence", "constant"])
@pytest.mark.parametrize("rows", [1, 5])
def test_the_gradient_does_not_depend_on_micro_batch_rows(policy, tmp_path: Path, rows: int, aggregation: str) -> None:
    objective = ObjectiveConfig(aggregation=aggregation, kl_beta=0.1)  # pyright: ignore[reportArgumentType]
    whole, config = descent(policy, objective=objective, mtp_weight=0.5)
    cut = TrainState(model := copy.deepcopy(whole.model), torch.optim.SGD(model.parameters(), lr=PLAIN.lr))
    rollout = sample(policy)
    assert len(rollout.kept) > 5
    metrics = update(place(tmp_path), config, whole, Reference(whole, config), rollout)
    small = replace(config, micro_batch_rows=rows)
    cut_metrics = update(place(tmp_path), small, cut, Reference(cut, small), rollout)
    torch.testing.assert_close(flat(cut.model), flat(whole.model), rtol=0, atol=1e-6)
    assert cut_metrics.keys() == metrics.keys()
    for name in ("loss", "entropy", "gap", "kl", "max_vio", "grad_norm"):
        assert cut_metrics[name] == pytest.approx(metrics[name], abs=1e-5), name
    assert float((flat(whole.model) - flat(policy.model)).abs().max()) > 1e-4


def test_every_mini_batch_is_judged_against_the_policy_before_the_first(policy, tmp_path: Path) -> None:
    objective = ObjectiveConfig(clip_low=0.02, clip_high=0.02)
    state, config = descent(policy, updates=2, micro_batch_rows=4, objective=objective)
    rollout = sample(policy)
    model = copy.deepcopy(policy.model)
    gains = gains_of(rollout.kept, objective)
    with torch.no_grad():
        old = [slow_logprobs(model, each, 1.0) for each in rollout.kept]
    drift: list[float] = []
    for rows in np.array_split(np.random.default_rng(0).permutation(len(old)), 2):
        tokens = sum(len(old[row]) for row in rows)
        model.zero_grad()
        for row in rows:
            ratio = (slow_logprobs(model, rollout.kept[row], 1.0) - old[row]).exp()
            drift.append(float((ratio.detach() - 1).abs().max()))
            gain = torch.minimum(ratio * gains[row], ratio.clamp(0.98, 1.02) * gains[row])
            (-gain.sum() / tokens).backward()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter -= PLAIN.lr * parameter.grad
    metrics = update(place(tmp_path), config, state, Reference(state, config), rollout)
    torch.testing.assert_close(flat(state.model), flat(model), rtol=0, atol=1e-6)
    half = len(np.array_split(np.arange(len(old)), 2)[0])
    assert max(drift[:half]) < 1e-5 < 0.02 < max(drift[half:])  # the second saw another policy than the first
    assert metrics["clip_share"] > 0
    assert metrics["gap"] < 1e-5  # between sampling and the frozen values: the policy's own drift is no gap
    assert state.step == 1


@pytest.mark.parametrize("temperature", [0.6, 1.0, 1.3])
def test_sampling_and_training_agree_on_logprobs_at_every_temperature(
    policy, tmp_path: Path, temperature: float
) -> None:
    sampling = SamplingConfig(temperature=temperature, max_tokens=14)
    config = replace(policy.config, sampling=sampling, optimizer=OptimizerConfig(lr=1e-3))
    train_grpo(place(tmp_path), config, policy.model, policy.task, policy.tokenizer, seed=0)
    lines = Run(tmp_path).read_metrics("grpo")
    assert len(lines) == config.steps
    assert all(line["groups_kept"] > 0 and line["entropy"] > 0 for line in lines)
    assert max(line["gap"] for line in lines) <= 1e-5


def test_entropy_is_that_of_the_sampling_law(policy, tmp_path: Path) -> None:
    state, config = descent(policy, sampling=SamplingConfig(temperature=0.6, max_tokens=14))
    rollout = sample(policy, config)
    entropies: list[float] = []
    for each in rollout.kept:
        tokens = torch.tensor([each.prompt + each.completion])
        law = (policy.model.logits(policy.model(tokens))[0] / 0.6).log_softmax(-1)
        start = len(each.prompt) - 1
        entropies += (-(law.exp() * law).sum(-1))[start : start + len(each.completion)].tolist()
    metrics = update(place(tmp_path), config, state, Reference(state, config), rollout)
    assert metrics["entropy"] == pytest.approx(np.mean(entropies), abs=1e-5)


def test_the_end_of_sequence_is_trained_and_nothing_beyond_it(policy) -> None:
    prompt = [1, 3, 20, 21, 4, 5]
    finished = episode(prompt, [30, 31, policy.tokenizer.eos_id], 0, 1.0)
    cut = episode(prompt[:4], [32, 33, 34, 35], 0, 0.0, cut=True)
    batch = collate([finished, cut], policy.config)
    trained = [5, 6, 7], [3, 4, 5, 6]  # the places whose next token is the policy's own
    hidden, logprobs, _ = policy_logprobs(policy.model, batch, policy.config, CPU)
    hidden.retain_grad()
    mask = torch.from_numpy(batch.mask)
    gains = torch.from_numpy(batch.advantages)
    loss, sums = policy_loss(logprobs, None, gains, mask, policy.config.objective, int(mask.sum()))
    loss.backward()
    assert hidden.grad is not None
    reached = hidden.grad.abs().sum(-1) > 0
    assert [row.nonzero().flatten().tolist() for row in reached] == [*trained]
    assert int(sums["tokens"]) == 7
    table = policy.model.head_weight.grad
    assert table is not None
    state = hidden[0, 7].detach()  # raising the gain of the answer raises the end's score where it was drawn
    assert float(table[policy.tokenizer.eos_id] @ state) < 0


def test_answers_cut_by_length_can_be_kept_out_of_the_loss(policy, tmp_path: Path) -> None:
    objective = ObjectiveConfig(mask_truncated=True)
    rows = [episode([1, 3, 5], [8, 2], 0, 1.0), episode([1, 3, 5], [9, 9, 9], 0, 0.0, cut=True)]
    state, config = descent(policy, objective=objective)
    without, _ = descent(policy, objective=objective)
    metrics = update(place(tmp_path), config, state, Reference(state, config), Rollout(rows, rows, 0, 5))
    assert metrics["loss"] == pytest.approx(-0.5)  # the gain over the mean of both, over the tokens of the whole one
    longer = [rows[0], episode([1, 3, 5], [9, 9, 9, 9, 9], 0, 0.0, cut=True)]
    update(place(tmp_path), config, without, Reference(without, config), Rollout(longer, longer, 0, 7))
    torch.testing.assert_close(flat(state.model), flat(without.model), rtol=0, atol=1e-6)


def test_ungraded_answers_train_nothing_and_shift_no_baseline(policy, tmp_path: Path) -> None:
    graded = [episode([1, 3, 5], [8, 9, 2], 0, 1.0), episode([1, 3, 5], [7, 2], 0, 0.0)]
    broken = episode([1, 3, 5], [6, 6, 6, 2], 0, None)
    state, config = descent(policy, mtp_weight=0.5)
    without, _ = descent(policy)
    metrics = update(place(tmp_path), config, state, Reference(state, config), Rollout([*graded, broken], [], 0, 0))
    update(place(tmp_path), config, without, Reference(without, config), Rollout(graded, [], 0, 0))
    torch.testing.assert_close(flat(state.model), flat(without.model), rtol=0, atol=1e-6)
    assert math.isfinite(metrics["loss"])
    batch = collate([*graded, broken], config)
    assert batch.mask.sum(1).tolist() == [3, 2, 0]
    assert batch.advantages.tolist() == [0.5, -0.5, 0.0]


def test_a_broken_checker_is_counted_apart(policy, tmp_path: Path) -> None:
    class Broken(Countdown):
        def grade(self, problem: Problem, answer: str) -> bool:
            raise GradingError("the checker broke")

    config = replace(policy.config, steps=1)
    train_grpo(place(tmp_path), config, policy.model, Broken(policy.task.config), policy.tokenizer, seed=0)
    (line,) = Run(tmp_path).read_metrics("grpo")
    assert line["ungraded"] == line["crashes"] > 0 == line["timeouts"]
    assert line["accuracy"] == line["reward"] == 0.0  # what is left are answers of no form at all


def test_rollout_metrics_by_hand(policy, tmp_path: Path) -> None:
    rows = [
        episode([1], [5, 6, 2], 0, 1.0),
        episode([1], [5, 2], 0, 0.0),
        episode([1], [5, 6, 7, 8], 1, 0.0, cut=True),
        episode([1], [5, 6, 7, 2], 1, None),
    ]
    metrics = rollout_metrics(place(tmp_path), Rollout(rows[:2], rows, 1, 13))
    assert metrics == {
        "reward": pytest.approx(1 / 3),
        "accuracy": pytest.approx(1 / 3),
        "format": 1.0,
        "language": 1.0,
        "soundness": 0.25,
        "length": 3.25,
        "length_correct": 3.0,
        "length_wrong": 3.0,
        "truncated": 0.25,
        "ungraded": 1,
        "timeouts": 0,
        "crashes": 1,
        "groups_kept": 1,
        "groups_dropped": 1,
        "rollout_tokens": 13,
        "reflections": 0,
        "accuracy_low": 0.0,
        "accuracy_high": pytest.approx(0.76888, abs=1e-4),
    }


def test_the_draft_loss_by_a_slow_loop_and_without_a_gradient_in_the_trunk(policy) -> None:
    rollout = sample(policy)
    batch = collate(rollout.kept, policy.config)
    model = policy.model
    hidden, _, _ = policy_logprobs(model, batch, policy.config, CPU)
    loss = draft_loss(model, hidden, batch, CPU)
    wanted = 0.0
    for each in rollout.kept:
        tokens = torch.tensor([each.prompt + each.completion])
        state = model.predict_further(0, model(tokens)[:, :-1], tokens[:, 1:])
        law = model.logits(state)[0].log_softmax(-1)
        start = len(each.prompt)
        wanted -= sum(law[start + i - 2, token].item() for i, token in enumerate(each.completion))
    assert float(loss.detach()) == pytest.approx(wanted, rel=1e-5)
    loss.backward()
    with_gradient = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert with_gradient and all(name.startswith("mtp.0.") for name in with_gradient)


def test_training_the_draft_module_leaves_the_trunk_its_gradient(policy, tmp_path: Path) -> None:
    rollout = sample(policy)
    alone, config = descent(policy)
    along, with_drafts = descent(policy, mtp_weight=0.3)
    update(place(tmp_path), config, alone, Reference(alone, config), rollout)
    update(place(tmp_path), with_drafts, along, Reference(along, with_drafts), rollout)
    before = dict(policy.model.named_parameters())
    for (name, one), two in zip(alone.model.named_parameters(), along.model.parameters(), strict=True):
        if name.startswith("mtp."):
            assert torch.equal(one, before[name])
        else:
            assert torch.equal(one, two), name
    moved = along.model.mtp[0].projection.weight - policy.model.mtp[0].projection.weight
    assert float(moved.detach().abs().max()) > 0


def test_the_selection_bias_counts_prompts_and_answers_without_padding(policy, tmp_path: Path) -> None:
    schedule = ScheduleConfig(warmup_steps=0, decay="constant", bias_freeze=1.0)
    state, config = descent(policy)
    config = replace(config, schedule=schedule, micro_batch_rows=5)
    rollout = sample(policy)
    layer = next(iter(moe_layers(state.model)))
    before = layer.router.selection_bias.clone()
    counts = torch.zeros(4)
    for each in rollout.kept:
        batch = collate([each], config)
        trained = grpo_losses(policy.model, None, config, 1, 1.0, CPU, [], batch)
        assert int(trained.loads[0].sum()) == 2 * (len(each.prompt) + len(each.completion))
        counts += trained.loads[0]
    metrics = update(place(tmp_path), config, state, Reference(state, config), rollout)
    torch.testing.assert_close(layer.router.selection_bias - before, 1e-3 * (counts.mean() - counts).sign())
    assert metrics["max_vio"] == pytest.approx(float(counts.max() / counts.mean()) - 1, abs=1e-5)
    # rows narrower than the widest of their batch are padded, which counts no token
    assert len({len(each.prompt) + len(each.completion) for each in rollout.kept}) > 1


@pytest.mark.parametrize("updates", [1, 3])
def test_without_a_group_that_teaches_nothing_moves_or_counts(policy, tmp_path: Path, updates: int) -> None:
    schedule = ScheduleConfig(warmup_steps=0, decay="constant", bias_freeze=1.0)
    state, config = descent(policy, updates=updates, mtp_weight=0.3, objective=ObjectiveConfig(kl_beta=0.1))
    biases = [layer.router.selection_bias.clone() for layer in moe_layers(state.model)]
    config = replace(config, schedule=schedule)
    metrics = update(place(tmp_path), config, state, Reference(state, config), Rollout([], [], 3, 0))
    assert torch.equal(flat(state.model), flat(policy.model))
    for layer, bias in zip(moe_layers(state.model), biases, strict=True):
        assert torch.equal(layer.router.selection_bias, bias)
    assert (metrics["loss"], metrics["grad_norm"], metrics["trained_tokens"]) == (0.0, 0.0, 0.0)
    assert state.step == 1


def test_more_updates_than_answers_leave_the_last_ones_empty(policy, tmp_path: Path) -> None:
    rows = [episode([1, 3, 5], [8, 2], 0, 1.0), episode([1, 3, 5], [9, 2], 0, 0.0)]
    state, config = descent(policy, updates=4)
    metrics = update(place(tmp_path), config, state, Reference(state, config), Rollout(rows, rows, 0, 4))
    assert all(math.isfinite(value) for name, value in metrics.items() if name != "expert_shares")
    assert not torch.equal(flat(state.model), flat(policy.model))


def test_micro_batches_hold_rows_of_like_length_and_no_wider_than_needed(policy) -> None:
    lengths = [2, 9, 4, 7, 3]
    rows = [episode([1, 3], [5] * n, 0, float(n)) for n in lengths]
    batch = collate(rows, policy.config)
    micros = in_micro_batches(batch, np.arange(5), 2)
    assert [micro.tokens.shape for micro in micros] == [(2, 5), (2, 9), (1, 11)]
    assert [micro.mask.sum(1).tolist() for micro in micros] == [[2, 3], [4, 7], [9]]
    (only,) = in_micro_batches(batch, np.arange(0), 2)
    assert only.mask.sum() == only.valid.sum() == 0
    assert only.tokens.shape == nothing().tokens.shape


def test_an_update_is_the_same_where_long_prompts_are_computed_once(policy, monkeypatch, tmp_path: Path) -> None:
    prompts = [[1, 3, *range(20, 32), 5], [1, 3, *range(22, 38), 5]]
    lengths = [[2, 9, 4], [7, 3, 5]]
    rows = [
        episode(prompts[group], [*range(12, 12 + n), 2], group, float(n % 2))
        for group in (1, 0)
        for n in lengths[group]
    ]
    rollout = Rollout(rows, rows, 0, sum(len(e.completion) for e in rows))
    objective = ObjectiveConfig(kl_beta=0.1)
    found: list[torch.Tensor] = []
    losses: list[object] = []
    for pays in (0.25, 2.0):
        monkeypatch.setattr("fathom.rl.batch.SHARING_PAYS", pays)
        state, config = descent(policy, objective=objective, mtp_weight=0.3, micro_batch_rows=4)
        micros = in_micro_batches(collate(rows, config), np.arange(6), 4)
        assert [micro.shares for micro in micros] == [pays < 1] * 2
        metrics = update(place(tmp_path), config, state, Reference(state, config), rollout)
        found.append(flat(state.model) - flat(policy.model))
        losses.append(metrics["loss"])
    assert float(found[1].abs().max()) > 1e-3
    torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=2e-6)
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)


def test_the_reference_is_the_start_and_then_the_policy_of_every_so_many_steps(policy) -> None:
    state, config = descent(policy, objective=ObjectiveConfig(kl_beta=0.1, reference_reset_steps=2))
    reference = Reference(state, config)
    assert reference.model is not None
    start = {name: tensor.clone() for name, tensor in state.model.state_dict().items()}
    move(state.model)
    state.step = 1
    reference.refresh(state)
    assert_equal_weights(reference.model, start)
    state.step = 2
    reference.refresh(state)
    assert_equal_weights(reference.model, dict(state.model.state_dict()))


def test_a_resumed_reference_has_the_old_selection_bias_too(policy) -> None:
    """Which experts the reference takes is part of what it says."""
    state, config = descent(policy, objective=ObjectiveConfig(kl_beta=0.1))
    first = Reference(state, config)
    move(state.model)
    again = Reference(state, config)
    assert first.model is not None and again.model is not None
    assert_equal_weights(again.model, dict(first.model.state_dict()))


def test_the_kl_term_pulls_towards_the_reference(policy, tmp_path: Path) -> None:
    objective = ObjectiveConfig(kl_beta=0.1)
    state, config = descent(policy, objective=objective)
    rollout = sample(policy)
    reference = Reference(state, config)
    at_start = update(place(tmp_path), config, state, reference, rollout)
    assert at_start["kl"] == pytest.approx(0.0, abs=1e-9)
    later = update(place(tmp_path), config, state, reference, rollout)
    assert later["kl"] > 1e-6


def test_a_reference_without_resets_never_changes(policy) -> None:
    state, config = descent(policy, objective=ObjectiveConfig(kl_beta=0.1, reference_reset_steps=0))
    reference = Reference(state, config)
    start = {name: tensor.clone() for name, tensor in state.model.state_dict().items()}
    move(state.model)
    for state.step in (1, 400, 800):
        reference.refresh(state)
    assert reference.model is not None
    assert_equal_weights(reference.model, start)


def test_questions_are_shared_out_whole() -> None:
    assert [share(7, rank, 3) for rank in range(3)] == [3, 2, 2]
    assert [share(4, rank, 2) for rank in range(2)] == [2, 2]


def test_fewer_questions_than_workers_are_refused(policy, tmp_path: Path) -> None:
    pair = replace(place(tmp_path), world=World(0, 2, CPU))
    with pytest.raises(ValueError, match=r"grpo.prompts=1 .* 2 workers"):
        train_grpo(pair, replace(policy.config, prompts=1), policy.model, policy.task, policy.tokenizer, 0)


def test_a_step_leaves_a_line_with_all_that_the_report_shows(policy, tmp_path: Path) -> None:
    config = replace(policy.config, steps=1, objective=ObjectiveConfig(kl_beta=0.01))
    told: list[int] = []
    spot = replace(place(tmp_path), notify=lambda step, metrics: told.append(step))
    state = train_grpo(spot, config, policy.model, policy.task, policy.tokenizer, seed=0)
    (line,) = Run(tmp_path).read_metrics("grpo")
    wanted = "reward accuracy format language length entropy kl clip_share gap groups_kept groups_dropped truncated "
    wanted += "grad_norm lr loss max_vio rollout_tokens rollout_tokens_per_s seconds length_wrong"
    assert set(wanted.split()) <= line.keys()
    assert told == [1] and state.step == 1


def move(model: Transformer) -> None:
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor += 0.5


def assert_equal_weights(model: Transformer, weights: dict[str, Tensor]) -> None:
    found = model.state_dict()
    assert found.keys() == weights.keys()
    for name, tensor in weights.items():
        assert torch.equal(found[name], tensor), name


def test_the_sampler_as_denominator_weighs_a_known_gap(policy, tmp_path: Path) -> None:
    """One update, yet the ratio is that of training over sampling: an injected gap shows in gradient and clip."""
    objective = ObjectiveConfig(old_policy="sampler", clip_low=0.2, clip_high=0.2)
    state, config = descent(policy, objective=objective)
    shifts = [0.1, -0.1, 0.5, -0.5]  # of the log-probabilities at sampling; the last two clip where the gain says so
    kept = sample(policy).kept
    gapped = [replace(e, logprobs=[p - shifts[k % 4] for p in e.logprobs]) for k, e in enumerate(kept)]
    gains = gains_of(gapped, objective)
    tokens = sum(len(e.completion) for e in gapped)
    model = copy.deepcopy(policy.model)
    for k, (gain, each) in enumerate(zip(gains, gapped, strict=True)):
        ratio = math.exp(shifts[k % 4])
        cut = (gain > 0 and ratio > 1.2) or (gain < 0 and ratio < 0.8)
        (-(0.0 if cut else ratio) * gain * slow_logprobs(model, each, 1.0).sum() / tokens).backward()
    metrics = update(place(tmp_path), config, state, Reference(state, config), Rollout(gapped, gapped, 0, 0))
    for (name, found), wanted in zip(state.model.named_parameters(), model.parameters(), strict=True):
        gradient = torch.zeros_like(wanted) if wanted.grad is None else wanted.grad
        start = dict(policy.model.named_parameters())[name]
        torch.testing.assert_close((start - found) / PLAIN.lr, gradient, rtol=0, atol=2e-6)
    assert metrics["clip_share"] > 0
    gap = sum(abs(shifts[k % 4]) * len(e.completion) for k, e in enumerate(gapped)) / tokens
    assert metrics["gap"] == pytest.approx(gap, abs=1e-4)


def test_a_correction_weighs_the_policy_term_by_the_gap_and_is_counted(policy, tmp_path: Path) -> None:
    objective = ObjectiveConfig(correction="truncate", correction_cap=1.5)
    state, config = descent(policy, objective=objective)
    kept = sample(policy).kept
    gapped = [replace(e, logprobs=[p - (1.0 if k % 2 else 0.2) for p in e.logprobs]) for k, e in enumerate(kept)]
    gains, tokens = gains_of(gapped, objective), sum(len(e.completion) for e in gapped)
    metrics = update(place(tmp_path), config, state, Reference(state, config), Rollout(gapped, gapped, 0, 0))
    weights = [1.5 if k % 2 else math.exp(0.2) for k in range(len(gapped))]
    lengths = [len(e.completion) for e in gapped]
    wanted = -sum(g * w * n for g, w, n in zip(gains, weights, lengths, strict=True)) / tokens
    assert metrics["loss"] == pytest.approx(wanted, abs=1e-5)
    assert metrics["corrected"] == pytest.approx(sum(lengths[1::2]) / tokens)


def test_the_soft_penalty_shapes_what_is_compared_but_not_what_is_dropped(policy) -> None:
    objective = ObjectiveConfig(overlong_share=0.5)
    sampling = SamplingConfig(max_tokens=8)
    config = replace(policy.config, objective=objective, sampling=sampling)
    rows = [episode([1], [5] * n, 0, 1.0) for n in (2, 4, 6, 8)] + [episode([1], [5] * 8, 1, None)]
    assert collate(rows, config).advantages.tolist() == pytest.approx([0.375, 0.375, -0.125, -0.625, 0.0])
    assert is_equal([e.total for e in rows[:4]])  # all right: the group is dropped whatever their lengths


def test_after_an_update_the_engine_samples_from_the_new_weights(policy, tmp_path: Path) -> None:
    """One set of tensors: the sampler's probe agrees with the trainer's after the step, and not with the old one."""
    state, config = descent(policy)
    engine = Engine(state.model, rows=18)
    first = roll_out(engine, policy.task, policy.tokenizer, config, 3, 0, "0/0/0")
    update(place(tmp_path), config, state, Reference(state, config), first)
    probe = roll_out(engine, policy.task, policy.tokenizer, config, 3, 1, "0/1/0").sampled[:4]
    for each in probe:
        sampled = torch.tensor(each.logprobs)
        torch.testing.assert_close(slow_logprobs(state.model, each, 1.0), sampled, rtol=0, atol=1e-5)
        assert float((slow_logprobs(policy.model, each, 1.0) - sampled).detach().abs().max()) > 1e-3


def test_the_reference_counts_optimizer_steps_not_rollouts(policy) -> None:
    state, config = descent(policy, updates=3, objective=ObjectiveConfig(kl_beta=0.1, reference_reset_steps=4))
    reference = Reference(state, config)
    renewed: list[int] = []
    for state.step in range(1, 9):
        before = [tensor.clone() for tensor in state.copies["reference"]]
        move(state.model)
        reference.refresh(state)
        if not all(torch.equal(a, b) for a, b in zip(before, state.copies["reference"], strict=True)):
            renewed.append(state.step)
    assert renewed == [2, 3, 4, 6, 7, 8]  # 6, 9, 12, 18, 21 and 24 steps are the first at or beyond 4, 8, 12, ...


def test_padding_may_be_the_end_of_sequence(policy) -> None:
    """What is trained follows from lengths, never from an id: token 0 pads and here also ends an answer."""
    rows = [episode([1, 3], [8, 0], 0, 1.0), episode([1, 3], [9, 0, 7, 0], 0, 0.0)]
    batch = collate(rows, policy.config)
    assert batch.mask.tolist() == [[False, True, True, False, False], [False, True, True, True, True]]
    assert batch.valid.sum(1).tolist() == [4, 6]


def test_a_task_of_ones_own_in_the_loop_with_failures_counted_apart(policy, tmp_path: Path) -> None:
    """A file with a prompt and a check: right for some questions, broken for others, never silently wrong."""
    (tmp_path / "mine.py").write_text(
        "def prompt(rng):\n    return f'{rng.randint(1, 9)},{rng.randint(1, 9)}:3', rng.randint(0, 1)\n"
        "def check(answer, truth):\n    return 1 / truth\n"
    )
    isolation = "require" if can_isolate() else "limits"
    task = build(TaskConfig(kind="custom", file=str(tmp_path / "mine.py"), check_seconds=20.0, isolation=isolation))
    config = replace(policy.config, steps=1, prompts=8, group=6, refill_rounds=0)
    train_grpo(place(tmp_path), config, policy.model, task, policy.tokenizer, seed=0)
    (line,) = Run(tmp_path).read_metrics("grpo")
    assert line["ungraded"] == line["crashes"] > 0 == line["timeouts"]
    assert line["accuracy"] > 0


@pytest.mark.parametrize("name", ["r1", "v3.2", "dapo", "gspo", "cispo"])
def test_every_named_objective_trains(policy, tmp_path: Path, name: str) -> None:
    config = replace(policy.config, steps=2, updates=2, objective=named_objective(name))
    before = flat(policy.model)
    train_grpo(place(tmp_path), config, policy.model, policy.task, policy.tokenizer, seed=0)
    lines = Run(tmp_path).read_metrics("grpo")
    assert all(math.isfinite(line["loss"]) and line["gap"] < 1e-4 for line in lines)
    assert float((flat(policy.model) - before).abs().max()) > 1e-5
    assert ("kl" in lines[0], "stale" in lines[0]) == (name in ("r1", "v3.2"), name == "v3.2")
