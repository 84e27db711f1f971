"""A private PostgreSQL whose commits reach the disk, as those of a server in earnest do.

Owns starting and ending it. The demo's own server does not wait for the disk, which would make the
share of everything else look larger than it is. Must not know what is measured.
"""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psycopg

from bench.places import conninfo
from example_project.demo.cluster import Cluster, environment, make_cluster
from example_project.demo.processes import Process
from example_project.demo.programs import postgres_programs
from example_project.servers import ServerUnavailable

#: Seconds in which it must answer.
PATIENCE = 30.0


@contextmanager
def durable_postgres(directory: Path) -> Iterator[str]:
    """SQLAlchemy's URL of a new server on a free port.

    Raises:
        ServerUnavailable: there is no program, or it does not start.
    """
    programs = next(postgres_programs(), None)
    if programs is None:
        raise ServerUnavailable("PostgreSQL: neither is its wheel installed, nor is it on PATH")
    directory.mkdir(parents=True)
    with ExitStack() as stack:
        cluster = make_cluster(programs, directory.resolve(), stack)
        port = _free_port()
        process = _start(cluster, port, directory / "postgres.log")
        stack.callback(process.stop)
        _wait_for(cluster.url(port), process)
        yield cluster.url(port)


def _start(cluster: Cluster, port: int, log: Path) -> Process:
    command = [str(cluster.programs / "postgres"), "-D", str(cluster.home / "data")]
    command += ["-p", str(port), "-c", "listen_addresses=127.0.0.1"]
    command += ["-c", "unix_socket_directories=", "-c", "max_connections=200"]
    return Process(
        command,
        log,
        env=environment(),
        cwd=cluster.home,
        request=signal.SIGINT,
        user=cluster.user,
        remove=cluster.home,
    )


def _wait_for(url: str, process: Process) -> None:
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            psycopg.connect(conninfo(url), connect_timeout=2).close()
            return
        except psycopg.OperationalError as error:
            if process.poll() is not None or time.monotonic() > deadline:
                reason = f"PostgreSQL cannot be started here: {error}\n{process.tail()}"
                raise ServerUnavailable(reason) from error
        time.sleep(0.05)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
