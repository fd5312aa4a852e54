"""What MTP drafts gain at decoding, beside what their formula says of acceptance and the measured cost of passes."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch

from fathom.bench.rounds import WARM_UP, describe_conditions
from fathom.bench.shape import describe_shape, random_tokens
from fathom.config import SamplingConfig
from fathom.infer import Engine, Request
from fathom.infer.speaker import Speaker, load_speaker
from fathom.model import CacheSlots, LatentCache, Transformer
from fathom.parallel.world import choose_device
from fathom.plan.hardware import HARDWARE, Devices, Hardware, hardware_named
from fathom.plan.serving import Launch, Server
from fathom.runs import Run
from fathom.tasks import build, distinct_problems

log = logging.getLogger(__name__)

BATCHES = (1, 8, 64)
COUNTS = (1, 2, 3)
ROUNDS = 15
NEW_TOKENS = 96
PLAIN = 0
AUTO: Literal["auto"] = "auto"
PAYS = 1.15  # predicted speed-up from which drafts are to pay
SHARE = 0.7  # of the predicted gain that is to be measured
MOST_LOST = 0.03  # by drafts="auto" anywhere

Drafts = int | Literal["auto"]


def main(
    peer: str, run: Path | None = None, batches: Sequence[int] = BATCHES, rounds: int = ROUNDS, tokens: int = NEW_TOKENS
) -> dict[str, Any]:
    """Speed with 1 to 3 drafts and with drafts="auto" over that without, for every batch, greedy; see `_judge`.

    On a CPU time is that of this thread: `OMP_NUM_THREADS=1` gives the clearest figures.

    `run` is a run or checkpoint whose model has an MTP module; a run's prompts are its task's. Raises ValueError
    without one, or where a peer is asked for: none of them drafts from the same weights.
    """
    if peer != "none":
        raise ValueError(f"--peer {peer} has no place beside drafts; leave it out")
    if run is None:
        raise ValueError("bench speculation needs a model trained with MTP; give a run or checkpoint as --run")
    conditions = describe_conditions()
    speaker = load_speaker(run, choose_device("auto"))
    model = speaker.model
    server = Server(model=model.config, devices=Devices(count=1, hardware=_hardware(model)), dtype=_dtype(model))
    measured = [_measure(speaker, server, _prompts(run, speaker, rows), rounds, tokens) for rows in batches]
    holds = all(size["holds"] for size in measured)
    shape = describe_shape(model.config)
    return {"bench": "speculation", "model": shape, "batches": measured, "holds": holds, **conditions}


@dataclass(frozen=True)
class Speeds:
    """What one engine reached: medians over rounds."""

    tokens_per_s: float
    step_s: float


def _measure(speaker: Speaker, server: Server, prompts: list[list[int]], rounds: int, tokens: int) -> dict[str, Any]:
    model, rows = speaker.model, len(prompts)
    kinds: tuple[Drafts, ...] = (PLAIN, *COUNTS, AUTO)
    engines: dict[Drafts, Engine] = {kind: Engine(model, rows, drafts=kind) for kind in kinds}
    found: dict[Drafts, list[Speeds]] = {kind: [] for kind in kinds}
    context, drafting = len(prompts[0]) + tokens // 2, list[float]()
    for number in range(WARM_UP + rounds):
        drafting.append(_draft_seconds(model, rows, context))
        for kind, engine in engines.items():
            speeds = _decode(engine, prompts, speaker.stop_ids, tokens)
            if number >= WARM_UP:
                found[kind].append(speeds)
    medians: dict[Drafts, float] = {
        kind: median(each.tokens_per_s for each in speeds) for kind, speeds in found.items()
    }
    acceptance = engines[COUNTS[-1]].acceptance_by_position
    launch = Launch(
        step_s=max(0.0, median(each.step_s for each in found[PLAIN]) - server.step_seconds(rows, context)),
        draft_s=max(0.0, median(drafting) - server.draft_seconds(rows)),
    )
    measured: dict[Drafts, float] = {kind: speed / medians[PLAIN] for kind, speed in medians.items() if kind != PLAIN}
    padded = [*acceptance, *[0.0] * (COUNTS[-1] - len(acceptance))]
    predicted = {drafts: server.mtp_speedup(rows, context, padded, drafts, launch=launch) for drafts in COUNTS}
    verdict = _judge(measured, predicted)
    for drafts in COUNTS:
        log.info("batch %d, %d drafts: %.2fx, predicted %.2fx", rows, drafts, measured[drafts], predicted[drafts])
    log.info("batch %d, drafts=auto: %.2fx; acceptance %s", rows, measured[AUTO], [f"{a:.0%}" for a in acceptance])
    return {
        "rows": rows,
        "plain_tokens_per_s": round(medians[PLAIN]),
        "acceptance_by_position": [round(share, 4) for share in acceptance],
        "launch_us": {"step": round(1e6 * launch.step_s), "draft": round(1e6 * launch.draft_s)},
        "predicted": {str(drafts): round(value, 3) for drafts, value in predicted.items()},
        "measured": {str(drafts): round(value, 3) for drafts, value in measured.items()},
        **verdict,
    }


def _judge(measured: dict[Drafts, float], predicted: dict[int, float]) -> dict[str, Any]:
    """Whether drafts gain SHARE of what is predicted, wherever that is PAYS or more, and "auto" loses no more than
    MOST_LOST."""
    paying = [drafts for drafts, speedup in predicted.items() if speedup >= PAYS]
    short = [drafts for drafts in paying if measured[drafts] - 1 < SHARE * (predicted[drafts] - 1)]
    return {
        "predicted_to_pay": paying,
        "short_of_prediction": short,
        "auto_lost": round(max(0.0, 1 - measured[AUTO]), 4),
        "holds": not short and measured[AUTO] >= 1 - MOST_LOST,
    }


def _decode(engine: Engine, prompts: list[list[int]], stop_ids: frozenset[int], tokens: int) -> Speeds:
    """Decode all prompts until the first is done, without the pass over the prompts: all rows are active throughout."""
    sampling = SamplingConfig(temperature=0.0, max_tokens=tokens)
    for seed, prompt in enumerate(prompts):
        engine.submit(Request(prompt, sampling, seed, stop_ids))
    engine.step()
    steps, drawn, started = 0, engine.decoded, _seconds()
    while not engine.step():
        steps += 1
    seconds = _seconds() - started
    speeds = Speeds((engine.decoded - drawn) / seconds, seconds / (steps + 1))
    engine.clear()
    return speeds


@torch.inference_mode()
def _draft_seconds(model: Transformer, rows: int, context: int, times: int = 9) -> float:
    """Median time of one draft for every row: an MTP module, the head, and the likeliest token, read by the host."""
    weight = model.embedding.weight
    cache = LatentCache(model.config, rows, context + 1, weight.dtype, weight.device)
    hidden = torch.randn(rows, 1, model.config.hidden_size, device=weight.device, dtype=weight.dtype)
    token = torch.zeros(rows, 1, dtype=torch.int64, device=weight.device)
    seconds: list[float] = []
    for _ in range(times):
        started = _seconds()
        slots = CacheSlots.at(cache, 0, token + context, context + 1, fresh=False)
        model.logits(model.predict_further(0, hidden, token, slots=slots)[:, 0]).argmax(-1).tolist()
        seconds.append(_seconds() - started)
    return median(seconds)


def _prompts(path: Path, speaker: Speaker, rows: int) -> list[list[int]]:
    """Questions of a run's task; random tokens where there is no run."""
    if not (path / "config.json").exists() or not speaker.uses_template:
        return random_tokens(speaker.model.config.vocab_size, rows, 32).tolist()
    config = Run(path).config
    problems = distinct_problems(build(config.task), rows, config.seed)
    return [speaker.encode(problem.question) for problem in problems]


