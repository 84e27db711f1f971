"""What the apps of the beats' tests share: settings, schedule and a table of effects.

Owns: the table, in which each execution leaves a row. It has no unique constraint: a second
execution of a slot is a second row.
Must not know: what is tested.
"""

from __future__ import annotations

import json
import os
from datetime import timedelta
from typing import Any

from celery import Celery, current_task
from celery.schedules import crontab, schedule, solar
from sqlalchemy import Column, Integer, MetaData, String, Table, Text, create_engine
from sqlalchemy.pool import NullPool

from celery_idem import IdempotentTask, current_run

SETTINGS = "IDEM_BEATS_SETTINGS"
SCHEDULE = "IDEM_BEATS_SCHEDULE"
EFFECTS = "IDEM_BEATS_EFFECTS"
#: The path of a file: a beat changes its schedule once it is there.
CHANGE = "IDEM_BEATS_CHANGE"
#: The path of a file at which bodies wait; each that waits leaves one with the suffix of its pid.
GATE = "IDEM_BEATS_GATE"
NAMESPACE = "beats"

metadata = MetaData()
effects = Table(
    "beat_effects",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("entry", String(400)),
    # ISO 8601 in UTC, as text: the same on every database. None: a plain task is not told.
    Column("slot", String(40)),
    Column("task_id", String(80)),
    Column("detail", Text),
    Column("pid", Integer),
)


def make_app(**more: Any) -> Celery:
    """The app as the test has described it; `more` are settings of the app module."""
    app = Celery(NAMESPACE)
    app.conf.update(
        beat_scheduler="idem",
        worker_prefetch_multiplier=1,
        task_ignore_result=True,
        beat_schedule={
            name: {**entry, "schedule": make_schedule(entry["schedule"])}
            for name, entry in json.loads(os.environ.get(SCHEDULE, "{}")).items()
        },
    )
    app.conf.update(json.loads(os.environ[SETTINGS]))
    app.conf.update(more)
    return app


def make_schedule(described: Any) -> Any:
    """Seconds, the arguments of a crontab, or those of an event of the sun."""
    if isinstance(described, dict):
        return crontab(**described)
    if isinstance(described, list):
        return solar(*described)
    return schedule(timedelta(seconds=described))


def add_tasks(app: Celery) -> None:
    """The tasks that leave an effect: one that claims, and a plain one."""

    @app.task(name="beats.note", base=IdempotentTask)
    def note(*args: Any, **kwargs: Any) -> str:
        run = current_run()
        assert run.slot is not None
        effect(run.entry, run.slot.isoformat(), {"args": args, "kwargs": kwargs})
        return str(os.getpid())

    @app.task(name="beats.fail", base=IdempotentTask)
    def fail() -> None:
        note()
        raise ValueError("the bank is closed")

    @app.task(name="beats.plain")
    def plain(*args: Any, **kwargs: Any) -> None:
        headers = current_task.request.headers or {}
        effect(headers.get("idem_entry"), headers.get("idem_slot"), {"args": args})


def effect(entry: str | None, slot: str | None, detail: Any = None) -> None:
    """One row more, in a transaction of its own."""
    row = {
        "entry": entry,
        "slot": slot,
        "task_id": current_task.request.id,
        "detail": json.dumps(detail),
        "pid": os.getpid(),
    }
    # A connection for each: nothing is inherited by a forked child.
    engine = create_engine(os.environ[EFFECTS], poolclass=NullPool)
    with engine.begin() as connection:
        connection.execute(effects.insert(), row)
    engine.dispose()
