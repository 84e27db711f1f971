"""What a project may import, and what the import costs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import celery_idem

#: A change here is a change for users: it belongs in the change log.
PUBLIC = [
    "AlreadyScheduled",
    "CatchUp",
    "DuplicateRun",
    "IdemError",
    "IdempotentScheduler",
    "IdempotentTask",
    "ImproperlyConfigured",
    "InvalidHeader",
    "InvalidRunKey",
    "InvalidSchedule",
    "KeyReused",
    "LeaseLost",
    "Ledger",
    "LedgerError",
    "LedgerUnavailable",
    "LedgerVersionMismatch",
    "LockLost",
    "LockNotAcquired",
    "LockReentered",
    "NoCurrentRun",
    "NotCanonical",
    "OnContended",
    "OnCrash",
    "OnDatabaseError",
    "OnDuplicate",
    "Overlap",
    "Publish",
    "ResultLost",
    "Run",
    "RunDead",
    "RunKey",
    "RunState",
    "Scope",
    "StampingMixin",
    "Unstamped",
    "backfill",
    "critical_section",
    "current_run",
    "send_once",
    "signals",
]
#: Loaded where a ledger or a broker is used: SQLAlchemy alone takes longer than Celery. Some of
#: `django` itself is loaded by kombu.
LATE = {
    *("sqlalchemy", "alembic", "redis", "psycopg", "pymysql"),
    *("django.db", "django_celery_beat", "redbeat"),
}


def test_public_names() -> None:
    assert sorted(celery_idem.__all__) == PUBLIC
    for name in PUBLIC:
        assert getattr(celery_idem, name).__doc__, f"{name} has no docstring"


def test_the_version_is_that_of_the_distribution() -> None:
    from importlib.metadata import version

    assert celery_idem.__version__ == version("celery-idem")


def test_the_import_is_light() -> None:
    code = "import sys, celery_idem; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout.split()
    assert "celery_idem.task" in loaded
    assert set(loaded) & LATE == set()


def test_a_ledger_without_transactions_loads_no_orm(tmp_path: Path) -> None:
    """Six megabytes in every process of a pool."""
    url = f"sqlite:///{tmp_path / 'ledger.sqlite3'}"
    code = (
        "import sys; from celery_idem import Ledger; "
        f"Ledger.from_url({url!r}, create_tables=False); "
        "print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    loaded = done.stdout.split()
    assert "sqlalchemy" in loaded
    assert {"sqlalchemy.orm", "alembic"} & set(loaded) == set()