def _dtype(model: Transformer) -> Literal["bfloat16", "float32"]:
    return "bfloat16" if model.embedding.weight.dtype == torch.bfloat16 else "float32"


def _hardware(model: Transformer) -> Hardware:
    """The device by its data sheet; a CPU as measured now, with the threads that there are."""
    device = model.embedding.weight.device
    if device.type == "cuda":
        return hardware_named(torch.cuda.get_device_name(device).split()[1])
    a, stretch = torch.randn(512, 512), torch.ones(1 << 25)  # the stretch is larger than any cache
    product, copy = _fastest(lambda: torch.mm(a, a)), _fastest(lambda: stretch.clone())
    flops, bandwidth = 2 * 512**3 / product, 2 * stretch.nbytes / copy
    return replace(HARDWARE["laptop"], name="this CPU", fp32_flops=flops, memory_bandwidth=bandwidth)


def _seconds() -> float:
    """A clock: on a CPU of the time that this thread had, so that whoever shares the machine does not count."""
    return time.perf_counter() if torch.cuda.is_available() else time.thread_time()


def _fastest(work: Callable[[], object], times: int = 5) -> float:
    seconds: list[float] = []
    for _ in range(times):
        started = _seconds()
        work()
        seconds.append(_seconds() - started)
    return min(seconds)
