"""An app whose bodies write in the transaction of their run.

Owns: bodies; what they book is a row of `effects` that the ledger's database has. Must not know:
which test uses them.
"""

from __future__ import annotations

from typing import Any

from celery import Task
from sqlalchemy import text

from celery_idem import IdempotentTask, current_run
from tests.integration.apps.base import effect, make_app, record_signals, wait_at
from tests.integration.apps.tasks import die

app = make_app()
record_signals()

_BOOK = text(
    "INSERT INTO effects (what, task_id, attempt, fence) VALUES ('booked', :id, :attempt, :fence)"
)


def book(connection: Any) -> None:
    """One row more, whose transaction is not ended here."""
    run = current_run()
    values = {"id": run.task_id, "attempt": run.attempt, "fence": run.fence}
    connection.execute(_BOOK, values)


@app.task(base=IdempotentTask, name="tests.books")
def books() -> str:
    with current_run().transaction() as connection:
        book(connection)
    return "booked"


@app.task(base=IdempotentTask, name="tests.books_by_session")
def books_by_session() -> str:
    with current_run().session() as session:
        book(session)
        session.commit()
    return "booked"


@app.task(base=IdempotentTask, name="tests.tolerant", on_database_error="run")
def tolerant() -> str:
    with current_run().transaction() as connection:
        book(connection)
    return "booked"


@app.task(base=IdempotentTask, name="tests.dies_before")
def dies_before() -> str:
    """Dies with everything done but the COMMIT, in its first attempt."""
    with current_run().transaction() as connection:
        book(connection)
        if current_run().attempt == 1:
            effect("dies")
            die()
    return "booked"


@app.task(base=IdempotentTask, name="tests.dies_after")
def dies_after() -> str:
    """Dies right after its COMMIT."""
    with current_run().transaction() as connection:
        book(connection)
    effect("dies")
    die()
    return "never"


@app.task(base=IdempotentTask, name="tests.stays_after")
def stays_after(gate: str) -> str:
    """Waits after its COMMIT."""
    with current_run().transaction() as connection:
        book(connection)
    effect("committed")
    wait_at(gate)
    return "booked"


@app.task(base=IdempotentTask, name="tests.raises_in")
def raises_in() -> None:
    with current_run().transaction() as connection:
        book(connection)
        raise ValueError("in the block")


@app.task(base=IdempotentTask, name="tests.raises_after")
def raises_after() -> None:
    with current_run().transaction() as connection:
        book(connection)
    raise ValueError("after the block")


@app.task(base=IdempotentTask, bind=True, name="tests.retries_after")
def retries_after(self: Task[Any, Any]) -> None:
    with current_run().transaction() as connection:
        book(connection)
    raise self.retry(countdown=0)


@app.task(base=IdempotentTask, bind=True, name="tests.retries_in")
def retries_in(self: Task[Any, Any]) -> str:
    """Asks for a retry in the block: what it has booked is rolled back."""
    with current_run().transaction() as connection:
        book(connection)
        if not self.request.retries:
            effect("retrying")
            raise self.retry(countdown=0)
    return "booked"
