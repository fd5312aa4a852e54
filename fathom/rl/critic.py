"""The critic of PPO: a second model that says what an answer will earn, token by token."""

import copy
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from fathom.config import CriticConfig
from fathom.model import Transformer
from fathom.parallel.world import World
from fathom.train.optimizer import build_optimizer, load_optimizer_tensors, optimizer_tensors
from fathom.train.step import TrainState

COPY = "critic"  # its name among the copies that a checkpoint keeps
MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # what the optimizer keeps of a weight


class Critic(nn.Module):
    """The policy's trunk with one number for a head, which starts at zero: all answers are worth the same."""

    def __init__(self, policy: Transformer) -> None:
        super().__init__()
        self.trunk = copy.deepcopy(policy).requires_grad_(True)
        self.trunk.mtp = nn.ModuleList()
        if not policy.config.tie_word_embeddings:
            del self.trunk.head
        self.value = nn.Linear(policy.config.hidden_size, 1, device=policy.embedding.weight.device)
        nn.init.zeros_(self.value.weight)
        nn.init.zeros_(self.value.bias)

    def forward(self, tokens: Int[Tensor, "B T"]) -> Float[Tensor, "B T"]:
        """What is still to be earned behind every token."""
        return self.value(self.trunk(tokens).float()).squeeze(-1)


@dataclass
class CriticState:
    """A critic in training; its weights and moments travel in the policy's checkpoints."""

    model: Critic
    optimizer: torch.optim.Optimizer
    step: int = 0  # rollouts that the policy has finished
    copies: dict[str, list[Tensor]] = field(default_factory=dict[str, list[Tensor]])  # none

    @staticmethod
    def start(policy: TrainState, config: CriticConfig, world: World) -> "CriticState":
        """A critic like the policy, or the one that the policy's checkpoint brought."""
        critic = Critic(policy.model).to(world.device)
        state = CriticState(critic, build_optimizer(config.optimizer, critic), policy.step)
        if COPY in policy.copies:
            state._load(policy.copies[COPY])
        state.keep(policy)
        return state

    def keep(self, policy: TrainState) -> None:
        """Put the tensors, not copies of them, where the policy's next checkpoint finds them."""
        self.step = policy.step
        policy.copies[COPY] = [*self.model.state_dict().values(), *optimizer_tensors(self.optimizer).values()]

    def _load(self, kept: list[Tensor]) -> None:
        weights = self.model.state_dict()
        for own, tensor in zip(weights.values(), kept, strict=False):
            own.copy_(tensor)
        moments = kept[len(weights) :]
        if not moments:  # saved before its first step
            return
        count = sum(len(group["params"]) for group in self.optimizer.param_groups)
        names = [f"{index}.{name}" for index in range(count) for name in MOMENTS]
        load_optimizer_tensors(self.optimizer, dict(zip(names, moments, strict=True)))
