"""The shop's Celery app: what a project changes to adopt celery_idem is marked (1), (2), (3).

Owns: the configuration. It comes from the environment, so that beats and workers are started by
Celery's own commands, as many as you like, on as many machines:

    celery -A example_project.app worker
    celery -A example_project.app beat

===================  ========================  ===============================================
Variable             Default                   Meaning
===================  ========================  ===============================================
SHOP_NAME            shop                      Name of the app, of its queue, and in the
                                               ledger: two shops may share the servers.
SHOP_BROKER_URL      redis://127.0.0.1:6379/0  Any broker of Celery.
SHOP_BROKER_OPTIONS  {}                        `broker_transport_options`, as JSON.
SHOP_DATABASE_URL    sqlite:///shop.sqlite3    SQLAlchemy's URL: the shop's table, the ledger.
SHOP_SCHEDULER       idem                      idem, or stock: Celery's scheduler, plain tasks.
SHOP_LEASE           60                        Seconds for which a worker that died keeps what
                                               it was executing.
SHOP_STEP            0                         The shortest interval in seconds, to watch the
                                               shop at high speed; 0: its real hours.
SHOP_INCLUDE                                   More modules to import, separated by commas.
===================  ========================  ===============================================

Must not know: what the tasks do.
"""

from __future__ import annotations

from celery import Celery

from example_project import settings
from example_project.schedule import beat_schedule

IDEM = settings.SCHEDULER == "idem"

app = Celery(
    settings.NAME,
    # (1) Every task claims its run in the ledger before its body starts. To begin with one task
    # instead of all, write @app.task(base=IdempotentTask) at that one.
    task_cls="celery_idem:IdempotentTask" if IDEM else None,
    broker=settings.BROKER_URL,
    include=["example_project.tasks", *settings.INCLUDE],
)
app.conf.update(
    broker_transport_options=settings.BROKER_OPTIONS,
    broker_connection_retry_on_startup=True,
    task_default_queue=settings.NAME,
    beat_schedule=beat_schedule(),
    # Nobody asks for the result of a periodic task; the shop looks into its tables.
    task_ignore_result=True,
    # A worker that is stopped has little to hand back.
    worker_prefetch_multiplier=1,
)
if IDEM:
    app.conf.update(
        # (2) Each beat names a message after the slot that it belongs to: so any number of
        # beats, whenever they were started, speak of the same runs.
        beat_scheduler="celery_idem.IdempotentScheduler",
        # (3) The database that decides. The shop's own is the best choice: what is backed up,
        # restored and failed over together stays in agreement, and a task can write its effect
        # in one transaction with the end of its run (see `tasks.record`).
        idem_database_url=settings.DATABASE_URL,
        idem_lease=settings.LEASE,
    )
