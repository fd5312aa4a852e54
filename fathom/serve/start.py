"""What can be refused before anything slow is imported: a second after the command, not eight. Imports no torch."""

import socket
from importlib.util import find_spec
from pathlib import Path

from fathom.checkpoint.find import find_checkpoint, holds_weights, newest_of_run
from fathom.runs import Run
from fathom.serve.engines import engine_program, require_flags
from fathom.serve.options import ServeOptions, read_keys

PACKAGES = ("fastapi", "uvicorn", "pydantic", "prometheus_client", "httpx")  # of the extra `serve`


def require_start(source: Path, options: ServeOptions) -> None:
    """Raise ValueError for packages, keys, an engine or a model that are not there, OSError for a taken address.

    Weights are not read, so that a broken model is told of later, by whoever loads it.
    """
    require_packages()
    read_keys(options)
    if options.engine != "fathom":
        require_flags(options)
        engine_program(options)
        find_checkpoint(source)
    elif not holds_weights(source):
        require_run(source)
    bind(options.host, options.port).close()


def require_packages() -> None:
    """Raise ValueError where the extra is not installed. Looks only, as imports would bring torch in."""
    if missing := [name for name in PACKAGES if find_spec(name) is None]:
        raise ValueError(f"serving needs the package {missing[0]}; pip install 'fathomlm[serve]'")


def require_run(source: Path) -> None:
    """Raise ValueError where the directory is no run, or none with a trained model."""
    run = Run(source)
    _ = run.config
    newest_of_run(run)


def bind(host: str, port: int) -> socket.socket:
    """A socket that has its address; OSError where that is taken or not this machine's."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio sends at once (TCP_NODELAY) where it is told that this is TCP; else answers wait 40 ms for an ACK
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
    except OSError as error:
        sock.close()
        raise OSError(error.errno, f"cannot listen on {host}:{port} ({error.strerror}); give another --port") from error
    return sock
