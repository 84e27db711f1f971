"""Which version the tables have, and how they get to the present one.

Owns the version table and the Alembic scripts beside this file. Alembic itself is loaded only when
something has to change. Must not know what the tables mean.
"""

from __future__ import annotations

import logging
import os
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Column, Connection, Engine, MetaData, String, Table, inspect, select
from sqlalchemy.exc import SQLAlchemyError

from celery_idem.clock import SYSTEM
from celery_idem.errors import LedgerError, LedgerVersionMismatch
from celery_idem.ledger.database import Database
from celery_idem.ledger.failures import Failure, classify, translate
from celery_idem.ledger.schema import metadata

#: The version of the tables that this code works with: the newest script.
HEAD = "0001"
VERSION_TABLE = "celery_idem_version"

#: Seconds for which a process that meets others creating the tables goes on trying.
PATIENCE = 30.0

_UPGRADE = "run 'celery -A PROJECT idem upgrade'"

#: As Alembic makes it; not on the ledger's metadata, as it is not part of a user's own migrations.
_version = Table(VERSION_TABLE, MetaData(), Column("version_num", String(32)))

#: Alembic keeps what it works on in global names. A forked child gets a lock of its own, as
#: another thread of the parent may hold this one.
_alembic_lock = threading.Lock()


def _new_lock() -> None:
    global _alembic_lock
    _alembic_lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_new_lock)


def ensure_current(database: Database, *, create: bool) -> None:
    """Make sure that the tables have the version of this code.

    Absent tables are created if `create` is true; tables of another version are never touched
    here, as other processes may still run with that version. Without a version table, and with
    `create` false, the tables may be those of a project's own migrations: they are accepted if no
    column is missing.

    Raises:
        LedgerVersionMismatch: the tables are of another version.
        LedgerError: the tables are absent and may not, or cannot, be created.
        LedgerUnavailable: the database does not answer.
    """
    found = version(database)
    if found is None and create:
        _create(database)
        found = version(database)
    if found is None:
        _check_columns(database)
    elif found != HEAD:
        raise LedgerVersionMismatch(found, HEAD, _way_out(found))


def version(database: Database) -> str | None:
    """The version of the tables, None if there is none."""

    def look(connection: Connection) -> str | None:
        # A look into the catalogue rather than a failing SELECT, which some servers log as an
        # error.
        if not inspect(connection).has_table(VERSION_TABLE, schema=database.schema):
            return None
        return connection.execute(select(_version.c.version_num)).scalar()

    return database.inspect(look)


def are_absent(database: Database) -> bool:
    """True if the database has no table of the ledger. Makes nothing, no file of SQLite either.

    Raises:
        LedgerUnavailable: the database does not answer.
    """
    file = database.url.database or ""
    if database.dialect == "sqlite" and not file.startswith("file:") and not Path(file).exists():
        return True

    def look(connection: Connection) -> bool:
        there = inspect(connection).get_table_names(schema=database.schema)
        return not {VERSION_TABLE, *metadata.tables} & set(there)

    return database.inspect(look)


@contextmanager
def _quiet_alembic() -> Iterator[None]:
    """Keep Alembic's account of its own set-up out of the logs of workers and beats."""
    logger = logging.getLogger("alembic")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


def upgrade(database: Database, revision: str = "head") -> None:
    """Bring the tables to `revision`, creating what is absent.

    Raises:
        LedgerUnavailable: the database does not answer.
        LedgerError: it refused; the tables may have been changed in part on MySQL and SQLite.
    """
    try:
        _upgrade(database, revision)
    except SQLAlchemyError as exc:
        raise translate(exc, classify(exc), database.shown) from exc


def _upgrade(database: Database, revision: str) -> None:
    # An engine of its own: a connection that has been in a transaction never comes back to those
    # that must commit each statement.
    with _alembic_lock, database.gate, _quiet_alembic():
        from alembic import command

        command.upgrade(_config(database.apart(), database.schema), revision)


def _create(database: Database) -> None:
    # Several workers of a first deploy do this at once. Every script creates only what is absent,
    # and whoever is disturbed by another one ('IF NOT EXISTS' is not atomic in PostgreSQL) looks
    # again after a random pause.
    deadline = SYSTEM.elapsed() + PATIENCE
    while True:
        try:
            _upgrade(database, "head")
            return
        except SQLAlchemyError as exc:
            if version(database) is not None:
                return
            failure = classify(exc)
            if failure is Failure.UNAVAILABLE or SYSTEM.elapsed() > deadline:
                error = translate(exc, failure, database.shown)
                error.way_out = "create the tables with a role that may: " + _UPGRADE
                error.args = (error.reason, error.way_out)
                raise error from exc
        time.sleep(random.uniform(0.02, 0.2))


def _check_columns(database: Database) -> None:
    missing = database.inspect(lambda connection: _missing(connection, database.schema))
    if len(missing) == len(metadata.tables):
        raise LedgerError(
            f"the ledger's tables are absent from {database.shown}",
            f"{_UPGRADE}, or set idem_create_tables = True",
        )
    if missing:
        raise LedgerVersionMismatch(
            f"without {', '.join(missing)}",
            HEAD,
            "add them to the project's own migrations of celery_idem.ledger.schema.metadata",
        )


def _missing(connection: Connection, schema: str | None) -> list[str]:
    """Tables and columns that are not there."""
    inspector = inspect(connection)
    missing: list[str] = []
    for table in metadata.sorted_tables:
        if not inspector.has_table(table.name, schema=schema):
            missing.append(table.name)
            continue
        there = {column["name"] for column in inspector.get_columns(table.name, schema=schema)}
        missing += [f"{table.name}.{name}" for name in table.c.keys() if name not in there]  # noqa: SIM118
    return missing


def _config(engine: Engine, schema: str | None) -> Any:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.attributes["engine"] = engine
    config.attributes["schema"] = schema
    return config


def _way_out(found: str) -> str:
    if found.isdigit() and int(found) < int(HEAD):
        return _UPGRADE
    return "install the celery-idem release that made these tables, or a newer one"
