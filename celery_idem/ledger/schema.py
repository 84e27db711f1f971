"""The tables of the ledger.

Owns names, columns and types. The tables live on one `MetaData`, so that a project can put them
into its own Alembic migrations. Must not know which statements are run on them.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ColumnElement,
    DateTime,
    Dialect,
    Index,
    Integer,
    MetaData,
    SmallInteger,
    String,
    Table,
    Text,
    literal_column,
)
from sqlalchemy.dialects import mysql, postgresql
from sqlalchemy.types import TypeDecorator, TypeEngine

from celery_idem.clock import UTC
from celery_idem.keys import MAX_STORED_BYTES
from celery_idem.run import RunState

PREFIX = "celery_idem_"

#: Names of indexes and constraints must be the same in migrations and in a user's own Alembic.
metadata = MetaData()


#: Attribute of a dialect whose database lacks characters; set when it is connected.
ASCII_ONLY = "celery_idem_ascii_only"


class KeyText(TypeDecorator[str]):
    """Text that is compared byte by byte: case, accents and trailing spaces count.

    MariaDB and MySQL pad and fold text even in ``utf8mb4_bin`` ('t1' = 't1 '), so that it is
    VARBINARY there.
    """

    impl = String
    cache_ok = True

    def __init__(self, length: int) -> None:
        super().__init__(length)
        self.length = length

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        length = self.length
        if dialect.name in ("mysql", "mariadb"):
            return dialect.type_descriptor(mysql.VARBINARY(length))
        if dialect.name == "postgresql":
            return dialect.type_descriptor(postgresql.VARCHAR(length, collation="C"))
        return dialect.type_descriptor(String(length))

    def process_bind_param(self, value: str | None, dialect: Dialect) -> Any:
        if value is not None and dialect.name in ("mysql", "mariadb"):
            return value.encode()
        return value

    def process_result_value(self, value: Any, dialect: Dialect) -> str | None:
        return value.decode() if isinstance(value, bytes | bytearray) else value


class FreeText(TypeDecorator[str]):
    """Text that somebody else made: a name of a task, an error, a message.

    It must never make a statement fail, as a run whose end cannot be written would hang: what a
    database cannot store (NUL, half of a surrogate pair; in one that is not in UTF-8, all but
    ASCII) is written as an escape.
    """

    impl = Text
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        if dialect.name in ("mysql", "mariadb"):
            # TEXT ends at 64 KiB there.
            return dialect.type_descriptor(mysql.MEDIUMTEXT(collation="utf8mb4_bin"))
        return dialect.type_descriptor(Text())

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        if value is None or (value.isascii() and "\0" not in value):
            return value
        encoding = "ascii" if getattr(dialect, ASCII_ONLY, False) else "utf-8"
        return value.replace("\0", "\\x00").encode(encoding, "backslashreplace").decode()


class UtcDateTime(TypeDecorator[datetime]):
    """An aware instant with microseconds, kept in UTC."""

    impl = DateTime
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        if dialect.name in ("mysql", "mariadb"):
            return dialect.type_descriptor(mysql.DATETIME(fsp=6))
        return dialect.type_descriptor(DateTime(timezone=dialect.name == "postgresql"))

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        value = value.astimezone(UTC)
        return value if dialect.name == "postgresql" else value.replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


#: For MySQL and MariaDB: rows must be locked one by one, and every character be stored, whatever
#: the defaults of server and database are.
MYSQL_OPTIONS: dict[str, Any] = {
    f"{name}_{option}": value
    for name in ("mysql", "mariadb")
    for option, value in (("engine", "InnoDB"), ("charset", "utf8mb4"))
}


def literal_state(state: RunState) -> ColumnElement[int]:
    """A state in the text of a statement: a planner cannot match a value that it does not know to
    a partial index, and each value costs time.
    """
    return literal_column(str(state.value), SmallInteger())


runs = Table(
    f"{PREFIX}runs",
    metadata,
    Column("run_key", KeyText(MAX_STORED_BYTES), primary_key=True),
    #: The epoch for a run that belongs to no slot. Part of the key so that it can partition.
    Column("slot", UtcDateTime(), primary_key=True),
    Column("namespace", KeyText(MAX_STORED_BYTES), nullable=False),
    Column("task", FreeText(), nullable=False),
    Column("entry", FreeText()),
    Column("state", SmallInteger(), nullable=False),
    Column("fence", BigInteger(), nullable=False),
    #: Claims of the present retry number.
    Column("attempts", Integer(), nullable=False),
    Column("retries", Integer(), nullable=False),
    #: Set by a claim; null while the run can be claimed, which `statements.claim` relies on.
    Column("lease_id", KeyText(40)),
    #: The claim, or the emission batch, that took the row last: found again after a lost answer.
    Column("claim_id", KeyText(40)),
    Column("task_id", FreeText()),
    Column("due_at", UtcDateTime()),
    Column("next_emit_at", UtcDateTime()),
    Column("emit_count", Integer(), nullable=False),
    Column("deadline", UtcDateTime()),
    #: The message (JSON), where it cannot be made again from a schedule entry.
    Column("message", FreeText()),
    Column("error", FreeText()),
    #: True from the end of a run until its links, chain and chord have been sent; null otherwise.
    Column("callbacks_pending", Boolean()),
    #: What the body has returned (JSON): kept, or for whoever sends them if its worker dies.
    Column("result", FreeText()),
    #: A digest of the arguments, where a key alone does not say them.
    Column("payload", KeyText(40)),
    Column("created_at", UtcDateTime(), nullable=False),
    Column("started_at", UtcDateTime()),
    Column("finished_at", UtcDateTime()),
    **MYSQL_OPTIONS,
)

#: What a reconciler looks at: partial where the database can, so that finished runs cost nothing.
_open = runs.c.state.in_([literal_state(RunState.SCHEDULED), literal_state(RunState.RETRYING)])
Index(
    f"{PREFIX}runs_due",
    runs.c.namespace,
    runs.c.next_emit_at,
    postgresql_where=_open,
    sqlite_where=_open,
)
_running = runs.c.state == literal_state(RunState.RUNNING)
Index(
    f"{PREFIX}runs_running",
    runs.c.namespace,
    runs.c.state,
    postgresql_where=_running,
    sqlite_where=_running,
)
Index(
    f"{PREFIX}runs_pending",
    runs.c.namespace,
    runs.c.callbacks_pending,
    postgresql_where=runs.c.callbacks_pending,
    sqlite_where=runs.c.callbacks_pending,
)

leases = Table(
    f"{PREFIX}leases",
    metadata,
    Column("id", KeyText(40), primary_key=True),
    Column("kind", String(16), nullable=False),
    Column("host", FreeText(), nullable=False),
    Column("pid", Integer(), nullable=False),
    #: Made before the fork: tells the children of one parent from those of another container.
    Column("process", KeyText(40), nullable=False),
    #: Whose slots a beat emits; null for workers.
    Column("namespace", KeyText(MAX_STORED_BYTES)),
    Column("started_at", UtcDateTime(), nullable=False),
    Column("expires_at", UtcDateTime(), nullable=False),
    **MYSQL_OPTIONS,
)

locks = Table(
    f"{PREFIX}locks",
    metadata,
    #: Namespace and name of a lock, shortened like a run key.
    Column("name", KeyText(MAX_STORED_BYTES), primary_key=True),
    #: From 0; more than one for a lock that several may hold at once.
    Column("seat", Integer(), primary_key=True, autoincrement=False),
    Column("fence", BigInteger(), nullable=False),
    #: Of the holder; null once it was released.
    Column("lease_id", KeyText(40)),
    #: Of the last taking.
    Column("claim_id", KeyText(40)),
    Column("taken_at", UtcDateTime(), nullable=False),
    #: Free from then on, whatever its holder does; null if only its lease counts.
    Column("ends_at", UtcDateTime()),
    **MYSQL_OPTIONS,
)

entries = Table(
    f"{PREFIX}entries",
    metadata,
    #: Namespace and name of a schedule entry, shortened like a run key.
    Column("entry", KeyText(MAX_STORED_BYTES), primary_key=True),
    Column("fingerprint", KeyText(64), primary_key=True),
    Column("active_since", UtcDateTime(), nullable=False),
    Column("last_seen_at", UtcDateTime(), nullable=False),
    #: The last slot of a custom schedule, agreed by compare-and-set.
    Column("agreed_slot", UtcDateTime()),
    **MYSQL_OPTIONS,
)

#: Kept when it has ended: what was due meanwhile is not made up by a beat that saw nothing of it.
pauses = Table(
    f"{PREFIX}pauses",
    metadata,
    #: As in `entries`.
    Column("entry", KeyText(MAX_STORED_BYTES), primary_key=True),
    Column("namespace", KeyText(MAX_STORED_BYTES), nullable=False),
    Column("paused_at", UtcDateTime(), nullable=False),
    #: Null while it lasts.
    Column("resumed_at", UtcDateTime()),
    Column("paused_by", FreeText()),
    Column("note", FreeText()),
    **MYSQL_OPTIONS,
)

tasks = Table(
    f"{PREFIX}tasks",
    metadata,
    #: Namespace and name of a task that claims, shortened like a run key.
    Column("task", KeyText(MAX_STORED_BYTES), primary_key=True),
    Column("namespace", KeyText(MAX_STORED_BYTES), nullable=False),
    Column("seen_at", UtcDateTime(), nullable=False),
    **MYSQL_OPTIONS,
)

history = Table(
    f"{PREFIX}history",
    metadata,
    #: Made by the writer, growing with time (`celery_idem.ledger.rows.line_id`).
    Column("id", KeyText(40), primary_key=True),
    Column("at", UtcDateTime(), nullable=False),
    Column("kind", String(32), nullable=False),
    Column("run_key", KeyText(MAX_STORED_BYTES), nullable=False),
    Column("slot", UtcDateTime(), nullable=False),
    Column("task", FreeText()),
    Column("task_id", FreeText()),
    Column("host", FreeText()),
    Column("pid", Integer()),
    Column("detail", FreeText()),
    **MYSQL_OPTIONS,
)
Index(f"{PREFIX}history_run", history.c.run_key, history.c.slot)
