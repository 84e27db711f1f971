"""A private PostgreSQL and a private Redis on free ports, for the demo and the tests.

Owns: starting them, knowing when they answer, and stopping them.
Must not know: Celery, the shop, celery_idem.

Both listen on 127.0.0.1 alone, write below the given directory, and end with this process,
whichever way that ends (see `demo/keeper.py`). They trade durability for speed, which is right
only for data that nobody misses.
"""

from __future__ import annotations

import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from example_project.demo.cluster import environment, make_cluster
from example_project.demo.processes import Process, StartFailed
from example_project.demo.programs import postgres_programs, redis_programs

#: seconds in which a started server must answer
START_TIMEOUT = 30.0
#: a port that was free may be taken by somebody else before the server binds it: so try again
PORT_TRIES = 3


class ServerUnavailable(Exception):
    """No program to start the server from, or none that started; the text says what was tried."""


class Server:
    """A running private server. Use it as a context manager, or call `stop`."""

    def __init__(self, url: str, process: Process, cleanup: ExitStack) -> None:
        """Take over a process that answers; `cleanup` is closed after its end."""
        #: SQLAlchemy's URL of the database, or the broker URL
        self.url = url
        #: pid of the server itself (for PostgreSQL: the postmaster)
        self.pid = process.pid
        self._process = process
        self._cleanup = cleanup

    def stop(self) -> None:
        """Shut the server down in its own way and wait until it is gone; may be repeated."""
        self._process.stop()
        self._cleanup.close()

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


def start_postgres(directory: Path) -> Server:
    """Start a PostgreSQL of its own with its data below `directory`, made if it is not there.

    The URL carries a fresh password. Raises ServerUnavailable.
    """
    directory.mkdir(parents=True, exist_ok=True)
    home = directory.resolve()
    return _first("PostgreSQL", postgres_programs(), lambda programs: _postgres(programs, home))


def start_redis(directory: Path) -> Server:
    """Start a Redis (or Valkey) of its own with its files below `directory`, made if needed.

    Raises ServerUnavailable.
    """
    directory.mkdir(parents=True, exist_ok=True)
    home = directory.resolve()
    return _first("Redis", redis_programs(), lambda program: _redis(program, home))


def _first(name: str, programs: Iterator[Path], start: Callable[[Path], Server]) -> Server:
    """Start the first program that works; the reasons of all others go into the error."""
    reasons = []
    for program in programs:
        try:
            return start(program)
        except (StartFailed, OSError, subprocess.CalledProcessError) as error:
            output = getattr(error, "output", None) or ""
            reasons.append(f"{program}: {error} {output}".strip())
    tried = "; ".join(reasons) or "neither is its wheel installed, nor is it on PATH"
    raise ServerUnavailable(f"{name} cannot be started here: {tried}")


def _postgres(programs: Path, directory: Path) -> Server:
    with ExitStack() as stack:
        cluster = make_cluster(programs, directory, stack)

        def start(port: int) -> Process:
            return Process(
                cluster.command(port),
                directory / "postgres.log",
                env=environment(),
                cwd=cluster.home,
                # Its "fast shutdown": open transactions are rolled back, clients disconnected.
                request=signal.SIGINT,
                user=cluster.user,
                remove=cluster.home,
            )

        process, port = _listening(start, _postgres_answers)
        return Server(cluster.url(port), process, stack.pop_all())


def _redis(program: Path, directory: Path) -> Server:
    def start(port: int) -> Process:
        options = ["--bind", "127.0.0.1", "--port", str(port), "--dir", str(directory)]
        options += ["--save", "", "--appendonly", "no", "--daemonize", "no"]
        return Process([str(program), *options], directory / "redis.log", cwd=directory)

    process, port = _listening(start, _redis_answers)
    return Server(f"redis://127.0.0.1:{port}/0", process, ExitStack())


def _listening(
    start: Callable[[int], Process], answers: Callable[[int], bool]
) -> tuple[Process, int]:
    """Start a server on a free port; return it and the port as soon as it answers there."""
    said = ""
    for _ in range(PORT_TRIES):
        port = _free_port()
        process = start(port)
        try:
            if _wait(process, port, answers):
                return process, port
        except BaseException:
            # Ctrl-C, for one: the caller does not have the process yet, so nobody else stops it.
            process.stop()
            raise
        said = process.tail()
    raise StartFailed(f"it ended by itself; its log: {said}")


def _wait(process: Process, port: int, answers: Callable[[int], bool]) -> bool:
    """Return whether it answers; False if it has ended. Raises StartFailed if it hangs."""
    deadline = time.monotonic() + START_TIMEOUT
    while process.poll() is None:
        if answers(port):
            return True
        if time.monotonic() > deadline:
            raise StartFailed(f"no answer within {START_TIMEOUT:g} s; its log: {process.tail()}")
        time.sleep(0.02)
    # Collect it; it has ended.
    process.stop()
    return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _redis_answers(port: int) -> bool:
    return _ask(port, b"PING\r\n").startswith(b"+PONG")


def _postgres_answers(port: int) -> bool:
    """Whether it takes clients: it then asks for a password ("R"), and before that errs ("E")."""
    # A start-up packet of protocol 3.0: its length, the version, name and value, an end mark.
    version, parameters = b"\0\x03\0\0", b"user\0postgres\0\0"
    length = (4 + len(version) + len(parameters)).to_bytes(4, "big")
    return _ask(port, length + version + parameters).startswith(b"R")


def _ask(port: int, question: bytes) -> bytes:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1.0) as connection:
            connection.sendall(question)
            return connection.recv(64)
    except OSError:
        return b""
