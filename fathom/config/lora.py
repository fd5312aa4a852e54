"""Low-rank adapters: training a published model with little memory."""

from dataclasses import dataclass

from fathom.config.checks import require_positive


@dataclass(frozen=True, kw_only=True)
class LoRAConfig:
    """Frozen weights W plus alpha / rank * B A, of which A and B alone are trained (LoRA, arXiv 2106.09685, 4.1)."""

    rank: int = 0  # columns of B and rows of A; 0 trains the weights themselves
    alpha: float = 32.0  # scale of the product, divided by the rank

    def __post_init__(self) -> None:
        if self.rank < 0:
            raise ValueError(f"lora.rank={self.rank} is negative; give a small whole number such as 16, or 0 for none")
        require_positive("lora", alpha=self.alpha)
