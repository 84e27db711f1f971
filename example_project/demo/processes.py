"""Child processes that cannot outlive us.

Owns: the near end of `keeper.py`, one object per child.
Must not know: what the child is; Celery, databases and brokers.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

KEEPER = Path(__file__).with_name("keeper.py")


class StartFailed(Exception):
    """A command could not be started: not there, or not allowed."""


class Process:
    """A running command; it ends with `stop`, or by itself as soon as this process is gone."""

    def __init__(
        self,
        command: Sequence[str | Path],
        log: Path,
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        request: signal.Signals = signal.SIGTERM,
        grace: float = 15.0,
        user: int | None = None,
        remove: Path | None = None,
    ) -> None:
        """Start `command`, its output in the file `log`.

        `request` is the signal that asks it to end, `grace` the seconds until SIGKILL follows,
        `user` a uid to run it as (root only). `remove` is a folder that goes when the command was
        asked to end, by us or by our own end. Raises StartFailed with the system's reason.
        """
        keeper: list[str] = [sys.executable, "-I", str(KEEPER), "--log", str(log)]
        keeper += ["--signal", request.name, "--grace", str(grace)]
        keeper += [] if user is None else ["--user", str(user)]
        keeper += [] if remove is None else ["--remove", str(remove)]
        keeper += ["--", *map(str, command)]
        self.log = log
        self._grace = grace
        self._keeper = subprocess.Popen(
            keeper,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=dict(os.environ if env is None else env),
            cwd=cwd,
            text=True,
            # Out of the terminal's foreground group, so that we decide the order of the end.
            start_new_session=True,
        )
        assert self._keeper.stdout is not None
        first = self._keeper.stdout.readline().strip()
        if not first.isdigit():
            self.stop()
            raise StartFailed(f"{command[0]}: {first.removeprefix('error: ') or 'no answer'}")
        #: the command's own pid
        self.pid = int(first)

    def poll(self) -> int | None:
        """Return the exit status, in the shell's way, or None while the command runs."""
        return self._keeper.poll()

    def kill(self, *, offspring: bool = False) -> None:
        """End the command by SIGKILL, as a crash would; its status is then 137.

        `offspring`: also what it has started, as long as that did not leave its process group.
        """
        if self.poll() is None:
            # The keeper made it the leader of a group, which is named after it.
            (os.killpg if offspring else os.kill)(self.pid, signal.SIGKILL)

    def release(self) -> None:
        """Ask the command to end, and do not wait for it."""
        if self._keeper.stdin is not None and not self._keeper.stdin.closed:
            self._keeper.stdin.close()

    def stop(self) -> int:
        """Ask the command to end, wait for it, and return its status. Any number of times."""
        self.release()
        # The keeper kills after `grace`, so that this wait always ends.
        status = self._keeper.wait()
        if self._keeper.stdout is not None:
            self._keeper.stdout.close()
        return status

    def tail(self, lines: int = 10) -> str:
        """Return the last lines of the log, for an error message."""
        try:
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])
        except OSError:
            return ""
