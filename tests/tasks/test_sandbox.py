"""The isolated child: what it may not do, how it ends, and that nothing is left of it."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from fathom.config import TaskConfig
from fathom.tasks import build, sandbox
from fathom.tasks.sandbox import Finished, Limits, can_isolate, python_command, run_isolated

SMALL = Limits(wall_seconds=20, cpu_seconds=1, memory_bytes=1 << 28, file_bytes=1 << 16, processes=8)
needs_namespaces = pytest.mark.skipif(not can_isolate(), reason="this system makes no namespaces")


def run(source: str, limits: Limits = SMALL, stdin: bytes = b"") -> Finished:
    return run_isolated(python_command("a.py"), {"a.py": source}, limits, "limits", stdin)


def test_a_program_reads_writes_and_ends() -> None:
    ended = run("import sys; print(sys.stdin.read().upper()); print('aside', file=sys.stderr)", stdin=b"hello")
    assert (ended.outcome, ended.output, ended.errors, ended.code) == ("done", b"HELLO\n", b"aside\n", 0)


def test_a_failing_program_is_a_crash_with_its_words() -> None:
    ended = run("raise KeyError('lost')")
    assert (ended.outcome, ended.code) == ("crash", 1)
    assert ended.errors.endswith(b"KeyError: 'lost'\n")


def test_cpu_time_ends() -> None:
    ended = run("while True: pass")
    assert ended.outcome == "timeout" and ended.cpu_spent


def test_waiting_ends_by_the_clock() -> None:
    ended = run("import time; time.sleep(60)", Limits(wall_seconds=1.0))
    assert ended.outcome == "timeout" and not ended.cpu_spent
    assert 1 <= ended.seconds < 10


def test_memory_files_and_output_are_limited() -> None:
    assert b"MemoryError" in run("x = bytearray(1 << 29)").errors
    assert b"File too large" in run("open('big', 'w').write('a' * (1 << 20))").errors
    flood = run("print('a' * (1 << 20))")
    assert flood.outcome == "crash" and len(flood.output) == 1 << 16
    assert b"Too many open files" in run("f = [open('/dev/null') for _ in range(999)]").errors


def test_the_environment_and_the_directory_hold_nothing_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "abc")
    ended = run("import os; print(sorted(os.environ), os.listdir('.'))")
    assert ended.output == b"['LC_ALL', 'PATH'] ['a.py']\n"
    monkeypatch.setenv("PYTHONPATH", "/nowhere")
    assert b"nowhere" not in run("import sys; print(sys.path)").output


def test_the_directory_vanishes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # apart from what other tests have open
    assert run("open('left', 'w').write('x'); print(open('left').read())").output == b"x\n"
    assert list(tmp_path.iterdir()) == []


@needs_namespaces
def test_no_network_no_files_no_rights() -> None:
    reach = "import socket\ntry: socket.create_connection(('127.0.0.1', 22), 1)\nexcept OSError as e: print(e)"
    assert b"unreachable" in run(reach).output or b"refused" in run(reach).output
    assert b"[lo]" in run("import socket; print([n for _, n in socket.if_nameindex()])").output.replace(b"'", b"")
    here = Path(__file__).resolve()
    look = (
        f"import os; print(os.path.exists({str(here)!r}), os.path.exists('/etc/passwd'), os.path.exists('/root/.ssh'))"
    )
    assert run(look).output == b"False False False\n"
    assert b"Read-only" in run(f"open({sys.executable + 'x'!r}, 'w')").errors or os.getuid()
    for path in ("/usr/fathom", "/bin/sh", "/tmp/outside", "/proc/sys/kernel/hostname"):
        ended = run(f"open({path!r}, 'w').write('x')")
        assert ended.outcome == "crash" and b"Error" in ended.errors, path
        assert not Path("/usr/fathom").exists() and not Path("/tmp/outside").exists()
    assert run("import os; os.setuid(0)").outcome == "crash" or os.getuid()


@needs_namespaces
def test_other_processes_are_not_seen_and_cannot_be_ended() -> None:
    other = subprocess.Popen(["sleep", "60"])
    try:
        seen = run("import os; print(len([n for n in os.listdir('/proc') if n.isdigit()]))")
        assert int(seen.output) <= 6
        run(f"import os\nfor p in range(2, {other.pid + 1}):\n  try: os.kill(p, 9)\n  except OSError: pass")
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


@needs_namespaces
def test_a_fork_bomb_stops_and_ends_with_its_first_process() -> None:
    sign = f"fathom-bomb-{os.getpid()}"
    source = f"""
import os, sys, time
try:
    while True:
        if os.fork() == 0:
            os.setsid()
            os.execv("/bin/sh", ["{sign}", "-c", "sleep 50; : {sign}"])
except BlockingIOError:
    print("stopped")
"""
    ended = run(source)
    assert ended.output == b"stopped\n"
    for _ in range(50):
        if not running(sign):
            return
        time.sleep(0.1)
    raise AssertionError("a process outlived its sandbox")


def running(sign: str) -> bool:
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and sign.encode() in (entry / "cmdline").read_bytes().split(b"\0")[0]:
                return True
        except OSError:
            pass
    return False


ORDINARY = '''
import sys
sys.path.insert(0, sys.argv[1])
from sandbox import Limits, python_command, run_isolated
ask = "import os, socket; print(os.listdir('.'), os.path.exists('/etc/passwd'), len(socket.if_nameindex()))"
print(run_isolated(python_command("a.py"), {"a.py": ask}, Limits()).output)
undo = "import os; print(os.system('mount -t tmpfs none /tmp 2>&-') != 0, os.access('/usr', os.W_OK))"
print(run_isolated(python_command("a.py"), {"a.py": undo}, Limits()).output)
bomb = """import os
try:
    while True: os.fork() or os.execv('/bin/sleep', ['sleep', '20'])
except OSError: print('stopped')"""
print(run_isolated(python_command("a.py"), {"a.py": bomb}, Limits(processes=8)).output)
'''


@needs_namespaces
@pytest.mark.skipif(os.getuid() != 0 or not Path("/usr/bin/python3").exists(), reason="needs root to become another")
def test_an_ordinary_user_isolates_as_well() -> None:
    """Through a user namespace, where the command is root in name and has none of its rights."""
    with tempfile.TemporaryDirectory(prefix="fathom-test-") as folder:
        os.chmod(folder, 0o755)
        shutil.copy(sandbox.__file__, folder)
        user = ["setpriv", "--reuid=1234", "--regid=1234", "--clear-groups"]
        done = subprocess.run([*user, "/usr/bin/python3", "-B", "-c", ORDINARY, folder], capture_output=True, text=True)
    said = done.stdout.splitlines()
    if not said and "cuts no process off" in done.stderr:
        pytest.skip("this system gives user namespaces to root alone")
    assert said == [str(b"['a.py'] False 1\n"), str(b"True False\n"), str(b"stopped\n")], done.stderr


def test_without_namespaces_a_run_is_refused_unless_limits_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "can_isolate", lambda: False)
    with pytest.raises(RuntimeError, match=r"cuts no process off .* --task.isolation limits"):
        run_isolated(python_command("a.py"), {"a.py": "print(1)"}, SMALL)
    with pytest.raises(RuntimeError, match="cuts no process off"):  # before anything is trained
        build(TaskConfig(kind="code", file="any.jsonl"))
    ended = run("print(1)")
    assert (ended.outcome, ended.output, ended.isolated) == ("done", b"1\n", False)
    assert run("while True: pass").outcome == "timeout"
