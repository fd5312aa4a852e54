"""The policy that a KL term pulls towards."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from fathom.config import GRPOConfig
from fathom.model.parallelize import gathered, is_spread, let_go, local, parallelize
from fathom.parallel.world import World
from fathom.train.step import TrainState


class Reference:
    """The starting point, or the policy of every so many optimizer steps; without a KL term none, at no cost."""

    def __init__(
        self,
        state: TrainState,
        config: GRPOConfig,
        world: World | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """The policy of `state` as it is now; `world` and `dtype` say how to spread it where the policy is spread."""
        self.every, self.updates = config.objective.reference_reset_steps, config.updates
        self.model = None
        if config.objective.kl_beta:
            if world is not None and is_spread(state.model):
                self.model = parallelize(gathered(state.model).requires_grad_(False), world, dtype)
            else:
                self.model = copy.deepcopy(state.model).requires_grad_(False)
            if "reference" not in state.copies:
                state.keep_copy("reference")
            self._take(state.copies["reference"])

    def refresh(self, state: TrainState) -> None:
        """Become the current policy where `reference_reset_steps` optimizer steps are full (R1-Zero: 400).

        A rollout makes `updates` steps and is not split: the first rollout behind the full number counts.
        """
        if self.model is None or not self.every or not state.step:
            return
        done, before = state.step * self.updates, (state.step - 1) * self.updates
        if done // self.every > before // self.every:
            state.keep_copy("reference")
            self._take(state.copies["reference"])

    def _take(self, weights: Sequence[Tensor]) -> None:
        assert self.model is not None
        let_go(self.model)
        for own, weight in zip(self.model.state_dict().values(), weights, strict=True):
            local(own).copy_(local(weight))
