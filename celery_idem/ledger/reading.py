"""How runs are read: which columns, beside the lease and the clock that they are seen by.

Must not know who reads them.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Select, select

from celery_idem.ledger.dialects import db_now
from celery_idem.ledger.schema import leases, runs
from celery_idem.ledger.statements import one_run

_RUN_COLUMNS = [
    runs.c[name]
    for name in [
        "run_key",
        "slot",
        "namespace",
        "task",
        "entry",
        "state",
        "fence",
        "attempts",
        "retries",
        "lease_id",
        "claim_id",
        "task_id",
        "due_at",
        "emit_count",
        "deadline",
        "message",
        "error",
        "started_at",
        "finished_at",
        "callbacks_pending",
        "result",
        "payload",
        "created_at",
    ]
]


def read_runs() -> Select[Any]:
    """Runs with the end of their lease, beside the database's clock to compare it with."""
    return select(
        *_RUN_COLUMNS, leases.c.expires_at.label("expires_at"), db_now().label("now")
    ).select_from(runs.outerjoin(leases, leases.c.id == runs.c.lease_id))


READ: Select[Any] = read_runs().where(one_run())
