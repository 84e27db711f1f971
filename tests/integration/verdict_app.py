"""An app whose tasks do not end by themselves, for tests of how they are ended."""

from __future__ import annotations

import os
import time

from celery import Celery

from celery_idem import IdempotentTask, critical_section

app = Celery("verdicts", broker=os.environ["BROKER"], backend=os.environ["BACKEND"])
app.conf.idem_database_url = os.environ["LEDGER"]
app.conf.idem_lease = 60
app.conf.broker_connection_retry_on_startup = True


@app.task(base=IdempotentTask, time_limit=1)
def limited() -> None:
    """Exceeds its hard time limit, in a critical section."""
    with critical_section("desk"):
        time.sleep(600)


@app.task(base=IdempotentTask)
def endless() -> None:
    """Waits to be revoked."""
    time.sleep(600)


@app.task(base=IdempotentTask)
def short() -> str:
    """Shows that the worker goes on."""
    return "done"
