"""Commands that nobody trusts, in a child process with limits: killable, blind to the network and to our files.

Always: limits of CPU, memory, file size, open files and wall time, an empty environment, a throw-away directory, and an
end for the child and its session. Where the system allows it, through util-linux's `unshare`, also namespaces of its
own: no network, processes that end with it, a read-only view of the system in which our files are not, 16 MiB of disk
in memory, and no rights to undo any of that. Root becomes nobody first, since no limit of processes binds root.
"""

import contextlib
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

Outcome = Literal["done", "timeout", "crash"]
Isolation = Literal["require", "limits"]

INNER = "/tmp/work"  # the throw-away directory as an isolated child sees it
NOBODY = 65534
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
KILL_GRACE = 2.0  # seconds that a killed child has to vanish
PROBE_SECONDS = 20.0


@dataclass(frozen=True)
class Limits:
    """What a child may use."""

    wall_seconds: float = 5.0
    cpu_seconds: int = 5
    memory_bytes: int = 1 << 30  # address space of each process
    file_bytes: int = 1 << 20  # of each file, and of what is read from its output
    processes: int = 32  # threads count; without isolation this does not bind root
    open_files: int = 64
    devices: tuple[str, ...] = ()  # names under /dev that it sees besides null, zero and randomness


@dataclass(frozen=True)
class Finished:
    """How a child ended, and the beginning of what it wrote."""

    outcome: Outcome  # "done": it ended by itself with code 0
    output: bytes
    errors: bytes
    code: int  # exit code; minus the number of the signal that ended it
    seconds: float
    isolated: bool  # from network and files
    cpu_spent: bool = False  # its time-out is that of its CPU time, not of the clock


def run_isolated(
    command: Sequence[str],
    files: Mapping[str, str],
    limits: Limits,
    isolation: Isolation = "require",
    stdin: bytes = b"",
) -> Finished:
    """Run `command` in a directory that holds `files` and vanishes afterwards.

    The word `{dir}` in the command stands for that directory. Raises RuntimeError where the system offers no
    namespaces, unless `isolation` is "limits": the child then has its limits, and could reach files and network.
    """
    require_isolation(isolation)
    isolates = can_isolate()
    with tempfile.TemporaryDirectory(prefix="fathom-child-") as folder, tempfile.TemporaryFile() as source:
        work = Path(folder, "work")
        work.mkdir()
        for name, text in files.items():
            Path(work, name).write_text(text, encoding="utf-8", errors="replace")
        source.write(stdin)
        source.seek(0)
        words = [word.replace("{dir}", INNER if isolates else str(work)) for word in command]
        return _run(
            _in_namespaces(folder, words, limits.devices) if isolates else words,
            work,
            source.fileno(),
            limits,
            isolates,
        )


def require_isolation(isolation: Isolation) -> None:
    """Raise RuntimeError where namespaces are asked for and there are none; ask before the work that would be lost."""
    if isolation == "require" and not can_isolate():
        raise RuntimeError(
            "this system cuts no process off from network and files (unshare of util-linux does not work here); allow "
            "user namespaces, or accept limits alone with --task.isolation limits"
        )


def python_command(script: str, packages: bool = False) -> list[str]:
    """This Python on a script of the directory; deaf to the environment, and to installed packages unless asked."""
    return [sys.executable, "-I", "-B", *([] if packages else ["-S"]), f"{{dir}}/{script}"]


