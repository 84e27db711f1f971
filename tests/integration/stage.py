"""A broker, a result backend and a database, and an eye on what workers do there.

Owns: sending messages and copies of them, reading effects, runs and history, opening gates.
Must not know: which pool executes a task, or what is tested.

    stage.worker("tasks", "-c", "2")
    copies = stage.send("gated", "g1", copies=2)
    stage.wait_for_effects(copies, "started")
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
from celery import Celery, chain
from celery.result import AsyncResult
from sqlalchemy.engine import make_url

from celery_idem import Ledger, RunKey, RunState
from celery_idem.keys import Stamp
from celery_idem.ledger import HistoryLine
from celery_idem.member import Member
from celery_idem.run import RunRow
from tests.integration.apps import base
from tests.processes import Beat, CeleryProcess, Worker, wait_for
from tests.services import Broker

NAMESPACE = "tests"
#: Seconds; the time of all waiting here, which ends as soon as there is what is waited for.
PATIENCE = 30.0
APPS = "tests.integration.apps"
#: What only costs time when there is one worker.
LONELY = ("--without-gossip", "--without-mingle", "--without-heartbeat")


class Stage:
    """Where the workers of a module's tests work.

    Args:
        directory: for logs and files.
        broker: of the messages.
        results: URL of the result backend.
        database: SQLAlchemy's URL of a PostgreSQL database, for effects.
        ledger: the setting ``idem_database_url``; `database` by default.
        settings: more settings of every app.
    """

    def __init__(
        self,
        directory: Path,
        broker: Broker,
        results: str,
        database: str,
        *,
        ledger: str | None = None,
        **settings: Any,
    ) -> None:
        self.directory = directory
        self.settings = {
            **broker.settings,
            "result_backend": results,
            "idem_database_url": ledger or database,
            **settings,
        }
        self.app = Celery(NAMESPACE, set_as_current=False)
        self.app.conf.update(self.settings)
        plain = make_url(database).set(drivername="postgresql")
        self._effects = plain.render_as_string(hide_password=False)
        # One for all questions: a new one costs the server a hundred times more than an answer.
        self._connection = psycopg.connect(self._effects, autocommit=True, prepare_threshold=None)
        self.sql(base.TABLES)
        self.ledger = Ledger.from_url(ledger or database)
        self._processes: list[CeleryProcess] = []

    def close(self) -> None:
        """Ends the processes."""
        for process in self._processes:
            process.kill()
        self._connection.close()
        member = Member.of(self.app)
        member.leases.close()
        member.locks.close()
        self.ledger.close()
        self.app.close()

    # -- workers ---------------------------------------------------------------------------------

    def new_worker(
        self, module: str, *options: str, settings: Mapping[str, Any] | None = None
    ) -> Worker:
        """A worker of an app module of these tests, not yet started."""
        env = self._env(settings)
        worker = Worker(f"{APPS}.{module}", self.directory, *LONELY, *options, env=env, warm=True)
        self._processes.append(worker)
        return worker

    def beat(self, module: str) -> Beat:
        """A beat of an app module of these tests, which has no schedule."""
        options = ("-S", "celery_idem:IdempotentScheduler")
        beat = Beat(f"{APPS}.{module}", self.directory, *options, env=self._env(), warm=True)
        self._processes.append(beat)
        beat.start()
        beat.ready()
        return beat

    def _env(self, settings: Mapping[str, Any] | None = None) -> dict[str, str]:
        return {
            base.SETTINGS: json.dumps({**self.settings, **(settings or {})}),
            base.EFFECTS: self._effects,
        }

    def worker(
        self, module: str, *options: str, settings: Mapping[str, Any] | None = None
    ) -> Worker:
        """A worker that consumes."""
        worker = self.new_worker(module, *options, settings=settings)
        worker.start()
        worker.ready()
        return worker

    # -- messages --------------------------------------------------------------------------------

    def send(self, task: str, *args: Any, copies: int = 1, **options: Any) -> str:
        """Publishes a message, and copies of it under the same task id, which is returned."""
        options.setdefault("task_id", str(uuid4()))
        with self.app.producer_pool.acquire(block=True) as producer:
            for _ in range(copies):
                self.app.send_task(f"tests.{task}", args, producer=producer, **options)
        return str(options["task_id"])

    def chain(self, task: str, *args: Any, ids: Sequence[str]) -> None:
        """Publishes a chain of equal tasks, each with its own arguments and a given task id."""
        signature = self.app.signature(f"tests.{task}", args, immutable=True)
        chain(*(signature.clone(task_id=task_id) for task_id in ids)).apply_async()

    def send_redelivered(self, worker: Worker, task: str, *args: Any, **options: Any) -> str:
        """Publishes a message, takes and returns it, and lets the worker have it then."""
        queue = f"again-{uuid4()}"
        task_id = self.send(task, *args, queue=queue, **options)
        with self.app.connection_for_read() as connection, connection.SimpleQueue(queue) as taken:
            taken.get(timeout=PATIENCE).requeue()
        self.consume(worker, queue)
        return task_id

    def consume(self, worker: Worker, queue: str) -> None:
        """Lets the worker take messages from one more queue."""
        answers = self.app.control.add_consumer(
            queue, destination=[worker.node], reply=True, timeout=PATIENCE, limit=1
        )
        assert answers and "ok" in answers[0][worker.node], answers

    def start_gated(self, **options: Any) -> str:
        """A task whose body has begun, and waits at the gate that is called as its task id."""
        task_id = str(uuid4())
        self.send("gated", task_id, task_id=task_id, **options)
        self.wait_for_effect(task_id, "started")
        return task_id

    def stamped(self, key: RunKey, task: str, entry: str = "entry", **more: Any) -> dict[str, Any]:
        """Options of a message as a beat sends it for a slot; `more` is in its stamp."""
        stamp = Stamp(key, entry, **more)
        return {"headers": stamp.write(None, f"tests.{task}"), "task_id": key.task_id}

    def result(self, task_id: str) -> AsyncResult[Any]:
        """What Celery has for the caller."""
        return self.app.AsyncResult(task_id)

    def get(self, task_id: str) -> Any:
        """The result of a task that ends."""
        return self.result(task_id).get(timeout=PATIENCE)

    def outcome(self, task_id: str) -> Any:
        """The same, or the error with which it ended."""
        return self.result(task_id).get(timeout=PATIENCE, propagate=False)

    # -- what was done ---------------------------------------------------------------------------

    def sql(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        """Rows of the database of effects."""
        # Several statements at once only without values.
        cursor = self._connection.execute(statement.encode(), values or None)
        return cursor.fetchall() if cursor.description else []

    def effects(self, task_id: str) -> list[str]:
        """What the bodies under this task id did, in order."""
        statement = "SELECT what FROM effects WHERE task_id = %s ORDER BY id"
        return [what for (what,) in self.sql(statement, task_id)]

    def details(self, task_id: str) -> list[str]:
        """What they said of it."""
        statement = "SELECT detail FROM effects WHERE task_id = %s ORDER BY id"
        return [detail for (detail,) in self.sql(statement, task_id)]

    def facts(self, task_id: str) -> Counter[str]:
        """The signals that were sent."""
        return Counter(
            what for (what,) in self.sql("SELECT what FROM facts WHERE task_id = %s", task_id)
        )

    def open(self, gate: str) -> None:
        """Lets the bodies pass that wait at the gate, now and later."""
        self.sql("INSERT INTO gates VALUES (%s) ON CONFLICT DO NOTHING", gate)

    def key(self, task: str, task_id: str, nesting: int = 0) -> RunKey:
        """The run key of a message without a stamp."""
        return RunKey.for_message(NAMESPACE, f"tests.{task}", task_id, nesting)

    def row(self, task: str, task_id: str) -> RunRow | None:
        """The run in the ledger."""
        return self.ledger.read(self.key(task, task_id))

    def state(self, task: str, task_id: str) -> RunState | None:
        """The state of the run; None if the ledger does not know it."""
        row = self.row(task, task_id)
        return row.state if row else None

    def history(self, task: str, task_id: str, kind: str = "duplicate") -> list[HistoryLine]:
        """The lines of one kind about the run."""
        return [line for line in self.ledger.history(self.key(task, task_id)) if line.kind == kind]

    # -- waiting ---------------------------------------------------------------------------------

    def wait_for_effect(self, task_id: str, what: str, times: int = 1) -> None:
        """Waits until a body has done it."""
        wait_for(
            lambda: self.effects(task_id).count(what) >= times,
            PATIENCE,
            lambda: f"{times} x {what} of {task_id}: {self.effects(task_id)}",
        )

    def wait_for_fact(self, task_id: str, what: str, times: int = 1) -> None:
        """Waits until a signal was sent."""
        wait_for(
            lambda: self.facts(task_id)[what] >= times,
            PATIENCE,
            lambda: f"{times} x {what} of {task_id}: {dict(self.facts(task_id))}",
        )

    def wait_for_state(self, task: str, task_id: str, state: RunState) -> None:
        """Waits until the run is in this state."""
        wait_for(
            lambda: self.state(task, task_id) is state,
            PATIENCE,
            lambda: f"{state.label}: {self.row(task, task_id)}",
        )

    def wait_final(self, task: str, task_id: str) -> RunRow:
        """The run in the ledger once it has ended."""

        def ended() -> RunRow | None:
            row = self.row(task, task_id)
            return row if row and row.state.final else None

        row = wait_for(ended, PATIENCE, lambda: f"an end of {self.row(task, task_id)}")
        assert row is not None
        return row

    def wait_for_success(self, task: str, task_id: str) -> RunRow:
        """The run once ledger and tracer have its success.

        To be used after retries, where Celery's result cannot be waited for: it stores RETRY after
        it has published the retry, and a quick retry's SUCCESS may come in between (9 of 100 in
        plain Celery's gevent pool).
        """
        self.wait_for_fact(task_id, "task_success")
        row = self.wait_final(task, task_id)
        assert row.state is RunState.SUCCEEDED
        return row

    def wait_for_duplicates(self, task: str, task_id: str, times: int = 1) -> list[HistoryLine]:
        """The lines about copies once there are so many."""
        wait_for(
            lambda: len(self.history(task, task_id)) >= times,
            PATIENCE,
            lambda: f"{times} duplicates of {task} {task_id}: {self.history(task, task_id)}",
        )
        return self.history(task, task_id)
