"""Rows of Django's models and the end of the run in one COMMIT.

Owns the transaction on Django's own connection. Must not know what is stored of a run.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from django.db import connections, transaction

from celery_idem.errors import LeaseLost
from celery_idem.run import current_run


@contextmanager
def idempotent_atomic(using: str = "default") -> Iterator[None]:
    """`transaction.atomic`, whose COMMIT contains the end of the current run.

    What the block writes and ``succeeded`` become visible together or not at all. The ledger must
    be in the database `using`. The block is durable: it cannot stand in another `atomic`, which
    would commit, or roll back, later. The run has ended with it.

    Raises:
        LeaseLost: the run has another owner, or has ended; all was rolled back.
        NoCurrentRun: no claimed run is being executed.
        RuntimeError: the block stands in another `atomic`.
    """
    run = current_run()
    run.check()
    with transaction.atomic(using=using, durable=True):
        yield
        with connections[using].cursor() as cursor:
            cursor.execute(*run.finish_statement())
            if not cursor.rowcount:
                reason = "it has ended or was taken over, and the block was rolled back"
                raise LeaseLost(run.key.text, run.fence, reason)
