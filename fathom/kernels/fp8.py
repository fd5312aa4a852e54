"""What a layer computed in FP8 keeps beside its weights: its name, its exceptions, the codes of its weights."""

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from fathom.kernels.quant import E4M3_MAX, WeightCodes, quantize_weight

Kept = Literal["e4m3", "e5m6", "bfloat16"]


@dataclass
class TensorCount:
    """How one tensor took quantisation, summed over the passes in which it was watched."""

    numbers: int = 0
    underflowed: int = 0  # not zero, but their code is
    saturated: int = 0  # their code is the largest, 448; one of every strip is by design

    def add(self, x: Tensor, codes: Tensor) -> None:
        """Count one more pass."""
        magnitude = codes.float().abs()
        self.numbers += x.numel()
        self.underflowed += int(((magnitude == 0) & (x != 0)).sum())
        self.saturated += int((magnitude == E4M3_MAX).sum())


@dataclass
class Fp8Layer:
    """The FP8 arithmetic of one layer (V3 3.3)."""

    name: str
    # what the weight's gradient reads of the input: codes made in the forward pass, or the input itself, rounded or not
    kept: Kept = "e4m3"
    fp8_wgrad: bool = True  # False: the weight's gradient is a product of what the layer was given, not of codes
    watch: dict[str, TensorCount] | None = None  # counts per tensor; None does not count
    _codes: dict[int, tuple[tuple[int, int], WeightCodes]] = field(
        default_factory=dict[int, tuple[tuple[int, int], WeightCodes]]
    )
    _scales: dict[str, Tensor] = field(default_factory=dict[str, Tensor])  # of the newest pass, where nobody waited

    def codes(self, weight: Tensor) -> WeightCodes:
        """The weight in codes, made anew when it has changed: once per optimizer step.

        A change is seen by the tensor's version. Writes through `.data` and torch's fused AdamW leave that as it is;
        `train_step` counts it on.
        """
        state = (weight._version, weight.data_ptr())
        known = self._codes.get(id(weight))
        if known is None or known[0] != state:
            with torch.no_grad():
                known = self._codes[id(weight)] = (state, quantize_weight(weight.detach()))
            self.check("weight", weight.detach(), known[1].codes, known[1].scales)
        return known[1]

    def forget(self) -> None:
        """Drop the codes of the weights."""
        self._codes.clear()

    def not_finite(self) -> list[str]:
        """The tensors of the newest passes that held an infinite number or a NaN, where `check` did not wait to see."""
        return [what for what, scales in self._scales.items() if not bool(scales.isfinite().all())]

    def check(self, what: str, x: Tensor, codes: Tensor, scales: Tensor) -> None:
        """Raise RuntimeError where x holds an infinite number or a NaN; count, if the layer is watched.

        On a GPU only watched layers look, because the answer would have to be waited for. Elsewhere NaN travels on
        into the gradient's norm, which stops training, and the scales are kept, so that `not_finite` can name it then.
        """
        if self.watch is not None:
            self.watch.setdefault(what, TensorCount()).add(x, codes)
        if self.watch is None and scales.is_cuda:
            self._scales[what] = scales
        if (self.watch is not None or not scales.is_cuda) and not bool(scales.isfinite().all()):
            bad = int((~x.isfinite()).sum())
            raise RuntimeError(
                f"the {what} of {self.name} holds {bad} numbers that are infinite or NaN, out of {x.numel()}; "
                "they have no FP8 code, and training has diverged before this layer"
            )
