"""Episodes as padded arrays, cut into micro-batches."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fathom.config import GRPOConfig
from fathom.infer.experts import UNKNOWN
from fathom.rl.grpo import advantages, overlong_penalty
from fathom.rl.rollout import Episode

SHARING_PAYS = 0.25  # share of repeated prompt tokens from which two passes cost less than one
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
    groups: NDArray[np.int64]  # (N,) rows of one number begin with the same prompt
    prompts: NDArray[np.int64]  # (N,) its tokens
    experts: NDArray[np.int16] | None = None  # (L, N, T, K) that the sampler chose, -1 where the router shall
    shares: bool = False  # whether a pass computes each prompt once
    drawn: NDArray[np.float32] | None = None  # what the engine said, where `sampled` is the training forward's
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
            groups=self.groups[index],
            prompts=self.prompts[index],
            experts=None if self.experts is None else self.experts[:, index, :width],
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
    return GroupBatch(
        tokens=tokens,
        mask=mask,
        sampled=sampled,
        valid=valid,
        advantages=rewards.numpy(),
        truncated=np.array([e.truncated for e in episodes]),
        groups=same_prompts(episodes),
        prompts=np.array([len(e.prompt) for e in episodes]),
        experts=padded_experts(episodes, width) if config.replay_routing else None,
    )


def same_prompts(episodes: Sequence[Episode]) -> NDArray[np.int64]:
    """A number for each episode, equal where prompts are equal."""
    numbers: dict[tuple[int, ...], int] = {}
    return np.array([numbers.setdefault(tuple(e.prompt), len(numbers)) for e in episodes], np.int64)


def padded_experts(episodes: Sequence[Episode], width: int) -> NDArray[np.int16]:
    """(L, N, T, K) of every answer's record; padding is left to the router."""
    records = [e.experts for e in episodes if e.experts is not None]
    if len(records) < len(episodes):
        raise ValueError("grpo.replay_routing needs the experts of every answer; sample with replay_routing on")
    layers, _, chosen = records[0].shape
    table = np.full((layers, len(episodes), width, chosen), UNKNOWN, np.int16)
    for row, record in enumerate(records):
        table[:, row, : record.shape[1]] = record.numpy()
    return table


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
        groups=np.zeros(1, np.int64),
        prompts=np.ones(1, np.int64),
    )


def in_micro_batches(batch: GroupBatch, rows: NDArray[np.int64], size: int) -> list[GroupBatch]:
    """Micro-batches of at most `size` rows; never none.

    Rows of like length go together, so that little is padding; where prompts are long, rows of like prompt, so that
    each is computed once.
    """
    if not len(rows):
        return [nothing()]
    shares = repeated_share(batch, rows) >= SHARING_PAYS
    lengths = batch.valid[rows].sum(1)
    if shares:
        longest = {group: lengths[batch.groups[rows] == group].max() for group in np.unique(batch.groups[rows])}
        ordered = rows[np.lexsort((batch.groups[rows], [longest[group] for group in batch.groups[rows]]))]
    else:
        ordered = rows[np.argsort(lengths, kind="stable")]
    cut = [batch.rows(ordered[at : at + size]) for at in range(0, len(ordered), size)]
    return [replace(micro, shares=True) for micro in cut] if shares else cut


def repeated_share(batch: GroupBatch, rows: NDArray[np.int64]) -> float:
    """The share of the rows' tokens that repeat a prompt which another row has."""
    _, first = np.unique(batch.groups[rows], return_index=True)
    prompts = batch.prompts[rows]
    return float((prompts.sum() - prompts[first].sum()) / max(1.0, batch.valid[rows].sum()))
