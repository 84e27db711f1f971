"""Processes forked from one that has the libraries in memory: in what they are like true starts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.processes import Worker, environment, wait_for
from tests.warm import Forker

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="others start in the long way only")

#: An app that tells, as it is imported, what it finds.
SELF = """
    import json, os, random, resource, signal, sys, threading
    import celery._state

    main = sys.modules["__main__"]
    own = ("celery_idem", "tests", "example_project")
    before = sorted(name for name in sys.modules if name.partition(".")[0] in own)
    from celery_idem.lease import PROCESS
    told = {
        "main": [main.__name__, main.__file__, main.__spec__.name],
        "argv": sys.argv,
        "path": sys.path,
        "flags": repr(sys.flags),
        "own modules": before,
        "directory": os.getcwd(),
        "environment": dict(os.environ),
        "leads": [os.getpid() == os.getsid(0), os.getpid() == os.getpgid(0)],
        "files": {n: os.readlink(f"/proc/self/fd/{n}") for n in ("0", "1", "2")},
        "more files": len(os.listdir("/proc/self/fd")),
        "output": [repr(f) + f"{f.write_through} {f.errors}" for f in (sys.stdout, sys.stderr)],
        "signals": [repr(signal.getsignal(n)).split(" at ")[0] for n in range(1, 32)],
        "blocked": repr(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
        "limits": [resource.getrlimit(n) for n in range(16)],
        "mask": os.umask(0o22),
        "threads": threading.active_count(),
        "app": repr(celery._state.default_app),
        "keeper": os.getppid() == os.getsid(os.getppid()),
    }
    other = {"process": PROCESS, "number": random.random(), "pid": os.getpid()}
    with open("told", "w") as file:
        json.dump([told, other], file)
    sys.exit(5)
"""
ENDS = {
    "sys.exit()": 0,
    "sys.exit(7)": 7,
    "sys.exit('a reason')": 1,
    "raise ValueError('a reason')": 2,
    "class Odd(BaseException): ...\nraise Odd('a reason')": 1,
    "import os; os._exit(9)": 9,
    "import os, signal; os.kill(os.getpid(), signal.SIGKILL)": 137,
    "import os, signal; os.kill(os.getpid(), signal.SIGTERM)": 143,
}
OWNER = """
    import sys, time
    from pathlib import Path
    from tests.processes import Worker

    worker = Worker("asleep", Path(sys.argv[1]), warm=True)
    worker.start()
    print(worker.pid, flush=True)
    time.sleep(300)
"""


def write(directory: Path, name: str, text: str) -> None:
    """An app, of which nothing is left in the process that imports it again."""
    (directory / f"{name}.py").write_text(textwrap.dedent(text))


def ended(worker: Worker) -> int | None:
    """The exit status of a process that ends by itself."""
    worker.start()
    try:
        wait_for(lambda: not worker.running, 60, "its end")
        return worker.returncode
    finally:
        worker.kill()


def told(directory: Path, *, warm: bool) -> Any:
    """What an app finds in a process that is started so."""
    env = {"IDEM_GIVEN": "ü"}
    worker = Worker("self", directory, "-c", "1", name="same", env=env, warm=warm)
    assert ended(worker) == 5, worker.tail()
    return json.loads((directory / "told").read_text())


def test_a_program_finds_what_it_finds_after_a_true_start(tmp_path: Path) -> None:
    write(tmp_path, "self", SELF)
    true, one, other = (told(tmp_path, warm=warm) for warm in (False, True, True))
    assert one[0] == true[0]
    assert other[0] == true[0]
    for what in ("process", "number", "pid"):
        assert len({each[1][what] for each in (true, one, other)}) == 3, what


@pytest.mark.parametrize("how", ENDS)
def test_the_end_of_a_program_is_that_of_its_process(tmp_path: Path, how: str) -> None:
    write(tmp_path, "ending", f"import sys, atexit; atexit.register(print, 'at exit')\n{how}")
    seen = []
    for warm in (False, True):
        worker = Worker("ending", tmp_path, warm=warm)
        status = ended(worker)
        lines = worker.log.splitlines()
        seen.append((status, "at exit" in lines, lines[-1:]))
    assert seen[0] == seen[1]
    assert seen[0][0] == ENDS[how]


def test_nothing_is_left_of_a_test_run_that_is_killed(tmp_path: Path) -> None:
    write(tmp_path, "asleep", "import time; time.sleep(300)")
    command = [sys.executable, "-c", textwrap.dedent(OWNER), str(tmp_path)]
    with subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        process = psutil.Process(int(owner.stdout.readline()))
        everybody = [*process.parents()[:2], process]
        assert everybody[1].parent() == psutil.Process(owner.pid)
        owner.kill()
        wait_for(lambda: not any(map(alive, everybody)), 60, "the end of all")


def alive(process: psutil.Process) -> bool:
    """Whether it runs; one that nobody has reaped does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize(
    ("options", "env", "can"),
    [
        (["-P", "prefork"], {}, True),
        (["-P", "gevent"], {}, False),
        (["-P", "eventlet"], {}, False),
        ([], {"IDEM_SETTINGS": "{}"}, True),
        ([], {"PYTHONPATH": "elsewhere"}, False),
        ([], {"TZ": "Asia/Tokyo"}, False),
        ([], {"DJANGO_SETTINGS_MODULE": "settings"}, False),
    ],
)
def test_what_needs_a_true_start_gets_one(
    options: list[str], env: dict[str, str], can: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    forker = Forker(environment())
    command = [sys.executable, "-m", "celery", "-A", "app", "worker", *options]
    assert forker.can_start(command, {**environment(), **env}) is can
    assert not forker.can_start([sys.executable, "-m", "others"], environment())
    assert not forker.can_start(command, {"PATH": os.environ["PATH"]})
    monkeypatch.setenv("IDEM_TEST_COLD", "1")
    assert not forker.can_start(command, {**environment(), **env})
