"""The app of the campaign: tasks that leave effects, and the schedule.

Owns the tasks and the table of effects, which has no constraint that could hide a double. An effect
is written on a connection of its own, past the proxies, and again until it is known to be there:
which faults strike between effect and ledger is the campaign's matter, and a body must not fail by
itself. Must not know which faults there are.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import psycopg
from celery import Celery
from celery.schedules import schedule
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from celery_idem import IdempotentScheduler, IdempotentTask, current_run, signals
from celery_idem.errors import LeaseLost, LedgerError
from celery_idem.publishing import Grace
from tests.chaos.witness import FOLDER, Body, clock, tell

#: Environment variables: Celery's settings, in JSON; conninfo of the effects; seconds of a body.
SETTINGS = "IDEM_CHAOS_SETTINGS"
EFFECTS = "IDEM_CHAOS_EFFECTS"
SECONDS = "IDEM_CHAOS_SECONDS"
NAMESPACE = "chaos"

#: No key, no constraint, no index: two rows are two effects.
TABLE = """
CREATE TABLE IF NOT EXISTS chaos_effects (
    kind text, key text, slot text, body text, fence bigint, attempt int, retries int,
    pid int, at double precision, detail text
)
"""
INSERT = """
INSERT INTO chaos_effects (kind, key, slot, body, fence, attempt, retries, pid, at, detail)
VALUES (:kind, :key, :slot, :body, :fence, :attempt, :retries, :pid, :at, :detail)
"""
_COLUMNS = "kind key slot body fence attempt retries pid at detail".split()
_INSERT_PSYCOPG = INSERT
for _name in _COLUMNS:
    _INSERT_PSYCOPG = _INSERT_PSYCOPG.replace(f":{_name}", f"%({_name})s")
#: Entry: task and seconds between two slots.
ENTRIES = {
    "plain": ("chaos.plain", 1),
    "transactional": ("chaos.transactional", 1),
    "retried": ("chaos.retried", 2),
    "linked": ("chaos.linked", 2),
}


class Hasty(IdempotentScheduler):
    """Publishes again after ten seconds rather than a minute what nobody has claimed."""

    grace = Grace(first=10.0, longest=20.0)


app = Celery(NAMESPACE)
app.conf.update(
    beat_scheduler="idem",
    worker_prefetch_multiplier=1,
    task_ignore_result=True,
    beat_schedule={
        name: {"task": task, "schedule": schedule(timedelta(seconds=every))}
        for name, (task, every) in ENTRIES.items()
    },
)
app.conf.beat_schedule["linked"]["options"] = {"link": app.signature("chaos.link")}
app.conf.update(json.loads(os.environ.get(SETTINGS, "{}")))


@signals.run_succeeded.connect(weak=False)
def _finished(run: Any, **_: Any) -> None:
    """The ledger has the end of a body that succeeded."""
    if FOLDER not in os.environ:
        return  # Imported by a test, beside others.
    tell("finished", key=run.key.text, fence=run.fence, retries=run.retries)


@contextmanager
def _body() -> Iterator[Body]:
    body = Body(current_run(), current_run().task)
    try:
        yield body
    except BaseException as exc:
        body.end(type(exc).__name__)
        raise
    body.end("returned")


def row(body: Body, kind: str, key: str | None = None, detail: str | None = None) -> dict[str, Any]:
    """The row of an effect; `key` if it is not of the run that is executed."""
    run = current_run()
    return {
        "kind": kind,
        "key": key or run.key.text,
        "slot": None if run.slot is None else run.slot.isoformat(),
        "body": body.id,
        "fence": run.fence,
        "attempt": run.attempt,
        "retries": run.retries,
        "pid": os.getpid(),
        "at": clock(),
        "detail": detail,
    }


def effect(values: dict[str, Any]) -> None:
    """An effect in a transaction of its own, once for each body, however often it must be tried."""
    while True:
        try:
            with psycopg.connect(os.environ[EFFECTS], connect_timeout=5) as connection:
                found = connection.execute(
                    "SELECT 1 FROM chaos_effects WHERE body = %s AND kind = %s",
                    (values["body"], values["kind"]),
                ).fetchone()
                if found is None:
                    connection.execute(_INSERT_PSYCOPG, values)
            return
        except psycopg.Error:
            time.sleep(0.2)


def _half() -> float:
    """Seconds for one half of a body, drawn anew for each."""
    least, most = json.loads(os.environ.get(SECONDS, "[0.1, 0.6]"))
    return random.uniform(least, most)


@app.task(name="chaos.plain", base=IdempotentTask)
def plain() -> None:
    """An effect that is not the ledger's: a mail, a charge."""
    with _body() as body:
        body.dwell(_half())
        effect(row(body, "plain"))
        body.dwell(_half())


@app.task(name="chaos.transactional", base=IdempotentTask, bind=True, max_retries=None)
def transactional(self: Any) -> None:
    """An effect that is committed together with the end of the run."""
    with _body() as body:
        body.dwell(_half())
        try:
            with current_run().transaction() as connection:
                connection.execute(text(INSERT), row(body, "transactional"))
                body.dwell(_half() / 4)
        except LeaseLost:
            raise
        except (DBAPIError, LedgerError) as exc:
            raise self.retry(exc=exc, countdown=1) from exc


@app.task(name="chaos.retried", base=IdempotentTask, bind=True, max_retries=None)
def retried(self: Any) -> None:
    """Has its effect in the first retry."""
    with _body() as body:
        body.dwell(_half())
        if self.request.retries == 0:
            raise self.retry(countdown=1)
        effect(row(body, "retried"))
        body.dwell(_half())


@app.task(name="chaos.linked", base=IdempotentTask)
def linked() -> str:
    """Its effect, and that of the link, which gets the run key."""
    with _body() as body:
        body.dwell(_half())
        effect(row(body, "linked"))
    return current_run().key.text


@app.task(name="chaos.link", base=IdempotentTask)
def link(key: str) -> None:
    """The effect of the link is named after the run before it."""
    with _body() as body:
        effect(row(body, "link", key))


@app.task(name="chaos.step", base=IdempotentTask)
def step(done: int, name: str) -> int:
    """A link of a chain that is not of the schedule."""
    with _body() as body:
        body.dwell(_half() / 2)
        effect(row(body, "step", f"{name}:{done}"))
    return done + 1


@app.task(name="chaos.zombie", base=IdempotentTask, bind=True, ignore_result=False)
def zombie(self: Any, gate: str, way: str) -> str:
    """Its first owner waits at the gate, and then ends in one way or the other."""
    run = current_run()
    with _body() as body:
        if run.fence > 1:
            effect(row(body, "zombie"))
        elif way == "transaction":
            with run.transaction() as connection:
                connection.execute(text(INSERT), row(body, "zombie"))
                _wait_at(gate, run.key.text)
        else:
            _wait_at(gate, run.key.text)
            if way == "retry":
                raise self.retry(countdown=0)
            if way == "error":
                raise ValueError("a zombie's error")
    return f"fence {run.fence}"


@app.task(name="chaos.told", base=IdempotentTask)
def told(result: str, key: str) -> None:
    """The callback of a zombie's run."""
    with _body() as body:
        effect(row(body, "told", key, result))


def _wait_at(gate: str, key: str) -> None:
    tell("waits", key=key)
    while not os.path.exists(gate):
        time.sleep(0.02)
