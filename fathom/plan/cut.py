"""Where a pipeline cuts a model: whole layers for every stage, the busiest of which has as little to do as can be."""

from collections.abc import Sequence
from functools import cache
from itertools import accumulate, pairwise

from fathom.config import ModelConfig
from fathom.plan.count import block_parameters, mtp_parameters


@cache
def cut_layers(config: ModelConfig, stages: int) -> Sequence[range]:
    """The layers of every stage, at least one each. Raises ValueError where there are fewer layers than stages.

    Work is counted in weights that one token meets. The last stage has the MTP modules and the head too, which reads a
    state for every token that is predicted; looking an embedding up is no work.
    """
    layers = config.num_hidden_layers
    if not 1 <= stages <= layers:
        raise ValueError(
            f"{stages} stages of whole layers cannot be cut from {layers} layers; choose 1 to {layers} stages"
        )
    sums = [0, *accumulate(block_parameters(config, layer, active=True) for layer in range(layers))]

    @cache
    def best(ends: int, parts: int) -> tuple[float, tuple[int, ...]]:
        """Of the first `ends` layers in `parts` stages: the work of the busiest, and where each stage ends."""
        if parts == 1:
            return sums[ends], (ends,)
        cuts = (
            (max(work, sums[ends] - sums[at]), (*before, ends))
            for at in range(parts - 1, ends)
            for work, before in (best(at, parts - 1),)
        )
        return min(cuts)

    behind = behind_the_layers(config)
    if stages == 1:
        return [range(layers)]
    _, ends = min(
        (max(work, sums[layers] - sums[at] + behind), before)
        for at in range(stages - 1, layers)
        for work, before in (best(at, stages - 1),)
    )
    return [range(start, end) for start, end in pairwise((0, *ends, layers))]


def behind_the_layers(config: ModelConfig) -> int:
    """Weights that a token meets behind the last layer: the MTP modules, and the head once for every prediction."""
    predictions = 1 + config.num_nextn_predict_layers
    return mtp_parameters(config, active=True) + predictions * config.vocab_size * config.hidden_size
