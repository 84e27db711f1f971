"""celery_idem: one execution per slot, for Celery beat.

Several beats may run at once. Each computes the same *slots* (the nominal instants at which an
entry of the schedule is due), and names each by the same *run key*, which travels in the message. A
worker that receives such a message first *claims* the run by a unique insert into the *ledger*, a
few tables in your database; whoever comes second with the same key finds the claim and does
nothing. Redelivered, retried and repeated messages are recognised in the same way.

Three edits adopt it::

    @app.task(base=IdempotentTask)
    def daily_bill(customer): ...

    app.conf.beat_scheduler = "celery_idem:IdempotentScheduler"
    app.conf.idem_database_url = "postgresql://..."

Outside of Celery, `Ledger.once` and `Ledger.idempotent` give the same to any process.

What holds, and under which conditions, stands in the documentation under *guarantees*.
"""

from __future__ import annotations

from celery_idem import signals
from celery_idem.backfilling import backfill
from celery_idem.critical import critical_section
from celery_idem.errors import (
    AlreadyScheduled,
    DuplicateRun,
    IdemError,
    ImproperlyConfigured,
    InvalidHeader,
    InvalidRunKey,
    InvalidSchedule,
    KeyReused,
    LeaseLost,
    LedgerError,
    LedgerUnavailable,
    LedgerVersionMismatch,
    LockLost,
    LockNotAcquired,
    LockReentered,
    NoCurrentRun,
    NotCanonical,
    ResultLost,
    RunDead,
)
from celery_idem.keys import RunKey
from celery_idem.ledger import Ledger
from celery_idem.ledger.outside import bring
from celery_idem.once import OUTSIDE
from celery_idem.policy import (
    CatchUp,
    OnContended,
    OnCrash,
    OnDatabaseError,
    OnDuplicate,
    Overlap,
    Publish,
    Scope,
    Unstamped,
)
from celery_idem.reserving import send_once
from celery_idem.run import Run, RunState, current_run
from celery_idem.scheduler import IdempotentScheduler
from celery_idem.stamping import StampingMixin
from celery_idem.task import IdempotentTask

__version__ = "0.1.0"

# A ledger is below leases and bodies, and does not import what needs them.
bring(OUTSIDE)

__all__ = [  # noqa: RUF022 - grouped by subject
    # What a project uses
    "IdempotentTask",
    "IdempotentScheduler",
    "StampingMixin",
    "backfill",
    "critical_section",
    "current_run",
    "send_once",
    "signals",
    # What it may look at
    "Ledger",
    "Run",
    "RunKey",
    "RunState",
    # Policies (their strings are accepted everywhere)
    "CatchUp",
    "OnContended",
    "OnCrash",
    "OnDatabaseError",
    "OnDuplicate",
    "Overlap",
    "Publish",
    "Scope",
    "Unstamped",
    # Errors
    "AlreadyScheduled",
    "DuplicateRun",
    "IdemError",
    "ImproperlyConfigured",
    "InvalidHeader",
    "InvalidRunKey",
    "InvalidSchedule",
    "KeyReused",
    "LeaseLost",
    "LedgerError",
    "LedgerUnavailable",
    "LedgerVersionMismatch",
    "LockLost",
    "LockNotAcquired",
    "LockReentered",
    "NoCurrentRun",
    "NotCanonical",
    "ResultLost",
    "RunDead",
]
