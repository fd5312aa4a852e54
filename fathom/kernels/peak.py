"""The largest entry of each row, and where it stands."""

from jaxtyping import Float, Int
from torch import Tensor

BLOCK = 64  # entries whose maximum is taken together
FEW = 4  # rows whose largest entries are sooner found one by one


def peak(x: Float[Tensor, "N V"]) -> tuple[Float[Tensor, " N"], Int[Tensor, " N"]]:
    """The largest entry of each row and the first place that holds it.

    On a CPU a maximum is vectorised and its place is not, so the place is sought in the row's best block alone.
    """
    if x.is_cuda or x.shape[1] % BLOCK or x.shape[0] <= FEW:
        value, place = x.max(-1)
        return value, place
    blocks = x.unflatten(1, (-1, BLOCK))  # (N, V / BLOCK, BLOCK)
    value, block = blocks.amax(-1).max(-1)
    best = blocks.gather(1, block.view(-1, 1, 1).expand(-1, 1, BLOCK)).squeeze(1)
    return value, best.argmax(-1).add_(block, alpha=BLOCK)
