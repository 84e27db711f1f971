"""The app that is measured: the same task plain and idempotent.

Owns the configuration, which comes from the environment, as workers are processes of their own.
Must not know who measures what.

====================  ===========================================================================
Variable              Meaning
====================  ===========================================================================
BENCH_BROKER_URL      The broker.
BENCH_PREFIX          Prefix of all Redis keys.
BENCH_DATABASE_URL    Where the ledger is.
BENCH_PLAIN           Set: celery_idem is not imported, and there is only the plain task.
====================  ===========================================================================
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from celery import Celery


def make(environment: Mapping[str, str]) -> Celery:
    """An app with the tasks ``bench.plain`` and, unless told otherwise, ``bench.idem``."""
    app = Celery("bench", broker=environment.get("BENCH_BROKER_URL", "memory://"))
    app.conf.update(
        broker_transport_options={"global_keyprefix": environment.get("BENCH_PREFIX", "")},
        broker_connection_retry_on_startup=True,
        task_default_queue="default",
        task_ignore_result=True,
        worker_prefetch_multiplier=16,
    )

    # Not shared: each of several apps in one process has its own.
    @app.task(name="bench.plain", acks_late=True, reject_on_worker_lost=True, shared=False)
    def plain() -> None:
        """Nothing: what is left is the cost around it."""

    if "BENCH_PLAIN" not in environment:
        from celery_idem import IdempotentTask

        app.conf.idem_database_url = environment.get(
            "BENCH_DATABASE_URL", "sqlite:///bench.sqlite3"
        )

        @app.task(name="bench.idem", base=IdempotentTask, shared=False)
        def idem() -> None:
            """The same nothing, once per run key."""

    return app


app = make(os.environ)
