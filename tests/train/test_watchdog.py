"""Processes that hang: named, with their stacks, and ended."""

import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from fathom.train.watchdog import EXIT_CODE, Pulse, Watchdog, read_pulses, tell

NOW = 1000.0


def pulse(rank: int, step: int = 7, since: float = 5.0, said_at: float = NOW, place: str = "", waits: bool = False):
    return Pulse(rank, step, since, said_at, place, waits)


def test_who_keeps_the_others_waiting_is_told() -> None:
    assert tell([pulse(0), pulse(2)], 3, 1.0) == "nothing is heard of rank 1"
    assert tell([pulse(0), pulse(1, said_at=NOW - 2), pulse(2)], 4, 1.0) == "nothing is heard of ranks 1, 3"
    assert tell([pulse(0, step=8), pulse(1), pulse(2, step=8)], 3, 1.0) == "behind, with 7 finished steps: rank 1"
    here = [pulse(0, waits=True), pulse(1, place="data.py:3 (rows)"), pulse(2, waits=True)]
    assert tell(here, 3, 1.0) == "the others wait for rank 1, in data.py:3 (rows)"
    assert tell([pulse(0, waits=True), pulse(1, since=4.0, waits=True)], 2, 1.0) == (
        "all 2 are in step 8; rank 1 was the last to begin it"
    )


def test_steps_that_end_are_left_in_peace_and_none_asked_for_costs_no_thread(tmp_path: Path) -> None:
    dog = Watchdog(tmp_path / "watch", 0, 1, seconds=0.4)
    with dog.watching(step=3):
        deadline = time.monotonic() + 1.0
        for step in range(4, 1000):
            dog.beat(step)
            time.sleep(0.02)
            if time.monotonic() > deadline:
                break
    (said,) = read_pulses(tmp_path / "watch", 1)
    assert 3 < said.step < 1000
    with Watchdog(tmp_path / "none", 0, 1, seconds=0.0).watching():
        pass
    assert not (tmp_path / "none").exists()


SCRIPT = textwrap.dedent("""
    import logging, os, signal, sys, time
    from pathlib import Path
    from fathom.parallel.world import World, launch
    from fathom.train.watchdog import Watchdog

    def dawdle():
        time.sleep(60)

    def work(world, directory, how):
        dog = Watchdog(directory, world.rank, world.size, 2.0)
        with dog.watching():
            for step in range(1, 4):
                world.barrier()
                dog.beat(step)
            if world.rank == 1:
                dawdle() if how == "sleeps" else os.kill(os.getpid(), signal.SIGSTOP)
            world.barrier()

    if __name__ == "__main__":
        logging.basicConfig()
        launch(2, "cpu", work, Path(sys.argv[1]), sys.argv[2])
""")


@pytest.mark.ranks
@pytest.mark.parametrize(
    ("how", "told"),
    [("sleeps", r"the others wait for rank 1, in .*script\.py:.*dawdle"), ("stops", "nothing is heard of rank 1")],
)
def test_a_process_that_hangs_is_named_and_all_end(tmp_path: Path, how: str, told: str) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    watch = tmp_path / "watch"
    command = [sys.executable, str(script), str(watch), how]
    log = tmp_path / "log"
    with log.open("wb") as errors:
        process = subprocess.Popen(command, stderr=errors, start_new_session=True)
    try:
        assert process.wait(timeout=90) == EXIT_CODE
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # the stopped one too: the group is this test's own
    assert re.search(told, log.read_text())
    stacks = (watch / "stacks-00000.txt").read_text()
    assert "barrier" in stacks
    if how == "sleeps":
        assert "dawdle" in (watch / "stacks-00001.txt").read_text()
