"""Processes killed at random moments under torchrun, which starts them again; the weights are those of a calm run."""

import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

from fathom.runs import Run

# A tiny model through the loop that every training goes through; checkpoints in parts behind every second step.
SCRIPT = textwrap.dedent("""
    import sys, time
    from dataclasses import replace
    from pathlib import Path
    import numpy as np, torch
    from fathom.checkpoint.state import weights_hash
    from fathom.config import *
    from fathom.model import Transformer
    from fathom.parallel.world import launch
    from fathom.runs import Run
    from fathom.text.packing import Batch
    from fathom.train.loop import Place, train_language

    MODEL = ModelConfig(vocab_size=23, hidden_size=16, num_hidden_layers=1, attention=AttentionConfig(
        num_attention_heads=2, num_key_value_heads=2, kv_lora_rank=6, qk_nope_head_dim=4, qk_rope_head_dim=4,
        v_head_dim=4), moe=MoEConfig(moe_intermediate_size=8, bias_update_speed=0.01))
    TRAIN = TrainConfig(steps=int(sys.argv[2]), batch_rows=4, micro_batch_rows=4, seq_len=6, save_every=2,
        validate_every=0, optimizer=OptimizerConfig(lr=1e-3, ema_decay=0.5), schedule=ScheduleConfig(warmup_steps=1))

    def train(world, path, pause):
        model = Transformer(MODEL)
        model.initialise(torch.Generator().manual_seed(0))

        def rows_of(step, rows):
            time.sleep(pause)
            tokens = np.random.default_rng(step).integers(1, 23, (rows, 7))
            batch = Batch(tokens=tokens[:, :-1], targets=tokens[:, 1:], weights=np.ones((rows, 6), np.float32),
                positions=np.tile(np.arange(6), (rows, 1)), segments=np.zeros((rows, 6), np.int64))
            share = rows // world.size
            return batch.rows(world.rank * share, (world.rank + 1) * share)

        place = Place(Run(path), "pretrain", replace(world, layout=ParallelConfig(checkpoint="sharded")))
        state = train_language(place, TRAIN, model, rows_of)
        if world.is_main:
            averages = [float(copy.double().sum()) for copy in state.copies["ema"]]
            Path(path, "end.json").write_text(__import__("json").dumps([weights_hash(model), averages]))

    if __name__ == "__main__":
        launch(2, "cpu", train, Path(sys.argv[1]), float(sys.argv[3]))
""")


def start(script: Path, out: Path, steps: int, pause: float, restarts: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += [f"--max-restarts={restarts}", "--monitor-interval=0.1", str(script), str(out), str(steps), str(pause)]
    with out.with_suffix(".log").open("wb") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)


def workers_of(agent: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """The processes that train; those that have ended and are not yet collected do not."""
    try:
        children = psutil.Process(agent.pid).children()
        return [child for child in children if child.status() != psutil.STATUS_ZOMBIE and "script.py" in _words(child)]
    except psutil.NoSuchProcess:
        return []


def _words(process: psutil.Process) -> str:
    return " ".join(process.cmdline())


def steps_done(out: Path) -> int:
    """Finished steps that the run has ever written down, those that were done again counted again."""
    lines = (out / "metrics.jsonl").read_text().splitlines() if (out / "metrics.jsonl").exists() else []
    return len(lines)


def kill(agent: subprocess.Popen[bytes], out: Path, rng: random.Random, deadline: float) -> None:
    """Kill one worker: mostly some tenths of a second after its world's first step, now and then while it starts."""
    before = {worker.pid for worker in workers_of(agent)}
    is_early = rng.random() < 0.2
    known = steps_done(out)
    while len(workers_of(agent)) < 2 or (not is_early and steps_done(out) <= known):
        assert time.monotonic() < deadline, out.with_suffix(".log").read_text()[-3000:]
        assert agent.poll() is None, out.with_suffix(".log").read_text()[-3000:]
        time.sleep(0.02)
    time.sleep(rng.uniform(0.0, 0.4))
    victim = rng.choice(workers_of(agent))
    victim.send_signal(signal.SIGKILL)
    while victim.pid in {worker.pid for worker in workers_of(agent)} or before & {w.pid for w in workers_of(agent)}:
        assert time.monotonic() < deadline, out.with_suffix(".log").read_text()[-3000:]
        time.sleep(0.02)


@pytest.mark.ranks
@pytest.mark.parametrize(("kills", "steps"), [(3, 50), pytest.param(20, 250, marks=pytest.mark.slow)])
def test_killed_processes_go_on_to_the_weights_of_an_unbroken_run(tmp_path: Path, kills: int, steps: int) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    calm, stormy = tmp_path / "calm", tmp_path / "stormy"
    agents = [start(script, calm, steps, 0.0, 0), start(script, stormy, steps, 0.05, kills + 1)]
    try:
        rng = random.Random(kills)
        for _ in range(kills):
            kill(agents[1], stormy, rng, time.monotonic() + 60)
        for agent, out in zip(agents, (calm, stormy), strict=True):
            assert agent.wait(timeout=90) == 0, out.with_suffix(".log").read_text()[-3000:]
    finally:
        for agent in agents:
            if agent.poll() is None:
                os.killpg(agent.pid, signal.SIGTERM)  # the agent ends its workers
                agent.wait(timeout=60)
    assert json.loads((stormy / "end.json").read_text()) == json.loads((calm / "end.json").read_text())
    assert [line["step"] for line in Run(stormy).read_metrics("pretrain")] == list(range(1, steps + 1))
    losses = [[line["loss"] for line in Run(out).read_metrics("pretrain")] for out in (calm, stormy)]
    assert losses[0] == losses[1]
