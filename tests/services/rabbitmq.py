"""RabbitMQ: one virtual host for each test.

A virtual host of its own, unlike queue names of its own, needs no setting in the application under
test, and keeps the exchanges of remote control and events apart as well.
Must not know: other kinds of servers; how virtual hosts are made (`vhosts`).
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import amqp
from kombu.utils.url import parse_url

from example_project.demo.processes import Process, StartFailed
from tests.services.base import Later, Refused, find_program, free_port, is_stale, new_name
from tests.services.vhosts import Control, Management, Vhosts

#: Virtual hosts are made in advance, this many in one call of rabbitmqctl (0.4 s and more).
BATCH = 4
START_TIMEOUT = 90.0


class RabbitMQ:
    """The kind of server."""

    title = "RabbitMQ"
    variable = "IDEM_TEST_RABBITMQ_URL"
    local: tuple[str, ...] = ("amqp://guest:guest@127.0.0.1:5672//",)
    remedy = f"install rabbitmq-server, or set {variable}"

    def open(self, url: str) -> RabbitMQPlaces:
        """Connects, and finds a way to make virtual hosts."""
        version = server_version(url)
        reasons = []
        for vhosts in ways(url):
            try:
                return RabbitMQPlaces(url, version, vhosts)
            except Refused as error:
                reasons.append(str(error))
        raise Refused(f"{shown(url)}: no virtual host can be made ({'; '.join(reasons)})")

    def start(self, directory: Path) -> PrivateRabbitMQ:
        """Starts one from PATH."""
        server = find_program("rabbitmq-server")
        if server is None:
            raise Refused("rabbitmq-server is not on PATH")
        # The distribution's wrapper insists on its own user and folders; the script beside it
        # does not.
        script = server.resolve().with_name("rabbitmq-server")
        return PrivateRabbitMQ(script, directory)


class RabbitMQPlaces:
    """Makes a virtual host for each test."""

    def __init__(self, url: str, version: str, vhosts: Vhosts) -> None:
        self.url = url
        self.version = version
        self._vhosts = vhosts
        self._ready: list[str] = []
        self._later = Later("delete-vhosts")
        stale = [name for name in vhosts.names() if is_stale(name)]
        self._make()
        try:
            # The tool may speak to another node than the one behind the URL.
            server_version(with_vhost(url, self._ready[0]))
        except Refused:
            self.close()
            raise
        for name in stale:
            self._later.do(vhosts.delete, name)

    @contextmanager
    def place(self) -> Iterator[str]:
        """The URL of a new virtual host."""
        if not self._ready:
            self._make()
        name = self._ready.pop()
        try:
            yield with_vhost(self.url, name)
        finally:
            self._later.do(self._vhosts.delete, name)

    def close(self) -> None:
        """Waits until all virtual hosts are deleted."""
        for name in self._ready:
            self._later.do(self._vhosts.delete, name)
        self._later.close()

    def _make(self) -> None:
        self._ready = [new_name() for _ in range(BATCH)]
        self._vhosts.add(self._ready, urlsplit(self.url).username or "guest")


class PrivateRabbitMQ:
    """A node of our own; it ends with this process."""

    #: Where the control tool finds each node that was started here, by its URL.
    controls: dict[str, Control] = {}  # noqa: RUF012 (shared on purpose)

    def __init__(self, script: Path, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        port = free_port()
        self.url = f"amqp://guest:guest@127.0.0.1:{port}//"
        environment = node_environment(directory, port)
        try:
            self._process = Process(
                [script], directory / "log", env=environment, cwd=directory, grace=30
            )
        except StartFailed as error:
            raise Refused(str(error)) from error
        self._wait()
        self.controls[self.url] = Control(script.with_name("rabbitmqctl"), environment)

    def stop(self) -> None:
        """Shuts it down and waits for its end."""
        self._process.stop()

    def _wait(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT
        while True:
            try:
                server_version(self.url)
                return
            except Refused as error:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    said = self._process.tail(3)
                    self.stop()
                    raise Refused(f"rabbitmq-server does not answer: {said}") from error
            time.sleep(0.1)


def node_environment(directory: Path, port: int) -> dict[str, str]:
    """Variables that keep a node off the installed one's files and off foreign interfaces."""
    (directory / "enabled_plugins").write_text("[].\n")
    (directory / "rabbitmq.conf").write_text(f"listeners.tcp.default = 127.0.0.1:{port}\n")
    (directory / "rabbitmq-env.conf").write_text("")
    return {
        **os.environ,
        # Erlang keeps its cookie there.
        "HOME": str(directory),
        "ERL_EPMD_ADDRESS": "127.0.0.1",
        "RABBITMQ_NODENAME": f"{new_name()}@localhost",
        "RABBITMQ_DIST_PORT": str(free_port()),
        "RABBITMQ_CONFIG_FILE": str(directory / "rabbitmq.conf"),
        "RABBITMQ_CONF_ENV_FILE": str(directory / "rabbitmq-env.conf"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(directory / "enabled_plugins"),
        "RABBITMQ_MNESIA_BASE": str(directory / "mnesia"),
        "RABBITMQ_LOG_BASE": str(directory / "logs"),
        "RABBITMQ_PID_FILE": str(directory / "pid"),
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
    }


def ways(url: str) -> Iterator[Vhosts]:
    """The ways to make virtual hosts on the server at ``url``, best first."""
    parts = urlsplit(url)
    if url in PrivateRabbitMQ.controls:
        yield PrivateRabbitMQ.controls[url]
    elif parts.hostname in ("127.0.0.1", "localhost", "::1") and (
        program := find_program("rabbitmqctl")
    ):
        yield Control(program, dict(os.environ))
    yield Management(parts.hostname or "127.0.0.1", parts.username, parts.password)


def server_version(url: str) -> str:
    """The version of the server at ``url``.

    Raises:
        Refused: it does not let us in.
    """
    parts = parse_url(url)
    # The stubs do not know what the server says of itself.
    connection: Any = amqp.Connection(
        host=f"{parts['hostname']}:{parts['port'] or 5672}",
        userid=parts["userid"] or "guest",
        password=parts["password"] or "guest",
        virtual_host=parts["virtual_host"] or "/",
        connect_timeout=5,
    )
    try:
        with connection:
            properties = connection.server_properties
    except (OSError, amqp.exceptions.AMQPError) as error:
        raise Refused(f"{shown(url)}: {error}") from error
    return f"version {properties.get('version')}"


def with_vhost(url: str, name: str) -> str:
    """``url`` with another virtual host."""
    return urlunsplit(urlsplit(url)._replace(path=f"/{name}"))


def shown(url: str) -> str:
    """``url`` without its password."""
    parts = urlsplit(url)
    return f"amqp://{parts.hostname}:{parts.port or 5672}{parts.path}"


RABBITMQ = RabbitMQ()
