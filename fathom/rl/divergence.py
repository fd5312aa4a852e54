"""Estimates of KL(policy || reference) from the tokens that the policy drew."""

from jaxtyping import Float
from torch import Tensor

from fathom.rl.ratios import bounded_exp


def kl(
    logp: Float[Tensor, "*N"],
    ref_logp: Float[Tensor, "*N"],
    estimator: str,
    old_logp: Float[Tensor, "*N"] | None = None,
) -> Float[Tensor, "*N"]:
    """Per-token estimate; all have the true value in expectation but k2, whose is near it for near policies.

    In a loss "k2", (log p - log r)^2 / 2, and "k3_weighted", k3 times the ratio to the policy that sampled (V3.2 3.1),
    have the true gradient in expectation; "k3", r/p - log(r/p) - 1 (DeepSeekMath eq. 4), has another one, and
    "k1", log p - log r, none at all: it is for rewards. `old_logp` is the log-probability at sampling; None takes the
    current one.
    """
    logp, ref_logp = logp.float(), ref_logp.float()
    gap = ref_logp - logp
    match estimator:
        case "k1":
            return -gap
        case "k2":
            return gap.square() / 2
        case "k3":
            return bounded_exp(gap) - gap - 1
        case "k3_weighted":
            old_logp = logp.detach() if old_logp is None else old_logp.float()
            return bounded_exp(logp - old_logp) * (bounded_exp(gap) - gap - 1)
        case _:
            raise ValueError(f"kl_estimator={estimator!r} is unknown; choose k1, k2, k3_weighted or k3")
