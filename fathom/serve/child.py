"""A server that runs as a child of this process: its lines, its end."""

import contextlib
import logging
import os
import signal
import subprocess
import threading
from collections import deque
from collections.abc import Mapping, Sequence

log = logging.getLogger("fathom.serve")
LAST_LINES = 30  # that are shown when it ends unasked
PATIENCE_S = 15.0  # between SIGTERM and SIGKILL


class Child:
    """A program in a process group of its own, which Ctrl-C in our terminal does not reach: we end it, after draining.

    Its lines go to the log as they come.
    """

    def __init__(self, name: str, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self.name, self._last, self._ending = name, deque[str](maxlen=LAST_LINES), False
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=dict(environment),
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, name=name, daemon=True)
        self._reader.start()

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self._process.poll() is None

    @property
    def ending(self) -> str:
        """How it ended, with its last lines."""
        lines = "".join(f"\n  {line}" for line in self._last)
        return f"{self.name} ended with code {self._process.poll()}; its last lines:{lines or ' none'}"

    def end(self) -> None:
        """SIGTERM, then SIGKILL for whatever of its group is left."""
        self._ending = True
        self._signal(signal.SIGTERM, whole=False)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(PATIENCE_S)
        self._signal(signal.SIGKILL, whole=True)
        self._process.wait()
        self._reader.join(PATIENCE_S)

    def _signal(self, number: int, whole: bool) -> None:
        with contextlib.suppress(ProcessLookupError):
            if whole:  # workers that outlived it; the group keeps its number while any of them lives
                os.killpg(self._process.pid, number)
            elif self.alive:
                os.kill(self._process.pid, number)

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._last.append(line.rstrip())
            log.info("%s: %s", self.name, line.rstrip())
        self._process.wait()
        if not self._ending:
            log.error("%s", self.ending)
