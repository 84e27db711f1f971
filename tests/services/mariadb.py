"""MariaDB, and MySQL by the same code: one database for each test.

Must not know: other kinds of servers.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pymysql
from pymysql.connections import Connection
from pymysql.constants import ER
from pymysql.cursors import Cursor
from sqlalchemy.engine import URL, make_url

from example_project.demo.processes import Process, StartFailed
from tests.services.base import Refused, find_program, free_port, is_stale, new_name

START_TIMEOUT = 60.0


class MariaDB:
    """The kind of server."""

    title = "MariaDB"
    variable = "IDEM_TEST_MARIADB_URL"
    local: tuple[str, ...] = ("mysql+pymysql://root@127.0.0.1:3306",)
    remedy = f"install mariadb-server, or set {variable}"

    def open(self, url: str) -> MariaDBPlaces:
        """Connects, and looks whether it is the product that is meant."""
        target = make_url(url)
        where = target.render_as_string()
        try:
            with _connect(target) as connection, connection.cursor() as cursor:
                cursor.execute("SELECT VERSION()")
                row = cursor.fetchone()
        except pymysql.MySQLError as error:
            raise Refused(f"{where}: {error}") from error
        version = str(row[0]) if row else "unknown"
        if not self.accepts(version):
            raise Refused(f"{where}: version {version} is not {self.title}")
        return MariaDBPlaces(target, f"version {version}")

    def accepts(self, version: str) -> bool:
        """Whether a server that gives this version is of this kind."""
        return "mariadb" in version.lower()

    def start(self, directory: Path) -> PrivateMariaDB:
        """Starts one from PATH."""
        daemon = find_program("mariadbd")
        installer = find_program("mariadb-install-db", "mysql_install_db")
        if daemon is None or installer is None:
            raise Refused("mariadbd and mariadb-install-db are not on PATH")
        return PrivateMariaDB(daemon, installer, directory)


class MySQL(MariaDB):
    """MySQL: never looked for, used where a URL is given."""

    title = "MySQL"
    variable = "IDEM_TEST_MYSQL_URL"
    local: tuple[str, ...] = ()
    remedy = f"set {variable}"

    def accepts(self, version: str) -> bool:
        """Whether a server that gives this version is of this kind."""
        return not super().accepts(version)

    def start(self, directory: Path) -> PrivateMariaDB:
        """There is no private MySQL."""
        raise Refused("no URL is given")


class MariaDBPlaces:
    """Makes a database for each test."""

    def __init__(self, url: URL, version: str) -> None:
        self.url = url
        self.version = version
        with _connect(url) as connection, connection.cursor() as cursor:
            cursor.execute("SHOW DATABASES")
            for (name,) in filter(lambda row: is_stale(str(row[0])), cursor.fetchall()):
                cursor.execute(f"DROP DATABASE IF EXISTS `{name}`")

    @contextmanager
    def place(self) -> Iterator[str]:
        """The URL of a new database."""
        name = new_name()
        self._execute(f"CREATE DATABASE `{name}` CHARACTER SET utf8mb4")
        try:
            yield self.url.set(database=name).render_as_string(hide_password=False)
        finally:
            self._drop(name)

    def close(self) -> None:
        """Nothing is put off."""

    def _drop(self, name: str) -> None:
        # A session that a killed process left in a transaction would make the DROP wait.
        with _connect(self.url) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT id FROM information_schema.processlist WHERE db = %s", (name,))
            for (session,) in cursor.fetchall():
                _kill(cursor, int(session))
            cursor.execute(f"DROP DATABASE IF EXISTS `{name}`")

    def _execute(self, statement: str) -> None:
        with _connect(self.url) as connection, connection.cursor() as cursor:
            cursor.execute(statement)


class PrivateMariaDB:
    """A server of our own; it ends with this process."""

    def __init__(self, daemon: Path, installer: Path, directory: Path) -> None:
        data = directory / "data"
        data.mkdir(parents=True, exist_ok=True)
        # As root it must be told that it is meant so.
        user = ["--user=root"] if os.geteuid() == 0 else []
        install = [str(installer), "--no-defaults", f"--datadir={data}", "--skip-test-db"]
        self._install([*install, "--auth-root-authentication-method=normal", *user])
        port = free_port()
        self.url = f"mysql+pymysql://root@127.0.0.1:{port}"
        options = [f"--datadir={data}", f"--socket={directory / 's'}", f"--port={port}"]
        options += ["--bind-address=127.0.0.1", "--innodb-flush-log-at-trx-commit=0", *user]
        try:
            self._process = Process([daemon, "--no-defaults", *options], directory / "log")
        except StartFailed as error:
            raise Refused(str(error)) from error
        self._wait()

    def stop(self) -> None:
        """Shuts it down and waits for its end."""
        self._process.stop()

    def _install(self, command: list[str]) -> None:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise Refused(f"{command[0]}: {(done.stderr or done.stdout).strip()[-300:]}")

    def _wait(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT
        while True:
            try:
                _connect(make_url(self.url)).close()
                return
            except pymysql.MySQLError as error:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    said = self._process.tail(3)
                    self.stop()
                    raise Refused(f"mariadbd does not answer: {said}") from error
            time.sleep(0.05)


def _connect(url: URL) -> Connection[Cursor]:
    return pymysql.connect(
        host=url.host or "127.0.0.1",
        port=url.port or 3306,
        user=url.username or "root",
        password=url.password or "",
        autocommit=True,
        connect_timeout=5,
    )


def _kill(cursor: Cursor, session: int) -> None:
    try:
        cursor.execute(f"KILL {session}")
    except pymysql.MySQLError as error:
        if error.args[0] != ER.NO_SUCH_THREAD:
            raise


MARIADB = MariaDB()
MYSQL = MySQL()
