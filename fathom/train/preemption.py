"""The machine asks for its place back: a signal, a checkpoint behind the step under way, and a clean end."""

import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType

from fathom.parallel.world import World

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
EXIT_CODE = 75  # sysexits' "try again": the run is saved and goes on with --resume


class Preempted(SystemExit):
    """Training has ended at a signal, with everything saved."""

    def __init__(self, name: str) -> None:
        super().__init__(EXIT_CODE)
        self.signal = name


class Notice:
    """Signals that have come to this process."""

    def __init__(self) -> None:
        self._came: set[int] = set()
        self._heeds = False

    @contextmanager
    def heeded(self) -> Generator[None]:
        """Note SIGTERM and SIGUSR1 while the block runs, instead of dying of them; elsewhere than in the main thread,
        where Python takes no signals, nothing changes.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._note) for number in SIGNALS}
        self._heeds = True
        try:
            yield
        finally:
            self._heeds = False
            for number, handler in before.items():
                signal.signal(number, handler)

    def agreed(self, world: World) -> str:
        """The name of a signal that has come to any process, the same on every one; nothing if none has."""
        if not self._heeds:
            return ""
        counts = world.sum_numbers(*(float(number in self._came) for number in SIGNALS))
        return next((number.name for number, count in zip(SIGNALS, counts, strict=True) if count), "")

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._came.add(number)
