"""`fathom serve --engine`: export the model, start the engine on it, stand in front, and end both in good order."""

import logging
import os
import secrets
import socket
import threading
import time
from pathlib import Path

import httpx

from fathom.checkpoint.find import find_checkpoint, holds_weights
from fathom.checkpoint.hub import export_checkpoint
from fathom.serve.child import Child
from fathom.serve.engines import engine_flags, engine_program, require_flags
from fathom.serve.front import Front, build_front
from fathom.serve.options import KEY_VARIABLE, ServeOptions, read_keys
from fathom.serve.server import Running, listen, name_of, signals

log = logging.getLogger("fathom.serve")
EXPORTED = "exported"  # folder of a run


def serve_engine(source: Path, options: ServeOptions) -> None:
    """Serve until SIGTERM or Ctrl-C, then let finish what was let in and end the engine.

    Raises ValueError for a flag or an engine that is not there, RuntimeError where the engine ends before it is up.
    """
    keys = read_keys(options)
    require_flags(options)
    program = engine_program(options)
    model, name = exported(source), options.name or name_of(source)
    with listen(options.host, options.port) as sock, signals() as asked_to_end:
        port, key = free_port(), secrets.token_urlsafe(24)
        command = [*program, *engine_flags(options, model, name, port)]
        log.info("starting %s", " ".join(command))
        child = Child(options.engine, command, environment(key))
        try:
            front = Front(options, name, child, f"http://127.0.0.1:{port}", key)
            running = Running(build_front(front, keys), front, sock)
            running.start()
            try:
                if _wait_until_up(child, port, asked_to_end):
                    log.info("serving %s at %s", name, running.url)
                while not asked_to_end.wait(timeout=0.5):
                    if running.ended:
                        raise RuntimeError("the server ended unasked; its log says why")
                log.info("no more requests are let in; those inside have %g s to finish", options.drain_s)
            finally:
                running.stop(options.drain_s)
        finally:
            child.end()


def exported(source: Path) -> Path:
    """A directory that engines read: a published checkpoint as it is, a run's newest model in bfloat16 beside it.

    What was exported stays in RUN/exported and is taken up again while the run has no newer checkpoint.
    """
    if holds_weights(source) and (source / "tokenizer_config.json").exists():
        return source
    checkpoint = find_checkpoint(source)
    run = checkpoint.parent.parent if checkpoint.name.startswith("step_") else source
    out = run / EXPORTED / f"{checkpoint.parent.name}-{checkpoint.name}-bfloat16"
    if not (out / "config.json").exists():
        log.info("exporting %s to %s", checkpoint, out)
        export_checkpoint(checkpoint, out, "bfloat16")
    return out


def environment(key: str) -> dict[str, str]:
    """The child's: without our clients' keys, and with one that keeps others on this machine from asking vLLM."""
    ours = {name: value for name, value in os.environ.items() if name != KEY_VARIABLE}
    return ours | {"VLLM_API_KEY": key, "PYTHONUNBUFFERED": "1"}


def free_port() -> int:
    """One that nobody listens on just now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def _wait_until_up(child: Child, port: int, asked_to_end: threading.Event) -> bool:
    """Whether the engine came up, however long it loads; False where it was asked to end before."""
    began = time.monotonic()
    while not asked_to_end.wait(timeout=0.1):
        if not child.alive:
            raise RuntimeError(child.ending)
        try:
            if httpx.get(f"http://127.0.0.1:{port}/health", timeout=2.0, trust_env=False).status_code == 200:
                log.info("%s is up after %.0f s", child.name, time.monotonic() - began)
                return True
        except httpx.HTTPError:
            continue
    return False
