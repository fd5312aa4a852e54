"""What a pass notes of the routing of its tokens, and what it repeats."""

from jaxtyping import Float, Int
from torch import Tensor


class RoutingTrace:
    """What a pass notes of the routing, and what it repeats; an entry per MoE layer in the order of the layers.

    With `replay` a token goes to the experts that were recorded for it, -1 where none were, while its gate weights
    still follow from the live router: selections of the sampler, gradients of the trainer (R3). Layers behind the last
    recorded one, those of the MTP modules, choose for themselves.
    """

    # no dataclass: FSDP copies those that it finds among a layer's arguments, and notes in a copy are lost
    def __init__(
        self,
        valid: Float[Tensor, "B T"] | None = None,
        replay: Int[Tensor, "L B T K"] | None = None,
        records: bool = False,
    ) -> None:
        self.valid = valid  # tokens that count; None counts all
        self.replay = replay  # experts to take; None chooses all
        self.records = records  # whether `experts` is filled
        self.experts: list[Tensor] = []  # (B, T, K) chosen or replayed
        self.loads: list[Tensor] = []  # (E,) token-expert pairs
        self.balance: list[Tensor] = []  # sequence-wise balance losses, not yet weighted
