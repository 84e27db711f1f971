"""What the apps of these tests share: settings from the environment, and effects that are counted.

Owns: the table `effects`, in which a body leaves a row each time it runs (no unique constraint: a
second run is a second row), the table `facts` for signals, and gates: a body waits until its test
opens one.
Must not know: what is tested.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import psycopg
from celery import Celery, current_task, signals
from celery.utils.dispatch import Signal
from kombu import Queue

from celery_idem import current_run
from celery_idem import signals as facts
from celery_idem.errors import NoCurrentRun

SETTINGS = "IDEM_TESTS_SETTINGS"
EFFECTS = "IDEM_TESTS_EFFECTS"
#: Beside Celery's settings: arguments with which the broker is to make the queue.
QUEUE_ARGUMENTS = "queue_arguments"

TABLES = """
    CREATE TABLE effects (
        id serial, what text, task_id text, retries int, attempt int, fence int, pid int,
        detail text, at timestamptz DEFAULT clock_timestamp()
    );
    CREATE TABLE facts (id serial, what text, task_id text, detail text, pid int);
    CREATE TABLE gates (name text PRIMARY KEY);
"""

#: Seconds after which a body gives up waiting for its gate: longer than any test waits for it.
PATIENCE = 60.0


def make_app(**more: Any) -> Celery:
    """The app as the test has described it; `more` are settings of the app module."""
    app = Celery("tests")
    settings = json.loads(os.environ[SETTINGS])
    arguments = settings.pop(QUEUE_ARGUMENTS, None)
    app.conf.update(settings)
    app.conf.update(more)
    app.conf.task_queues = [Queue("celery", queue_arguments=arguments)]
    return app


def _connect() -> psycopg.Connection:
    # For each deed a new one: nothing is inherited by a forked child, and a driver that is shared
    # between greenlets is not what is tested.
    return psycopg.connect(os.environ[EFFECTS], autocommit=True)


def _run(statement: str, *values: Any) -> list[tuple[Any, ...]]:
    values = tuple(v.replace("\0", "\\0") if isinstance(v, str) else v for v in values)
    with _connect() as connection:
        cursor = connection.execute(statement, values)
        return cursor.fetchall() if cursor.description else []


def effect(what: str, detail: Any = None) -> None:
    """What the body does to the world: one row more."""
    request = current_task.request
    attempt: int | None = None
    fence: int | None = None
    with suppress(NoCurrentRun):
        attempt, fence = current_run().attempt, current_run().fence
    _run(
        "INSERT INTO effects (what, task_id, retries, attempt, fence, pid, detail)"
        " VALUES (%s, %s, %s, %s, %s, %s, %s)",
        *(what, request.id, request.retries, attempt, fence, os.getpid()),
        None if detail is None else str(detail),
    )


def wait_at(gate: str) -> None:
    """Returns when the test has opened the gate."""
    deadline = time.monotonic() + PATIENCE
    with _connect() as connection:
        while not connection.execute("SELECT 1 FROM gates WHERE name = %s", (gate,)).fetchone():
            if time.monotonic() > deadline:
                raise TimeoutError(f"nobody opened the gate {gate}")
            time.sleep(0.02)


def once(name: str) -> bool:
    """True for whoever asks first for this name."""
    insert = "INSERT INTO gates VALUES (%s) ON CONFLICT DO NOTHING RETURNING name"
    return bool(_run(insert, name))


#: What is recorded: the signal, where its task id is, and what it says.
_RECORDED: list[tuple[str, Signal, Callable[..., Any], Callable[..., Any]]] = [
    ("task_success", signals.task_success, lambda s, f: s.request.id, lambda f: None),
    ("task_failure", signals.task_failure, lambda s, f: f["task_id"], lambda f: f["exception"]),
    ("task_retry", signals.task_retry, lambda s, f: f["request"].id, lambda f: f.get("reason")),
    ("task_revoked", signals.task_revoked, lambda s, f: f["request"].id, lambda f: f["expired"]),
    ("run_duplicate", facts.run_duplicate, lambda s, f: f["task_id"], lambda f: f["reason"]),
    ("run_put_back", facts.run_put_back, lambda s, f: s.request.id, lambda f: f["reason"]),
    ("run_refused", facts.run_refused, lambda s, f: s.request.id, lambda f: f["reason"]),
    ("run_dead", facts.run_dead, lambda s, f: s.request.id, lambda f: f["reason"]),
    ("run_taken_over", facts.run_taken_over, lambda s, f: f["run"].task_id, lambda f: f["run"]),
]


def record_signals() -> None:
    """From now on signals of Celery and of the package leave a row in `facts`."""
    for what, signal, task_id, detail in _RECORDED:
        signal.connect(_Recorder(what, task_id, detail), weak=False)


def record_deliveries() -> None:
    """From now on each message that arrives, and each claim, leaves a row in `facts` as well."""
    for what, signal, task_id in (
        ("task_received", signals.task_received, lambda f: f["request"].id),
        ("run_claimed", facts.run_claimed, lambda f: f["run"].task_id),
    ):
        signal.connect(_Recorder(what, _second(task_id), lambda f: None), weak=False)


def _second(read: Callable[[Any], Any]) -> Callable[..., Any]:
    return lambda sender, facts: read(facts)


class _Recorder:
    """A receiver of one signal."""

    def __init__(self, what: str, task_id: Callable[..., Any], detail: Callable[..., Any]) -> None:
        self.what = what
        self.task_id = task_id
        self.detail = detail

    def __call__(self, sender: Any, **facts: Any) -> None:
        detail = self.detail(facts)
        _run(
            "INSERT INTO facts (what, task_id, detail, pid) VALUES (%s, %s, %s, %s)",
            *(self.what, self.task_id(sender, facts), None if detail is None else str(detail)),
            os.getpid(),
        )
