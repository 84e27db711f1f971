"""Processes of Celery that need not import it: they are forked from one that has done so.

Owns: the near end of `forker.py`, which tells why such a process is like one that has imported
everything itself, and in what it is not.
Must not know: what runs in them.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from example_project.demo.processes import StartFailed

FORKER = Path(__file__).with_name("forker.py")
#: What variables may begin with that differ: nobody reads them before the fork.
OWN = ("IDEM_", "PYTEST_")
#: Pools that patch modules before others import these.
PATCHING = {"gevent", "eventlet"}
PREFIX = [sys.executable, "-m", "celery"]


class Forker:
    """A process that has imported the libraries and forks others; it starts when it is needed.

    Args:
        environment: In which it imports them.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = dict(environment)
        self._requests: socket.socket | None = None

    def can_start(self, command: Sequence[str], env: Mapping[str, str]) -> bool:
        """Whether it makes no difference to a command that it is forked from here.

        Never where the system's own libraries do not survive a fork (macOS), nor where
        IDEM_TEST_COLD is set.
        """
        if sys.platform != "linux" or os.environ.get("IDEM_TEST_COLD"):
            return False
        own = self._environment
        return (
            list(command[: len(PREFIX)]) == PREFIX
            and PATCHING.isdisjoint(command)
            and all(
                env.get(name) == own.get(name)
                for name in env.keys() | own.keys()
                if not name.startswith(OWN)
            )
        )

    def start(
        self, command: Sequence[str], log: Path, env: Mapping[str, str], cwd: Path
    ) -> WarmProcess:
        """Start a command that `can_start`, its output in the file `log`.

        Raises:
            StartFailed: The file cannot be written; the reason is on the forker's standard error.
            OSError: The forker is gone.
        """
        near, far = socket.socketpair()
        with far:
            socket.send_fds(self._running(), [b"+"], [far.fileno()])
        wanted = {
            "command": command[len(PREFIX) - 1 :],
            "log": str(log.resolve()),
            "env": dict(env),
            "cwd": str(cwd.resolve()),
        }
        near.sendall(json.dumps(wanted).encode() + b"\n")
        return WarmProcess(near, command)

    def close(self) -> None:
        """End it; what it has started goes on. It starts again when it is needed."""
        if self._requests is not None:
            self._requests.close()
            self._process.wait()
            self._requests = None

    def _running(self) -> socket.socket:
        if self._requests is None:
            self._requests, far = socket.socketpair()
            with far:
                self._process = subprocess.Popen(
                    [sys.executable, str(FORKER)],
                    stdin=far.fileno(),
                    stdout=subprocess.DEVNULL,
                    env=self._environment,
                    start_new_session=True,
                )
            atexit.register(self.close)
        return self._requests


class WarmProcess:
    """A running command, as `example_project.demo.processes.Process` is one.

    It ends with `stop`, or by itself as soon as this process is gone.
    """

    def __init__(self, line: socket.socket, command: Sequence[str]) -> None:
        self._line = line
        # Unbuffered: `poll` asks the socket whether there is something to read.
        self._answers = line.makefile("rb", buffering=0)
        self._status: int | None = None
        first = self._answers.readline()
        if not first:
            self._close()
            raise StartFailed(f"{' '.join(command)}: no answer")
        #: the command's own pid
        self.pid = int(first)

    def poll(self) -> int | None:
        """Return the exit status, in the shell's way, or None while the command runs."""
        if self._status is None and select.select([self._line], [], [], 0)[0]:
            self._end()
        return self._status

    def kill(self) -> None:
        """End the command by SIGKILL, as a crash would; its status is then 137."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)

    def stop(self) -> int:
        """Ask the command to end, wait for it, and return its status. Any number of times."""
        if self._status is None:
            self._line.shutdown(socket.SHUT_WR)
        return self._end()

    def _end(self) -> int:
        if self._status is None:
            # Nothing, if somebody killed the keeper.
            self._status = int(self._answers.readline() or 128 + signal.SIGKILL)
            self._close()
        return self._status

    def _close(self) -> None:
        self._answers.close()
        self._line.close()
