"""How far decoding with rounded numbers leads: logits beside those of the model's own, on the same text."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fathom.model import Transformer

ROWS, LENGTH = 2, 64  # of the random text on which they are compared


@dataclass(frozen=True)
class RoundingReport:
    """Rounded logits beside exact ones, on the same text."""

    error: float  # the logits' root mean square difference, as a share of their spread: both without their row's mean
    agreement: float  # share of places where the same token is the likeliest
    places: int

    def __str__(self) -> str:
        return (
            f"logits err by {self.error:.2%} of their spread, and {self.agreement:.1%} of the likeliest tokens are "
            f"those of the model as it is, over {self.places} places"
        )


def random_text(model: Transformer) -> Int[Tensor, "B T"]:
    """Tokens that every model can read."""
    config, generator = model.config, torch.Generator().manual_seed(0)
    return torch.randint(config.vocab_size, (ROWS, min(LENGTH, config.max_position_embeddings)), generator=generator)


def compare(exact: Float[Tensor, "N V"], coarse: Float[Tensor, "N V"]) -> RoundingReport:
    """Logits of the model as it is, and of the same model with something rounded."""
    spread = (exact - exact.mean(-1, keepdim=True)).square().mean().sqrt()
    difference = exact - coarse
    error = (difference - difference.mean(-1, keepdim=True)).square().mean().sqrt() / spread
    agreement = (exact.argmax(-1) == coarse.argmax(-1)).float().mean()
    return RoundingReport(float(error), float(agreement), len(exact))
