"""What multi-token prediction is worth at decoding: the same greedy texts with and without drafts, timed."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from fathom.config import SamplingConfig
from fathom.infer.engine import Engine
from fathom.infer.request import Request
from fathom.model import Transformer


@dataclass(frozen=True)
class SpeculationReport:
    """Greedy decoding with drafts from the MTP modules (V3 5.4.3), beside decoding without."""

    texts: list[list[int]]  # completions with drafts, stop token included
    equal: bool  # whether decoding without drafts gave the same texts
    acceptance: float  # share of drafts kept, of those that were checked
    acceptance_by_position: list[float]  # the same for the first and further drafts of a step
    tokens_per_step: float  # tokens a row gains per pass of the model with drafts; 1 without
    seconds: float  # with drafts
    plain_seconds: float  # without


def speculate_greedy(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    stop_ids: frozenset[int],
    max_tokens: int,
    rows: int | None = None,
    drafts: int = 1,
) -> SpeculationReport:
    """Complete every prompt greedily with so many drafts a step and without, `rows` at a time (together if not given).

    Raises ValueError if the model has no MTP module.
    """
    greedy = SamplingConfig(temperature=0.0, max_tokens=max_tokens)
    requests = [Request(prompt, greedy, seed=0, stop_ids=stop_ids) for prompt in prompts]
    rows = rows or max(1, len(prompts))
    plain, drafted = Engine(model, rows), Engine(model, rows, drafts=drafts)
    plain.generate(requests[:1])  # libraries set themselves up in their first calls
    plain_texts, plain_seconds = _timed(plain, requests)
    texts, seconds = _timed(drafted, requests)
    return SpeculationReport(
        texts=texts,
        equal=texts == plain_texts,
        acceptance=drafted.acceptance,
        acceptance_by_position=drafted.acceptance_by_position,
        tokens_per_step=drafted.tokens_per_step,
        seconds=seconds,
        plain_seconds=plain_seconds,
    )


def _timed(engine: Engine, requests: Sequence[Request]) -> tuple[list[list[int]], float]:
    start = time.perf_counter()
    texts = [pieces[0].tokens for pieces in engine.generate(requests)]
    return texts, time.perf_counter() - start