@cache
def can_isolate() -> bool:
    """Whether namespaces work here, found by trying once."""
    with tempfile.TemporaryDirectory(prefix="fathom-probe-") as folder:
        Path(folder, "work").mkdir()
        words = _in_namespaces(folder, ["/bin/sh", "-c", "echo cut off"])
        try:
            done = subprocess.run(words, capture_output=True, timeout=PROBE_SECONDS, env={"PATH": PATH}, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return False
        return done.stdout == b"cut off\n"


def _run(words: Sequence[str], work: Path, source: int, limits: Limits, isolated: bool) -> Finished:
    bounds = _bounds(limits, isolated)
    started = time.monotonic()
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        child = subprocess.Popen(
            words,
            stdin=source,
            stdout=output,
            stderr=errors,
            cwd=work,
            env={"PATH": PATH, "LC_ALL": "C.UTF-8"},
            start_new_session=True,
            preexec_fn=lambda: [resource.setrlimit(kind, bound) for kind, bound in bounds.items()],
        )
        try:
            code, late = child.wait(limits.wall_seconds), False
        except subprocess.TimeoutExpired:
            code, late = -signal.SIGKILL, True
        finally:
            _kill_session(child)
        seconds = time.monotonic() - started
        said = [_beginning(stream.fileno(), limits.file_bytes) for stream in (output, errors)]
    # the soft limit's signal, or the hard one's; a shell in front says so by its exit code
    ended = code - 128 if code > 128 else -code
    spent = not late and (ended == signal.SIGXCPU or (ended == signal.SIGKILL and seconds >= limits.cpu_seconds))
    outcome: Outcome = "timeout" if late or spent else "crash" if code else "done"
    return Finished(outcome, said[0], said[1], code, seconds, isolated, spent)


def _bounds(limits: Limits, isolated: bool) -> dict[int, tuple[int, int]]:
    """Limits of the system's calls, soft and hard, by their number."""
    user = os.getuid() or NOBODY
    bounds = {
        resource.RLIMIT_CPU: (limits.cpu_seconds, limits.cpu_seconds + 1),
        resource.RLIMIT_AS: (limits.memory_bytes, limits.memory_bytes),
        resource.RLIMIT_FSIZE: (limits.file_bytes, limits.file_bytes),
        resource.RLIMIT_NOFILE: (limits.open_files, limits.open_files),
        resource.RLIMIT_CORE: (0, 0),
    }
    if isolated or os.getuid():
        most = _threads_of(user) + limits.processes
        bounds[resource.RLIMIT_NPROC] = (most, most)
    return bounds


def _threads_of(user: int) -> int:
    """Threads that a user runs already: the system counts them together with the child's."""
    count = 0
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                count += len(os.listdir(f"/proc/{entry.name}/task")) if entry.stat().st_uid == user else 0
    return count


def _kill_session(child: "subprocess.Popen[bytes]") -> None:
    """End the child and its session; in namespaces of its own, all that it started ends with it."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(KILL_GRACE)


def _beginning(descriptor: int, most: int) -> bytes:
    os.lseek(descriptor, 0, os.SEEK_SET)
    return os.read(descriptor, most)


def _in_namespaces(folder: str, words: Sequence[str], devices: Sequence[str] = ()) -> list[str]:
    """The command behind a shell that builds its world; `folder` holds `work` and is where the new root is mounted."""
    spaces = ["--net", "--ipc", "--uts", "--pid", "--mount", "--fork", "--kill-child"]
    user = [] if os.getuid() == 0 else ["--user", "--map-root-user"]
    drop = [f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"] if os.getuid() == 0 else []
    return [
        "unshare", *user, *spaces, "/bin/sh", "-c", BUILD, "sh", folder, " ".join(drop), " ".join(devices),
        *_visible(drivers=bool(devices)), "--", *words
    ]  # fmt: skip


def _visible(drivers: bool) -> list[str]:
    """Directories that a Python needs: the system's own, and those of this interpreter and its packages.

    `drivers` adds what is mounted within them: a container gets its libraries of a GPU that way, and the bind of a
    directory leaves such mounts behind.
    """
    own = [sys.prefix, sys.base_prefix, os.path.dirname(os.path.realpath(sys.executable))]
    roots = ["/usr", "/bin", "/sbin", "/lib", "/lib64", "/etc/ld.so.cache", "/etc/alternatives", *own]
    found = [path for path in dict.fromkeys(roots) if os.path.exists(path)]
    outermost = [path for path in found if not _is_within(path, found)]
    mounted = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()] if drivers else []
    return outermost + [path for path in dict.fromkeys(mounted) if _is_within(path, outermost)]


def _is_within(path: str, directories: Sequence[str]) -> bool:
    return any(path.startswith(f"{directory}/") for directory in directories)


# The shell's part, in the new namespaces: a small root in memory, read-only views of what a program needs, a copy of
# the throw-away directory; then the old root goes, and the command starts without rights.
BUILD = """
set -e
root=$1 work=$1/work drop=$2 devices=$3
shift 3
mkdir "$root/new"
mount --make-rprivate /
mount -t tmpfs -o size=16m,mode=755 none "$root/new"
cd "$root/new"
mkdir -p tmp/work proc dev old
while [ "$1" != "--" ]; do
    mkdir -p ".$(dirname "$1")"
    if [ -L "$1" ]; then
        cp -P "$1" ".$1"
    else
        if [ -d "$1" ]; then mkdir -p ".$1"; elif [ ! -e ".$1" ]; then : > ".$1"; fi
        mount --bind "$1" ".$1"
        mount -o remount,bind,ro,nosuid,nodev ".$1"
    fi
    shift
done
shift
for device in null zero random urandom $devices; do
    : > dev/$device
    mount --bind /dev/$device dev/$device
done
cp -r "$work/." tmp/work
if [ -n "$drop" ]; then chown -R 65534:65534 tmp/work; fi
mount -t proc -o nosuid,nodev,noexec none proc
pivot_root . old
umount -l /old
cd /tmp/work
# not exec: the first process of a namespace is deaf to the signal that ends its CPU time
env -i PATH="$PATH" LC_ALL=C.UTF-8 setpriv $drop --bounding-set=-all --inh-caps=-all --no-new-privs -- "$@"
"""
