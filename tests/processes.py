"""Real workers and beats in processes of their own, and waiting for what they do.

Owns: their commands, logs and ends. None outlives the test run, however that ends.
Must not know: what runs in them.

    with Worker("my_tests.app", tmp_path) as worker, Beat("my_tests.app", tmp_path):
        wait_for(lambda: count(engine) >= 3, 30, "three slots executed")
        worker.kill()
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import ClassVar, TypeVar

from example_project.demo.processes import Process
from tests.warm import Forker, WarmProcess

T = TypeVar("T")

ROOT = Path(__file__).parent.parent
POLL = 0.05
#: Seconds in which a process must be ready, or gone after it was asked to go.
READY = 60.0
GONE = 60.0

#: The processes that the present test has started, for the report of its failure.
of_this_test: list[CeleryProcess] = []
_numbers = count(1)


class ProcessFailed(AssertionError):
    """A process ended, or did not do in time what it must; the text has the end of its log."""


def wait_for(predicate: Callable[[], T], timeout: float, describe: str | Callable[[], str]) -> T:
    """Asks again and again until ``predicate`` returns something true, and returns that.

    Args:
        predicate: Called every 0.05 s; what it raises is raised.
        timeout: Seconds.
        describe: What is waited for, or a function that says it with the state at the deadline.

    Raises:
        AssertionError: The deadline passed.
    """
    deadline = time.monotonic() + timeout
    while True:
        late = time.monotonic() > deadline
        if result := predicate():
            return result
        if late:
            text = describe() if callable(describe) else describe
            raise AssertionError(f"not within {timeout:g} s: {text}; the last answer: {result!r}")
        time.sleep(POLL)


class CeleryProcess:
    """A process of ``python -m celery -A APP ...``; a context manager that leaves none behind."""

    command: ClassVar[str]
    #: The text in the log that tells that it works.
    ready_text: ClassVar[str]

    def __init__(
        self,
        app: str,
        directory: Path,
        *options: str,
        name: str | None = None,
        env: Mapping[str, str] | None = None,
        loglevel: str = "INFO",
        warm: bool = False,
    ) -> None:
        """Describes a process; `start`, or ``with``, starts it.

        Args:
            app: The module (and attribute) of the app, as for ``celery -A``.
            directory: Where it runs and writes its log, for example ``tmp_path``.
            options: More options of the command.
            name: Its name in messages, and a worker's node name; a new one by default.
            env: More environment variables.
            loglevel: For Celery; `ready` needs at least INFO.
            warm: Whether it may be forked from a process that has imported the libraries: cheap,
                and for all that is not about the start itself the same. See `forker.py`.
        """
        self.name = name or f"{self.command}{next(_numbers)}"
        self.directory = directory
        self.path = directory / f"{self.name}.log"
        self._command = [sys.executable, "-m", "celery", "-A", app, self.command]
        self._command += ["--loglevel", loglevel, *self.own_options(), *options]
        self._env = {**environment(), **(env or {})}
        self._warm = warm
        self._process: Process | WarmProcess | None = None
        #: Where in the log file the present process began to write.
        self._begin = 0
        self._is_asked = False

    def own_options(self) -> list[str]:
        """Options that the command needs to be told apart from others."""
        return []

    def start(self) -> None:
        """Starts it and does not wait; a second time after it has ended starts it anew."""
        assert not self.running, f"{self.name} is running"
        self._begin = len(self._bytes())
        self._is_asked = False
        if self._warm and _forker.can_start(self._command, self._env):
            self._process = _forker.start(self._command, self.path, self._env, self.directory)
        else:
            self._process = Process(self._command, self.path, env=self._env, cwd=self.directory)
        of_this_test.append(self)

    def ready(self, timeout: float = READY) -> None:
        """Waits until it works.

        Raises:
            ProcessFailed: It ended, or the deadline passed.
        """
        deadline = time.monotonic() + timeout
        while self.ready_text.format(name=self.name) not in self.log:
            if not self.running:
                raise ProcessFailed(f"{self.name} ended with {self.returncode}:\n{self.tail()}")
            if time.monotonic() > deadline:
                raise ProcessFailed(f"{self.name} is not ready in {timeout:g} s:\n{self.tail()}")
            time.sleep(POLL)

    @property
    def pid(self) -> int:
        """Of the main process."""
        return self._started.pid

    @property
    def running(self) -> bool:
        """Whether the main process is there."""
        return self._process is not None and self._process.poll() is None

    @property
    def returncode(self) -> int | None:
        """The exit status of the main process, in the shell's way, or None while it runs."""
        return self._started.poll()

    @property
    def log(self) -> str:
        """What the present process, with its children, has written."""
        return self._bytes()[self._begin :].decode(errors="replace")

    def tail(self, lines: int = 40) -> str:
        """The last lines of the log."""
        return "\n".join(self.log.splitlines()[-lines:])

    def kill(self) -> None:
        """SIGKILL to it and all its children at once, as when a machine dies."""
        self._signal_group(signal.SIGKILL)
        self._started.stop()

    def kill_main(self) -> None:
        """SIGKILL to the main process alone; its children go on until they notice."""
        self._started.kill()
        wait_for(lambda: not self.running, GONE, f"the end of {self.name}")

    def terminate(self) -> None:
        """SIGTERM to the main process (a warm shutdown), without waiting."""
        self._is_asked = True
        os.kill(self.pid, signal.SIGTERM)

    def stop(self, timeout: float = GONE) -> int:
        """A warm shutdown; returns the exit status.

        Raises:
            ProcessFailed: It is not gone after ``timeout`` seconds.
        """
        # Once: Python takes its handlers away at its end, and another signal would be its death.
        if not self._is_asked:
            self.terminate()
        deadline = time.monotonic() + timeout
        while self.running:
            if time.monotonic() > deadline:
                raise ProcessFailed(f"{self.name} does not end in {timeout:g} s:\n{self.tail()}")
            time.sleep(POLL)
        return self._started.stop()

    def pause(self) -> None:
        """SIGSTOP to it and all its children: a machine that stands still."""
        self._signal_group(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT after `pause`."""
        self._signal_group(signal.SIGCONT)

    def __enter__(self: P) -> P:
        self.start()
        try:
            self.ready()
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def _started(self) -> Process | WarmProcess:
        assert self._process is not None, f"{self.name} was not started"
        return self._process

    def _signal_group(self, number: signal.Signals) -> None:
        # Children may outlive the main process, so the group is asked whatever became of that.
        with suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def _bytes(self) -> bytes:
        return self.path.read_bytes() if self.path.exists() else b""


P = TypeVar("P", bound=CeleryProcess)


class Worker(CeleryProcess):
    """``celery worker``, ready once it consumes."""

    command = "worker"
    ready_text = "{name}@idem ready."

    @property
    def node(self) -> str:
        """Its node name, for remote control."""
        return f"{self.name}@idem"

    def own_options(self) -> list[str]:
        """A node name of its own."""
        return ["--hostname", self.node]


class Beat(CeleryProcess):
    """``celery beat``."""

    command = "beat"
    ready_text = "beat: Starting..."

    def own_options(self) -> list[str]:
        """A pid file would keep a second beat in the same directory from starting."""
        return ["--pidfile", ""]


def environment() -> dict[str, str]:
    """In which every process runs, if its test says nothing else."""
    # Unbuffered, or what it prints would be in the log only after its end.
    return {**os.environ, "PYTHONPATH": python_path(), "PYTHONUNBUFFERED": "1"}


def python_path() -> str:
    """PYTHONPATH with this checkout in it: the process runs in another directory."""
    given = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    return os.pathsep.join([str(ROOT), *map(os.path.abspath, given)])


_forker = Forker(environment())
