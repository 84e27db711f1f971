"""What all services have in common: how one is found, and how a place on it is named.

Must not know: any one kind of server.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

#: What was left behind by a run that died is removed once it is older than this (seconds).
STALE_AFTER = 6 * 3600
#: Names of databases and virtual hosts of tests: the time of their making, then a random part.
PREFIX = "idem_test_"


class ServiceMissing(Exception):
    """No server of this kind can be used here; the text says what was tried and what helps."""


class Refused(Exception):
    """This server does not answer, does not let us in, or lacks something that tests need."""


class Running(Protocol):
    """A private server."""

    url: str

    def stop(self) -> None:
        """Shuts it down and waits for its end."""


@dataclass(frozen=True)
class Broker:
    """A message broker with nothing in it, for one test."""

    #: "redis" or "rabbitmq"
    name: str
    #: A broker URL for Celery. It alone leads to a place that no other test uses.
    url: str
    transport_options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def settings(self) -> dict[str, Any]:
        """Celery's settings for this broker."""
        return {
            "broker_url": self.url,
            "broker_transport_options": dict(self.transport_options),
            "broker_connection_retry_on_startup": True,
        }


class Places(Protocol):
    """One server that answered, able to make private places (a database, a virtual host)."""

    #: What the server calls itself, with its version.
    version: str

    def place(self) -> AbstractContextManager[str]:
        """The URL of a new, empty place; it is removed at the end."""

    def close(self) -> None:
        """Finishes what was put off."""


class Kind(Protocol):
    """A kind of server."""

    title: str
    #: The environment variable with a URL.
    variable: str
    #: URLs of servers on their default port, with the usual local credentials.
    local: tuple[str, ...]
    #: What to install or set where there is none.
    remedy: str

    def open(self, url: str) -> Places:
        """Connects to the server at ``url``.

        Raises:
            Refused: with the reason.
        """

    def start(self, directory: Path) -> Running:
        """Starts a private server with its files below ``directory``.

        Raises:
            Refused: with the reason.
        """


class Service:
    """A server that tests can use, and where it comes from. Raises Refused when made."""

    def __init__(
        self,
        kind: Kind,
        url: str,
        origin: str,
        server: Running | None = None,
    ) -> None:
        places = kind.open(url)
        self.kind = kind
        self.url = url
        self.origin = origin
        self.version = places.version
        self.place = places.place
        self._places = places
        self._server = server

    def __str__(self) -> str:
        return f"{self.kind.title}: {self.version}, {self.origin}"

    def close(self) -> None:
        """Removes what is left on it, and stops it if it is ours."""
        try:
            self._places.close()
        finally:
            if self._server is not None:
                self._server.stop()


def find_service(kind: Kind, directory: Path) -> Service:
    """Finds or starts a server of this kind; ``directory`` is for one that is started.

    A URL in the environment is a wish: if it does not work, nothing else is tried.

    Raises:
        ServiceMissing: naming each attempt and the way out.
    """
    if url := os.environ.get(kind.variable):
        try:
            return Service(kind, url, f"from {kind.variable}")
        except Refused as error:
            raise ServiceMissing(f"{kind.title}: {kind.variable} does not work: {error}") from error
    reasons = []
    for url in kind.local:
        try:
            return Service(kind, url, "found on its default port")
        except Refused as error:
            reasons.append(str(error))
    try:
        return _private(kind, directory)
    except Refused as error:
        reasons.append(str(error))
    raise ServiceMissing(f"{kind.title}: {kind.remedy} (tried: {'; '.join(reasons)})")


def _private(kind: Kind, directory: Path) -> Service:
    server = kind.start(directory)
    try:
        return Service(kind, server.url, "started for this run", server)
    except BaseException:
        server.stop()
        raise


def new_name() -> str:
    """A name that no other test, run or checkout uses, and that tells its age."""
    return f"{PREFIX}{int(time.time()):x}_{secrets.token_hex(4)}"


def is_stale(name: str) -> bool:
    """Whether ``name`` was made by `new_name` so long ago that its run cannot go on."""
    found = re.fullmatch(PREFIX + r"([0-9a-f]+)_[0-9a-f]{8}", name)
    return found is not None and int(found.group(1), 16) < time.time() - STALE_AFTER


def find_program(*names: str) -> Path | None:
    """The first of these programs on PATH, or where distributions keep servers."""
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])
    for name in names:
        if found := shutil.which(name, path=path):
            return Path(found)
    return None


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Later:
    """Cleaning that takes its time, done on a thread beside the next test."""

    def __init__(self, name: str) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._jobs: list[Future[None]] = []

    def do(self, job: Callable[[str], None], name: str) -> None:
        """Puts ``job(name)`` off."""
        self._jobs.append(self._pool.submit(job, name))

    def close(self) -> None:
        """Waits for all jobs; raises what the first that failed raised."""
        self._pool.shutdown(wait=True)
        for job in self._jobs:
            job.result()
