"""Nobody waits for ever: when no step ends, every process writes down where it is, the laggards are named, all end."""

import faulthandler
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType

from fathom.runs import write_whole

log = logging.getLogger(__name__)

EXIT_CODE = 79
TICKS = 8  # looks at the clock within the time that a step may take
OWN_THREADS = ("watchdog", "checkpoint", "AsyncCheckpointExecutor")
COLLECTIVES = ("torch/distributed/distributed_c10d.py", "torch/distributed/_functional_collectives.py")


@dataclass(frozen=True)
class Pulse:
    """What a process last said of itself."""

    rank: int
    step: int  # finished steps
    since: float  # seconds from the end of the last step to this pulse
    said_at: float  # seconds since the epoch
    place: str = ""  # file, line and function that the process hangs in; nothing while it does not
    waits: bool = False  # for another process, in a collective


class Watchdog:
    """Watches the steps of one process among `size`, and says so in files that the others read.

    The step itself costs an assignment: a thread does the rest. With `seconds` zero there is no thread.
    """

    def __init__(self, directory: Path, rank: int, size: int, seconds: float) -> None:
        self.directory, self.rank, self.size, self.seconds = directory, rank, size, seconds
        self._last = (0, time.monotonic())
        self._ended = threading.Event()

    def beat(self, step: int) -> None:
        """A step has ended."""
        self._last = (step, time.monotonic())

    @contextmanager
    def watching(self, step: int = 0) -> Generator[None]:
        """Watch while the block runs, `step` steps being finished."""
        if not self.seconds:
            yield
            return
        self.beat(step)
        self._ended.clear()
        self.directory.mkdir(parents=True, exist_ok=True)
        with self._stacks.open("w") as stacks:
            thread = threading.Thread(target=self._watch, args=(stacks.fileno(),), name="watchdog", daemon=True)
            thread.start()
            try:
                yield
            finally:
                self._ended.set()
                thread.join()
                faulthandler.cancel_dump_traceback_later()

    @property
    def _stacks(self) -> Path:
        return self.directory / f"stacks-{self.rank:05d}.txt"

    def _watch(self, stacks: int) -> None:
        while not self._ended.wait(self.seconds / TICKS):
            # where this thread cannot run either, because some C code keeps Python's lock, faulthandler's can
            faulthandler.dump_traceback_later(1.5 * self.seconds, exit=True, file=stacks)
            self._say(self._pulse())
            if time.monotonic() - self._last[1] > self.seconds:
                self._give_up(stacks)

    def _pulse(self, place: str = "", waits: bool = False) -> Pulse:
        step, at = self._last
        return Pulse(self.rank, step, time.monotonic() - at, time.time(), place, waits)

    def _say(self, pulse: Pulse) -> None:
        write_whole(self.directory / f"pulse-{self.rank:05d}.json", json.dumps(asdict(pulse)))

    def _give_up(self, stacks: int) -> None:
        """Write all stacks, hear the others, name the laggards, and end this process; nothing else would."""
        faulthandler.dump_traceback(file=stacks, all_threads=True)
        place, waits = _whereabouts()
        self._say(self._pulse(place, waits))
        time.sleep(2 * self.seconds / TICKS)  # until the others have said where they are
        told = tell(read_pulses(self.directory, self.size), self.size, 4 * self.seconds / TICKS)
        log.error(
            "no step has ended for %.0f s on rank %d: %s; stacks of all threads lie in %s",
            time.monotonic() - self._last[1],
            self.rank,
            told,
            self.directory,
        )
        sys.stderr.flush()
        os._exit(EXIT_CODE)


def read_pulses(directory: Path, size: int) -> list[Pulse]:
    """The pulses of the processes below `size` that have said anything, in the order of ranks."""
    files = [directory / f"pulse-{rank:05d}.json" for rank in range(size)]
    return [Pulse(**json.loads(file.read_text(encoding="utf-8"))) for file in files if file.exists()]


def tell(pulses: Sequence[Pulse], size: int, patience: float) -> str:
    """Which processes keep the others waiting: silent ones, those steps behind, those that wait for nobody.

    Silent is who has said nothing for `patience` seconds before the newest word.
    """
    newest = max((pulse.said_at for pulse in pulses), default=0.0)
    heard = [pulse for pulse in pulses if newest - pulse.said_at <= patience]
    silent = sorted(set(range(size)) - {pulse.rank for pulse in heard})
    if silent:
        return f"nothing is heard of {_ranks(silent)}"
    least = min(pulse.step for pulse in heard)
    behind = [pulse for pulse in heard if pulse.step == least]
    if len(behind) < len(heard):
        return f"behind, with {least} finished steps: {_ranks([pulse.rank for pulse in behind])}"
    busy = [pulse for pulse in heard if not pulse.waits]
    if busy and len(busy) < len(heard):
        places = ", ".join(sorted({pulse.place for pulse in busy if pulse.place}))
        return f"the others wait for {_ranks([pulse.rank for pulse in busy])}, in {places or 'a step'}"
    latest = min(heard, key=lambda pulse: pulse.since)
    return f"all {size} are in step {least + 1}; rank {latest.rank} was the last to begin it"


def _ranks(ranks: Sequence[int]) -> str:
    return ("rank " if len(ranks) == 1 else "ranks ") + ", ".join(map(str, ranks))


def _whereabouts() -> tuple[str, bool]:
    """Where the main thread is, and whether a thread waits in a collective.

    Some wait in a call of torch.distributed's own that Python does not see; then its caller there is the innermost.
    """
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    frames = sys._current_frames()  # pyright: ignore[reportPrivateUsage]
    others = [frame for ident, frame in frames.items() if not names.get(ident, "").startswith(OWN_THREADS)]
    waits = any(
        "torch/distributed/" in innermost.f_code.co_filename
        or any(call.f_code.co_filename.endswith(COLLECTIVES) for call in _calls(innermost))
        for innermost in others
    )
    inner = frames[threading.main_thread().ident or 0]
    return f"{inner.f_code.co_filename}:{inner.f_lineno} ({inner.f_code.co_name})", waits


def _calls(frame: FrameType | None) -> Generator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back
