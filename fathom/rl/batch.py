"""Episodes as padded arrays, cut into micro-batches."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fathom.config import GRPOConfig
from fathom.rl.grpo import advantages, overlong_penalty
from fathom.rl.rollout import Episode

MIN_WIDTH = 3  # tokens of a row: what the MTP module needs for one prediction


@dataclass(frozen=True)
class Notes:
    """What a micro-batch said of itself before the first update, all (N, T - 1); the critic's where there is one."""

    old: Tensor  # log-probabilities
    values: Tensor | None = None
    gains: Tensor | None = None  # advantages of every token
    returns: Tensor | None = None


@dataclass(frozen=True)
class GroupBatch:
    """Padded episodes, all (N, T - 1): place t predicts token t + 1."""

    tokens: NDArray[np.int64]  # (N, T)
    mask: NDArray[np.bool_]  # the next token is the policy's own
    sampled: NDArray[np.float32]  # its log-probability when it was sampled
    valid: NDArray[np.float32]  # (N, T), 0 on padding
    advantages: NDArray[np.float32]  # (N,); the rewards where a critic turns them into advantages
    truncated: NDArray[np.bool_]  # (N,)
    notes: Notes | None = None  # what was true before the first update

    def rows(self, index: NDArray[np.int64]) -> "GroupBatch":
        """The rows `index`, at least one, cut to their own longest."""
        valid = self.valid[index]
        width = max(MIN_WIDTH, int(valid.sum(1).max()))
        return GroupBatch(
            tokens=self.tokens[index, :width],
            mask=self.mask[index, : width - 1],
            sampled=self.sampled[index, : width - 1],
            valid=valid[:, :width],
            advantages=self.advantages[index],
            truncated=self.truncated[index],
        )


def collate(episodes: Sequence[Episode], config: GRPOConfig) -> GroupBatch:
    """Pad episodes to one width; with none, the batch that trains nothing."""
    if not episodes:
        return nothing()
    width = max(len(e.prompt) + len(e.completion) for e in episodes)
    tokens = np.zeros((len(episodes), width), np.int64)
    valid = np.zeros((len(episodes), width), np.float32)
    mask = np.zeros((len(episodes), width - 1), np.bool_)
    sampled = np.zeros((len(episodes), width - 1), np.float32)
    for row, e in enumerate(episodes):
        start, end = len(e.prompt), len(e.prompt) + len(e.completion)
        tokens[row, :end] = e.prompt + e.completion
        valid[row, :end] = 1
        mask[row, start - 1 : end - 1] = e.total == e.total  # an answer that nobody could grade trains nothing
        sampled[row, start - 1 : end - 1] = e.logprobs
    rewards = shaped_rewards(episodes, config)
    if config.objective.advantage != "gae":
        rewards = advantages(rewards, torch.tensor([e.group for e in episodes]), config.objective)
    return GroupBatch(tokens, mask, sampled, valid, rewards.numpy(), np.array([e.truncated for e in episodes]))


def shaped_rewards(episodes: Sequence[Episode], config: GRPOConfig) -> Tensor:
    """What is compared: the rewards, less DAPO's penalty for the last of the allowed tokens; NaN stays NaN."""
    rewards, limit = torch.tensor([e.total for e in episodes]), config.sampling.max_tokens
    if cache := round(config.objective.overlong_share * limit):
        rewards = rewards + overlong_penalty(torch.tensor([len(e.completion) for e in episodes]), limit, cache)
    return rewards


def nothing() -> GroupBatch:
    """One row that neither trains nor counts, for a process or an update without episodes to keep step with others."""
    mask = np.zeros((1, MIN_WIDTH - 1), np.bool_)
    return GroupBatch(
        tokens=np.zeros((1, MIN_WIDTH), np.int64),
        mask=mask,
        sampled=mask.astype(np.float32),
        valid=np.zeros((1, MIN_WIDTH), np.float32),
        advantages=np.zeros(1, np.float32),
        truncated=np.zeros(1, np.bool_),
    )


def by_length(batch: GroupBatch, rows: NDArray[np.int64], size: int) -> list[GroupBatch]:
    """Micro-batches of rows of like length, so that little is padding; never none."""
    if not len(rows):
        return [nothing()]
    ordered = rows[np.argsort(batch.valid[rows].sum(1), kind="stable")]
    return [batch.rows(ordered[at : at + size]) for at in range(0, len(ordered), size)]
