"""An app whose parent process has used the ledger before it forks its pool.

Owns: a task that tells which process and which connection it has. Must not know: its test.
"""

from __future__ import annotations

import os
from typing import Any

from sqlalchemy import text

from celery_idem import IdempotentTask, current_run
from celery_idem.member import Member
from tests.integration.apps.base import effect, make_app, wait_at

app = make_app()


@app.task(base=IdempotentTask, name="tests.whoami")
def whoami(gate: str | None = None) -> dict[str, Any]:
    """Its process, the server's process behind its connection, and its lease."""
    effect("started")
    if gate:
        wait_at(gate)
    database: Any = Member.of(app).leases.ledger
    answer = database.database.run(text("SELECT pg_backend_pid()"))
    lease: Any = current_run().tenure
    effect("ended")
    return {"pid": os.getpid(), "backend": answer.rows[0][0], "lease": lease.id}


#: Executed on import, which is before the fork.
PARENT: dict[str, Any] = whoami.apply(task_id=f"parent-{os.getpid()}").get()


@app.task(name="tests.parent")
def parent() -> dict[str, Any]:
    """What `whoami` told in the parent."""
    return PARENT
