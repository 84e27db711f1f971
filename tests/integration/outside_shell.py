"""`celery-idem exec` as a shell starts it.

Owns: its processes, none of which outlives a test, and what they wrote. Must not know: what is
tested.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from tests.processes import python_path, wait_for

PATIENCE = 60.0

#: Whoever runs the tests in the background has made them deaf to it, and what they start.
_HEARING = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execv(sys.argv[1], sys.argv[1:])
"""


class Shell:
    """A folder with a script, and who runs it."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url = url
        self.folder = folder
        self._started: list[subprocess.Popen[str]] = []

    def start(self, *options: str, script: str, url: str | None = None) -> subprocess.Popen[str]:
        """``celery-idem exec --key job-{slot:month} OPTIONS -- sh -c SCRIPT``."""
        process = subprocess.Popen(
            self.command(*options, "--", "sh", "-c", script),
            cwd=self.folder,
            env=self.env(url),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # No terminal, as for a cron job; and a group that can be killed as a whole.
            start_new_session=True,
        )
        self._started.append(process)
        return process

    def command(self, *words: str) -> list[str]:
        """``celery-idem exec --key job-{slot:month} WORDS``."""
        program = [sys.executable, "-m", "celery_idem.cli.script"]
        hearing = [sys.executable, "-I", "-S", "-c", _HEARING]
        return [*hearing, *program, "exec", "--key", "job-{slot:month}", *words]

    def env(self, url: str | None = None) -> dict[str, str]:
        """Its environment, with a ledger."""
        named = {"PYTHONPATH": python_path(), "CELERY_IDEM_DATABASE_URL": url or self.url}
        return {**os.environ, **named}

    def run(self, *options: str, script: str, given: str = "") -> tuple[int, str, str]:
        """The same to its end: status, output, errors."""
        process = self.start(*options, script=script)
        output, errors = process.communicate(given, timeout=PATIENCE)
        return process.returncode, output, errors

    def lines(self, name: str = "log") -> list[str]:
        """What scripts have written into a file."""
        path = self.folder / name
        return path.read_text().splitlines() if path.exists() else []

    def has(self, line: str, number: int = 1) -> Callable[[], bool]:
        """Whether the log has this line so many times."""
        return lambda: self.lines().count(line) >= number

    def close(self) -> None:
        for process in self._started:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


def is_gone(pid: int) -> bool:
    """Whether there is no such process any more."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    stat = Path(f"/proc/{pid}/stat")
    # Its parent may be one that never asks for its status.
    with suppress(FileNotFoundError):
        return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] == "Z"
    return True


def told(process: subprocess.Popen[str], text: str) -> str:
    """The errors up to the line that has this text."""
    assert process.stderr is not None
    seen = ""
    while text not in seen:
        line = process.stderr.readline()
        assert line, f"no {text!r} in {seen!r}"
        seen += line
    return seen


def began(shell: Shell, number: int = 1) -> None:
    """Wait until the script has begun."""
    wait_for(shell.has("begun", number), PATIENCE, "the command begins")
