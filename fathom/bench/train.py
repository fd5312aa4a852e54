"""Training: whole optimizer steps on the same weights and tokens."""

import logging
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel

from fathom.bench import train_gpu
from fathom.bench.peers import EXPERTS, fastest, load_transformers, require_peer
from fathom.bench.rounds import describe_conditions, play, summarize
from fathom.bench.shape import SHAPE, describe_shape, published, random_tokens
from fathom.bench.team import Team, Turn
from fathom.checkpoint.hub import load_published
from fathom.config import ModelConfig, OptimizerConfig
from fathom.parallel.world import World, keep_freed_memory
from fathom.text.packing import Batch
from fathom.train.loss import Denominators, language_losses
from fathom.train.step import Rates, TrainState, train_step

log = logging.getLogger(__name__)

OPTIMIZER = OptimizerConfig(lr=1e-3)
SAME_LOSS = 1e-4  # how far the losses of two sides may lie apart


@dataclass(frozen=True)
class TrainSize:
    """Rows and tokens of one optimizer step, and how many steps make a turn."""

    rows: int
    seq_len: int
    steps: int


SIZES = (TrainSize(rows=32, seq_len=128, steps=6), TrainSize(rows=128, seq_len=24, steps=6))
ROUNDS = 7


def main(
    peer: str, config: ModelConfig = SHAPE, sizes: Sequence[TrainSize] = SIZES, rounds: int = ROUNDS
) -> dict[str, Any]:
    """Training tokens/s of Fathom, and of transformers where it is the peer, for every size; on a GPU see `train_gpu`.

    A step is forward, backward, clipping and fused AdamW. Each side has both cores: as two processes that sum their
    gradients, and the peer also as one process of two threads, of which the faster counts.
    """
    require_peer("train", peer, "transformers")
    if torch.cuda.is_available():
        return train_gpu.main(peer)
    conditions = describe_conditions()
    measured = [_measure(peer, config, size, rounds) for size in sizes]
    return {"bench": "train", "peer": peer, "model": describe_shape(config), "sizes": measured, **conditions}


def _measure(peer: str, config: ModelConfig, size: TrainSize, rounds: int) -> dict[str, Any]:
    log.info("training on %d rows of %d tokens", size.rows, size.seq_len)
    with ExitStack() as stack:
        path = stack.enter_context(published(config))
        teams = [stack.enter_context(Team("fathom", 2, 1, train_fathom, path, size))]
        if peer == "transformers":
            teams.append(stack.enter_context(Team("transformers", 1, 2, train_transformers, path, size)))
            teams.append(stack.enter_context(Team("transformers", 2, 1, train_transformers, path, size)))
        losses = {team.name: float(team.ready[0]["loss"]) for team in teams}
        require_same_loss(losses)
        speeds, _ = play(teams, rounds)
        experts = {team.name: team.ready[0]["experts"] for team in teams[1:]}
    return {
        "rows": size.rows,
        "seq_len": size.seq_len,
        "steps": size.steps * rounds,
        "first_loss": {name: round(loss, 6) for name, loss in losses.items()},
        "experts": experts,
        **summarize(speeds, "fathom"),
    }


def require_same_loss(losses: dict[str, float]) -> None:
    """Raise RuntimeError where the sides do not compute the same."""
    if max(losses.values()) - min(losses.values()) > SAME_LOSS:
        raise RuntimeError(f"the losses of the first step differ: {losses}")


def train_fathom(world: World, turn: Turn, path: Path, size: TrainSize) -> None:
    """A team's job: Fathom's own optimizer step."""
    keep_freed_memory()  # as every training process of Fathom does
    model = load_published(path)
    batch = _batch(model.config, size, world)
    state = TrainState.start(model, OPTIMIZER)
    denominators = Denominators.of([batch], 0, world)
    rates = Rates(lr=OPTIMIZER.lr, clip_norm=OPTIMIZER.clip_norm, bias_speed=0.0)

    def step() -> float:
        return train_step(
            state, [batch], lambda b: language_losses(model, b, denominators, 0.0, world.device), rates, world
        ).parts["loss"]

    result: dict[str, Any] = {"loss": step()}
    while turn(result):
        losses = [step() for _ in range(size.steps)]
        result = {"tokens": size.steps * batch.tokens.size, "loss": losses[-1]}


def _batch(config: ModelConfig, size: TrainSize, world: World) -> Batch:
    """This process's rows of the one batch that is trained on."""
    mine = random_tokens(config.vocab_size, size.rows, size.seq_len + 1).chunk(world.size)[world.rank].numpy()
    shape = (len(mine), size.seq_len)
    places = np.broadcast_to(np.arange(size.seq_len), shape)
    return Batch(mine[:, :-1], mine[:, 1:], np.ones(shape, np.float32), places, np.zeros(shape, np.int64))


def train_transformers(world: World, turn: Turn, path: Path, size: TrainSize) -> None:
    """A team's job: the same step written for a transformers model, its fastest experts chosen first."""
    model = load_transformers(path).train()
    rows = random_tokens(model.config.vocab_size, size.rows, size.seq_len + 1).chunk(world.size)[world.rank]
    tokens, targets = rows[:, :-1].contiguous(), rows[:, 1:].flatten()
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": OPTIMIZER.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    betas = (OPTIMIZER.beta1, OPTIMIZER.beta2)
    optimizer = torch.optim.AdamW(groups, lr=OPTIMIZER.lr, betas=betas, eps=OPTIMIZER.eps, fused=True)
    forward = (
        DistributedDataParallel(model, forward_sync_buffers=False, gradient_as_bucket_view=True)
        if world.size > 1
        else model
    )

    def step() -> float:
        logits = forward(input_ids=tokens, use_cache=False).logits
        loss = F.cross_entropy(logits.flatten(0, 1), targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, OPTIMIZER.clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    def try_experts(name: str) -> None:
        model.set_experts_implementation(name)
        step()

    first_loss = world.sum_numbers(step())[0] / world.size
    model.set_experts_implementation(experts := fastest(EXPERTS, try_experts, world))
    result: dict[str, Any] = {"loss": first_loss, "experts": experts}
    while turn(result):
        losses = [step() for _ in range(size.steps)]
        result = {"tokens": size.steps * tokens.numel(), "loss": losses[-1]}
