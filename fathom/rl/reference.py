"""The policy that a KL term pulls towards."""

import copy
from collections.abc import Sequence

from torch import Tensor

from fathom.config import GRPOConfig
from fathom.train.step import TrainState


class Reference:
    """The starting point, or the policy of every so many optimizer steps; without a KL term none, at no cost."""

    def __init__(self, state: TrainState, config: GRPOConfig) -> None:
        self.every, self.updates = config.objective.reference_reset_steps, config.updates
        self.model = None
        if config.objective.kl_beta:
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
        for own, weight in zip(self.model.state_dict().values(), weights, strict=True):
            own.copy_(weight)
