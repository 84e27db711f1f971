"""The broker and the database of a demo: given, private, or the embedded ones.

Owns: the choice, and telling it.
Must not know: what runs on them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from kombu import Connection, Exchange, Queue
from kombu.exceptions import KombuError
from kombu.utils.url import maybe_sanitize_url
from sqlalchemy import create_engine, make_url
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool

from example_project.servers import ServerUnavailable, start_postgres, start_redis

#: kombu's transport whose messages are files
FILES = "filesystem://"
#: seconds to reach a server that was given
REACH = 5


class PartMissing(Exception):
    """A broker or a database that was given cannot be used; the text names it and says why."""


@dataclass(frozen=True)
class Parts:
    """Where messages go and where effects and ledger are kept."""

    broker_url: str
    database_url: str
    broker: str
    database: str
    broker_options: str = "{}"

    def broker_connection(self) -> Connection:
        """Return a new connection to the broker."""
        return Connection(self.broker_url, transport_options=json.loads(self.broker_options))

    def delete_queue(self, name: str) -> None:
        """Remove our queue, and the exchange of that name, from a broker that stays."""
        with self.broker_connection() as connection, connection.channel() as channel:
            exchange = Exchange(name, channel=channel)
            queue = Queue(name, exchange, routing_key=name, channel=channel)
            # On Redis, only a connection that declared a queue knows its bindings.
            queue.declare()
            queue.delete()
            exchange.delete()


def choose(
    broker: str | None,
    database: str | None,
    directory: Path,
    stack: ExitStack,
    say: Callable[[str], None],
) -> Parts:
    """Return the parts; private servers end with `stack`. Raises PartMissing."""
    database_url, database_text = _database(database, directory, stack, say)
    broker_url, broker_text, options = _broker(broker, directory, stack, say)
    return Parts(broker_url, database_url, broker_text, database_text, options)


def _database(
    given: str | None, directory: Path, stack: ExitStack, say: Callable[[str], None]
) -> tuple[str, str]:
    if given:
        return given, _reach_database(given)
    try:
        url = stack.enter_context(start_postgres(directory / "postgres")).url
    except ServerUnavailable as error:
        say(f"{error}. The database is a SQLite file instead.")
        return f"sqlite:///{directory / 'shop.sqlite3'}", "SQLite (a file)"
    return url, f"{_reach_database(url)}, private"


def _reach_database(url: str) -> str:
    """Connect once; return the server's name and version."""
    try:
        with create_engine(url, poolclass=NullPool).connect() as connection:
            dialect = connection.dialect
            version = ".".join(map(str, (dialect.server_version_info or ())[:2]))
    except (SQLAlchemyError, ImportError) as error:
        reason = str(error).splitlines()[0]
        raise PartMissing(f"--database {_masked(url)} cannot be used: {reason}") from error
    names = {"postgresql": "PostgreSQL", "mysql": "MySQL", "mariadb": "MariaDB", "sqlite": "SQLite"}
    name = "MariaDB" if getattr(dialect, "is_mariadb", False) else names.get(dialect.name)
    return f"{name or dialect.name} {version}"


def _masked(url: str) -> str:
    """Return a URL that can be shown."""
    try:
        return make_url(url).render_as_string(hide_password=True)
    except SQLAlchemyError:
        return url


def _broker(
    given: str | None, directory: Path, stack: ExitStack, say: Callable[[str], None]
) -> tuple[str, str, str]:
    if given and given != FILES:
        return given, _reach_broker(given), "{}"
    if not given:
        try:
            url = stack.enter_context(start_redis(directory / "redis")).url
        except ServerUnavailable as error:
            say(f"{error}. Messages are files instead.")
        else:
            return url, "Redis, private", "{}"
    return FILES, "files (kombu's filesystem transport)", _folders(directory)


def _reach_broker(url: str) -> str:
    """Connect once; return the URL without its password."""
    try:
        with Connection(url, connect_timeout=REACH) as connection:
            connection.ensure_connection(max_retries=1, timeout=REACH)
        return str(maybe_sanitize_url(url))
    except (KombuError, OSError, ImportError, KeyError, ValueError) as error:
        raise PartMissing(f"--broker {maybe_sanitize_url(url)} cannot be used: {error}") from error


def _folders(directory: Path) -> str:
    """Make the folders of the filesystem transport; return its options."""
    messages, control = directory / "messages", directory / "control"
    for folder in (messages, control):
        folder.mkdir()
    # One folder for both directions: what a beat writes, a worker reads.
    return json.dumps(
        {
            "data_folder_in": str(messages),
            "data_folder_out": str(messages),
            "control_folder": str(control),
        }
    )
