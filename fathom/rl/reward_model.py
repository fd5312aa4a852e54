"""A reward model for what no rule checks: one number an answer, learned from pairs (R1 2.3.4; Bradley and Terry).

It judges the answer alone, not the thinking, as R1's helpfulness model does.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from fathom.config.r1 import PreferenceConfig
from fathom.model import Transformer
from fathom.parallel.world import World
from fathom.rl.critic import Critic
from fathom.tasks.task import render_worked
from fathom.text.chat import render_prompt, render_reply
from fathom.text.general import Preference
from fathom.text.tokenizer import Tokenizer
from fathom.train.loss import Losses
from fathom.train.optimizer import build_optimizer
from fathom.train.step import Rates, train_step

DIFFERENT = 1e-6  # scores closer than that judge neither answer better


class RewardModel(Critic):
    """A policy's trunk whose number at the end of an answer is its reward."""

    step: int = 0

    def score(self, rows: Sequence[NDArray[np.int64]], pad: int) -> Float[Tensor, " N"]:
        """The reward of every row, read at its last token."""
        lengths = torch.tensor([len(row) for row in rows])
        tokens = torch.full((len(rows), int(lengths.max())), pad)
        for place, row in enumerate(rows):
            tokens[place, : len(row)] = torch.from_numpy(row)
        device = self.value.weight.device
        return self(tokens.to(device))[torch.arange(len(rows), device=device), (lengths - 1).to(device)]


class _Training:
    """What `train_step` asks for."""

    def __init__(self, model: RewardModel, config: PreferenceConfig) -> None:
        self.model, self.step = model, 0
        self.optimizer = build_optimizer(config.optimizer, model)
        self.copies: dict[str, list[Tensor]] = {}


def judged(tokenizer: Tokenizer, question: str, answer: str) -> Int64[np.ndarray, " T"]:
    """Ids of a question and an answer as the model reads them."""
    reply = render_reply(tokenizer, render_worked("", answer))
    return np.array([*render_prompt(tokenizer, question), *reply], np.int64)


def train_reward_model(
    policy: Transformer,
    tokenizer: Tokenizer,
    pairs: Sequence[Preference],
    config: PreferenceConfig,
    seed: int,
    world: World,
) -> tuple[RewardModel, list[float]]:
    """A model like `policy` trained to score the better answer of each pair above the other, and its losses.

    The loss is -log sigmoid(better - worse), averaged over the pairs of a step. Every process takes its share of them;
    the draw follows from seed and step alone.
    """
    model = RewardModel(policy).to(world.device)
    state = _Training(model, config)
    rng = np.random.default_rng(seed)
    losses: list[float] = []
    for _ in range(config.steps):
        drawn = rng.choice(len(pairs), min(config.rows, len(pairs)), replace=False)
        own = [pairs[at] for at in drawn[world.rank :: world.size]]
        rates = Rates(lr=config.optimizer.lr, clip_norm=config.optimizer.clip_norm, bias_speed=0.0)

        def pair_losses(batch: Sequence[Preference], total: int = len(drawn)) -> Losses:
            if not batch:
                nothing = sum(parameter.sum() for parameter in model.parameters()) * torch.zeros(
                    (), device=world.device
                )
                return Losses(nothing, {"loss": nothing.detach()}, [])  # pyright: ignore[reportArgumentType]
            loss = -F.logsigmoid(margins(model, tokenizer, batch)).sum() / total
            return Losses(loss, {"loss": loss.detach()}, [])

        report = train_step(state, [own], pair_losses, rates, world)
        state.step += 1
        losses.append(report.parts["loss"])
    return model, losses


def margins(model: RewardModel, tokenizer: Tokenizer, pairs: Sequence[Preference]) -> Float[Tensor, " N"]:
    """By how much the better answer of each pair scores above the other."""
    rows = [judged(tokenizer, pair.question, pair.chosen) for pair in pairs]
    rows += [judged(tokenizer, pair.question, pair.rejected) for pair in pairs]
    better, worse = model.score(rows, tokenizer.pad_id).chunk(2)
    return better - worse


@torch.no_grad()
def accuracy(model: RewardModel, tokenizer: Tokenizer, pairs: Sequence[Preference]) -> float:
    """Share of pairs whose better answer scores higher; 0.5 for each that the model cannot tell apart."""
    found = torch.cat([margins(model, tokenizer, pairs[at : at + 64]) for at in range(0, len(pairs), 64)])
    return float(torch.where(found.abs() < DIFFERENT, 0.5, (found > 0).float()).mean())


def save_reward_model(model: RewardModel, path: Path) -> None:
    """Write its weights beside their final name and move them there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, partial)
    partial.replace(path)


def load_reward_model(path: Path, policy: Transformer) -> RewardModel:
    """The model at `path`, which was trained from one like `policy`."""
    model = RewardModel(policy)
    model.load_state_dict(load_file(path))
    return model.requires_grad_(False)
