"""A server from a model's path: load, listen, answer, and leave in good order."""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import threading
from collections.abc import Generator
from pathlib import Path
from typing import Protocol

import torch
import uvicorn
from fastapi import FastAPI

from fathom.infer.speaker import load_speaker
from fathom.parallel.world import choose_device
from fathom.serve.app import build_app
from fathom.serve.desk import Desk
from fathom.serve.options import ServeOptions, read_keys
from fathom.serve.stages import Stages
from fathom.serve.start import bind

log = logging.getLogger("fathom.serve")
PATIENCE_S = 5  # that connections have to take the last bytes
BACKLOG = 2048  # connections that wait to be taken


def serve(source: Path, options: ServeOptions) -> None:
    """Serve until SIGTERM or Ctrl-C, then finish what was let in; a second Ctrl-C ends at once.

    Raises ValueError for a model or an option that cannot be served, OSError where the address is taken.
    """
    keys = read_keys(options)
    with listen(options.host, options.port) as sock:
        leave_a_core()
        desk = Desk(load_speaker(source, choose_device(options.device)), options, options.name or name_of(source))
        stages = Stages(desk, source)
        running = Running(build_app(stages, source, keys), stages, sock)
        with signals() as asked_to_end:
            running.start()
            log.info("serving %s at %s", desk.name, running.url)
            while not asked_to_end.wait(timeout=0.5):
                if running.ended:
                    raise RuntimeError("the server ended unasked; its log says why")
            log.info("no more requests are let in; those inside have %g s to finish", options.drain_s)
            running.stop(options.drain_s)


def leave_a_core() -> None:
    """Keep torch's threads off one core, for the thread that answers clients.

    Threads of one operation wait for each other by spinning: one that shares its core makes all of them wait. On two
    cores the demo's server wrote a quarter of the tokens a second without this.
    """
    torch.set_num_threads(max(1, min(torch.get_num_threads(), (os.cpu_count() or 1) - 1)))


class Drains(Protocol):
    """What lets requests in, and can stop doing so."""

    async def drain(self, seconds: float) -> None:
        """Let nobody in any more and wait for those inside; after `seconds` the rest fail."""
        ...


class Running:
    """An application that is being served by a thread of its own."""

    def __init__(self, app: FastAPI, desk: Drains, sock: socket.socket) -> None:
        config = uvicorn.Config(
            app,
            http="h11",  # httptools sends chunks to clients of HTTP/1.0, who cannot read them
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=PATIENCE_S,
        )
        self._server, self._desk, self._socket = uvicorn.Server(config), desk, sock
        self._coroutines = (config.get_loop_factory() or asyncio.new_event_loop)()  # uvloop's where it is installed
        self._thread = threading.Thread(target=self._run, name="server", daemon=True)

    @property
    def url(self) -> str:
        """Where it listens."""
        host, port = self._socket.getsockname()[:2]
        return f"http://{f'[{host}]' if ':' in host else host}:{port}"

    @property
    def ended(self) -> bool:
        """Whether nobody is served any more."""
        return not self._thread.is_alive()

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def stop(self, drain_s: float = 0.0) -> None:
        """Let nobody in, wait for those inside, and end."""
        if not self._coroutines.is_closed():
            asyncio.run_coroutine_threadsafe(self._desk.drain(drain_s), self._coroutines).result()
        self._server.should_exit = True
        self._thread.join()

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._coroutines) as runner:
            runner.run(self._server.serve(sockets=[self._socket]))


def listen(host: str, port: int) -> socket.socket:
    """A socket that takes connections; OSError where the address is taken."""
    sock = bind(host, port)
    sock.listen(BACKLOG)
    return sock


@contextlib.contextmanager
def signals() -> Generator[threading.Event]:
    """An event that SIGTERM and Ctrl-C set. The second Ctrl-C is a KeyboardInterrupt as ever."""
    asked = threading.Event()

    def ask(number: int, _: object) -> None:
        if asked.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked.set()

    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def name_of(source: Path) -> str:
    """The model id of what lies at a path."""
    return source.resolve().name
