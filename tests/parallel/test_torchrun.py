"""What torchrun says, and how soon, when one of its processes fails."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = """
from fathom.parallel.world import launch

def work(world):
    world.barrier()
    if world.rank == 1:
        raise ValueError("rank 1 has had enough")
    world.barrier()  # for ever, had the agent not an end to it

if __name__ == "__main__":
    launch(2, "cpu", work)
"""


@pytest.mark.ranks
def test_torchrun_ends_all_processes_within_seconds_and_names_the_first_that_failed(tmp_path: Path) -> None:
    script = tmp_path / "job.py"
    script.write_text(SCRIPT)
    run = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", str(script)]
    started = time.monotonic()
    done = subprocess.run(run, capture_output=True, text=True, timeout=120, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode != 0
    assert time.monotonic() - started < 60  # most of it goes into starting
    root = done.stderr.split("Root Cause")[1]
    assert "rank      : 1" in root
    assert "rank 1 has had enough" in root
