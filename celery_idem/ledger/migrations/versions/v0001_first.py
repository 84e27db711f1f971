"""The first tables: runs, leases, locks, entries, pauses, tasks and history.

Types and options are those of `celery_idem.ledger.schema`; names, lengths and what is null are
written out here, as this script must go on making the tables of its version.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

from celery_idem.ledger.schema import MYSQL_OPTIONS, FreeText, KeyText, UtcDateTime

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

P = "celery_idem_"


def upgrade() -> None:
    _runs()
    _leases()
    _locks()
    _entries()
    _pauses()
    _tasks()
    _history()


def downgrade() -> None:
    for name in ("history", "tasks", "pauses", "entries", "locks", "leases", "runs"):
        op.drop_table(f"{P}{name}", if_exists=True)


def _runs() -> None:
    _table(
        "runs",
        sa.Column("run_key", KeyText(255), primary_key=True),
        sa.Column("slot", UtcDateTime(), primary_key=True),
        sa.Column("namespace", KeyText(255), nullable=False),
        sa.Column("task", FreeText(), nullable=False),
        sa.Column("entry", FreeText()),
        sa.Column("state", sa.SmallInteger(), nullable=False),
        sa.Column("fence", sa.BigInteger(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("retries", sa.Integer(), nullable=False),
        sa.Column("lease_id", KeyText(40)),
        sa.Column("claim_id", KeyText(40)),
        sa.Column("task_id", FreeText()),
        sa.Column("due_at", UtcDateTime()),
        sa.Column("next_emit_at", UtcDateTime()),
        sa.Column("emit_count", sa.Integer(), nullable=False),
        sa.Column("deadline", UtcDateTime()),
        sa.Column("message", FreeText()),
        sa.Column("error", FreeText()),
        sa.Column("callbacks_pending", sa.Boolean()),
        sa.Column("result", FreeText()),
        sa.Column("payload", KeyText(40)),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("started_at", UtcDateTime()),
        sa.Column("finished_at", UtcDateTime()),
    )
    _index("runs_due", "runs", ["namespace", "next_emit_at"], where="state IN (0, 3)")
    _index("runs_running", "runs", ["namespace", "state"], where="state = 2")
    _index("runs_pending", "runs", ["namespace", "callbacks_pending"], where="callbacks_pending")


def _leases() -> None:
    _table(
        "leases",
        sa.Column("id", KeyText(40), primary_key=True),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("host", FreeText(), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("process", KeyText(40), nullable=False),
        sa.Column("namespace", KeyText(255)),
        sa.Column("started_at", UtcDateTime(), nullable=False),
        sa.Column("expires_at", UtcDateTime(), nullable=False),
    )


def _locks() -> None:
    _table(
        "locks",
        sa.Column("name", KeyText(255), primary_key=True),
        sa.Column("seat", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("fence", sa.BigInteger(), nullable=False),
        sa.Column("lease_id", KeyText(40)),
        sa.Column("claim_id", KeyText(40)),
        sa.Column("taken_at", UtcDateTime(), nullable=False),
        sa.Column("ends_at", UtcDateTime()),
    )


def _entries() -> None:
    _table(
        "entries",
        sa.Column("entry", KeyText(255), primary_key=True),
        sa.Column("fingerprint", KeyText(64), primary_key=True),
        sa.Column("active_since", UtcDateTime(), nullable=False),
        sa.Column("last_seen_at", UtcDateTime(), nullable=False),
        sa.Column("agreed_slot", UtcDateTime()),
    )


def _pauses() -> None:
    _table(
        "pauses",
        sa.Column("entry", KeyText(255), primary_key=True),
        sa.Column("namespace", KeyText(255), nullable=False),
        sa.Column("paused_at", UtcDateTime(), nullable=False),
        sa.Column("resumed_at", UtcDateTime()),
        sa.Column("paused_by", FreeText()),
        sa.Column("note", FreeText()),
    )


def _tasks() -> None:
    _table(
        "tasks",
        sa.Column("task", KeyText(255), primary_key=True),
        sa.Column("namespace", KeyText(255), nullable=False),
        sa.Column("seen_at", UtcDateTime(), nullable=False),
    )


def _history() -> None:
    _table(
        "history",
        sa.Column("id", KeyText(40), primary_key=True),
        sa.Column("at", UtcDateTime(), nullable=False),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("run_key", KeyText(255), nullable=False),
        sa.Column("slot", UtcDateTime(), nullable=False),
        sa.Column("task", FreeText()),
        sa.Column("task_id", FreeText()),
        sa.Column("host", FreeText()),
        sa.Column("pid", sa.Integer()),
        sa.Column("detail", FreeText()),
    )
    _index("history_run", "history", ["run_key", "slot"])


def _table(name: str, *columns: sa.Column[Any]) -> None:
    op.create_table(f"{P}{name}", *columns, if_not_exists=True, **MYSQL_OPTIONS)


def _index(name: str, table: str, columns: list[str], where: str | None = None) -> None:
    # MySQL knows no 'CREATE INDEX IF NOT EXISTS': look first, and let whoever comes second fail
    # and look again.
    bind = op.get_bind()
    schema = op.get_context().version_table_schema
    there = sa.inspect(bind).get_indexes(f"{P}{table}", schema=schema)
    if f"{P}{name}" in {index["name"] for index in there}:
        return
    condition = sa.text(where) if where else None
    op.create_index(
        f"{P}{name}", f"{P}{table}", columns, postgresql_where=condition, sqlite_where=condition
    )
