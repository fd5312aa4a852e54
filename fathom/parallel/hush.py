"""Two warnings of torch's that every process would print, and that are known to be harmless here."""

import logging
import warnings

REDISTRIBUTE = "torch.distributed.tensor._redistribute"


def hush() -> None:
    """Hold both back, each by its own words alone: whatever else torch says is heard. Saying so twice changes nothing.

    Experts that are spread and then sharded come whole again by one gathering an axis, which torch calls slow and, as
    sums would be, perhaps unequal: it happens at exports and at the end of a stage, and gathering adds nothing up.
    Shared experts return a view, which would lose FSDP's hook if anyone changed it in place: `MoE` adds it to another
    tensor, into a third.
    """
    logging.getLogger(REDISTRIBUTE).addFilter(_is_worth_saying)
    warnings.filterwarnings("ignore", r"FSDP2-wrapped module \(FSDPSwiGLU\) returned a view tensor", UserWarning)


def _is_worth_saying(record: logging.LogRecord) -> bool:
    text = record.getMessage()
    return not ("sequential all_gather operations" in text and "_StridedShard" in text)
