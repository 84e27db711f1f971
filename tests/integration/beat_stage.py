"""Beats, workers and what they do together: effects, runs, messages.

Owns: their settings, the reading of effects and runs, the grid of slots that they are compared
with. The grid is computed here, by arithmetic alone, and not by the code that is tested.
Must not know: what is tested.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, TypeVar

from celery import Celery
from sqlalchemy import create_engine, select, update
from sqlalchemy.engine import make_url

from celery_idem import Ledger, RunKey
from celery_idem.ledger.schema import entries as entries_table
from celery_idem.ledger.schema import runs
from celery_idem.run import RunRow, RunState
from tests.integration.beat_apps import base
from tests.processes import Beat, CeleryProcess, Worker, wait_for
from tests.services import Broker

APPS = "tests.integration.beat_apps"
EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
#: Seconds; the time of all waiting here, which ends as soon as there is what is waited for.
PATIENCE = 30.0
LONELY = ("--without-gossip", "--without-mingle", "--without-heartbeat")

Slot = tuple[str, datetime]
P = TypeVar("P", bound=CeleryProcess)
S = TypeVar("S", bound="BeatStage")


def now() -> datetime:
    """The time of this machine, in UTC."""
    return datetime.now(timezone.utc)


def grid(every: float, after: datetime, until: datetime) -> list[datetime]:
    """The multiples of `every` seconds since the epoch in (after, until]."""
    step = timedelta(seconds=every)
    first = (after - EPOCH) // step + 1
    return [EPOCH + n * step for n in range(first, (until - EPOCH) // step + 1)]


class BeatStage:
    """Where the beats and workers of one test work.

    Args:
        directory: for logs and files.
        broker: of the messages.
        database: SQLAlchemy's URL of the database of the effects.
        schedule: name: entry, as in ``beat_schedule``, in JSON.
        ledger: the setting ``idem_database_url``; `database` by default.
        warm: whether processes may be forked from one with the libraries in it.
        settings: more settings of every app.

    Attributes:
        apps: the package of the modules of apps.
    """

    apps = APPS

    def __init__(
        self,
        directory: Path,
        broker: Broker,
        database: str,
        schedule: Mapping[str, Any] | None = None,
        *,
        ledger: str | None = None,
        warm: bool = True,
        **settings: Any,
    ) -> None:
        self.directory = directory
        self.warm = warm
        self.broker = broker
        self.schedule = dict(schedule or {})
        self.database = database
        self.settings = {
            **broker.settings,
            "idem_database_url": ledger or database,
            **settings,
        }
        # The ledger is read past anything that a test puts in between.
        self.ledger = Ledger.from_url(database)
        self.app = Celery(base.NAMESPACE, set_as_current=False)
        self.app.conf.update(self.settings)
        self.connection: Any = self.app.connection_for_write()
        self._engine = create_engine(make_url(database).set(drivername=_driver(database)))
        base.metadata.create_all(self._engine)
        self._processes: list[CeleryProcess] = []

    def close(self) -> None:
        """Ends all processes."""
        for process in self._processes:
            process.kill()
        self.ledger.close()
        self._engine.dispose()
        self.connection.release()
        self.app.close()

    def __enter__(self: S) -> S:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- processes -------------------------------------------------------------------------------

    def env(
        self,
        settings: Mapping[str, Any] | None = None,
        schedule: Mapping[str, Any] | None = None,
    ) -> dict[str, str]:
        """The environment of a process."""
        return {
            base.SETTINGS: json.dumps({**self.settings, **(settings or {})}),
            base.SCHEDULE: json.dumps(self.schedule if schedule is None else schedule),
            base.EFFECTS: self._engine.url.render_as_string(hide_password=False),
        }

    def beat(
        self,
        *options: str,
        module: str = "app",
        settings: Mapping[str, Any] | None = None,
        schedule: Mapping[str, Any] | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Beat:
        """A beat that was started."""
        env = {**self.env(settings, schedule), **(env or {})}
        name = f"{self.apps}.{module}"
        return self._start(Beat(name, self.directory, *options, env=env, warm=self.warm))

    def beats(self, number: int, *options: str, **more: Any) -> list[Beat]:
        """Several beats that tick."""
        started = [self.beat(*options, **more) for _ in range(number)]
        for beat in started:
            beat.ready()
        return started

    def worker(
        self,
        *options: str,
        module: str = "app",
        settings: Mapping[str, Any] | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Worker:
        """A worker that was started."""
        env = {**self.env(settings), **(env or {})}
        name = f"{self.apps}.{module}"
        worker = Worker(name, self.directory, *LONELY, *options, env=env, warm=self.warm)
        return self._start(worker)

    def workers(self, number: int, *options: str, **more: Any) -> list[Worker]:
        """Several workers that consume."""
        started = [self.worker(*options, **more) for _ in range(number)]
        for worker in started:
            worker.ready()
        return started

    def _start(self, process: P) -> P:
        self._processes.append(process)
        process.start()
        return process

    def processes(self, command: str) -> list[CeleryProcess]:
        """Those that run a command: beat, worker."""
        return [one for one in self._processes if one.command == command and one.running]

    @property
    def logs(self) -> str:
        """What all processes have written."""
        return "".join(process.log for process in self._processes)

    # -- what was done ---------------------------------------------------------------------------

    def sql(self, statement: Any) -> list[Any]:
        """The rows of a statement, or nothing."""
        self.ledger.now()  # Makes the tables, if nobody has made them yet.
        with self._engine.begin() as connection:
            result = connection.execute(statement)
            return list(result.all()) if result.returns_rows else []

    def effects(self, entry: str | None = None) -> list[Any]:
        """The rows that the executions have left, in order."""
        statement = select(base.effects).order_by(base.effects.c.id)
        if entry is not None:
            statement = statement.where(base.effects.c.entry == entry)
        return self.sql(statement)

    def executions(self, entry: str | None = None) -> Counter[Slot]:
        """How often each slot was executed."""
        return Counter((row.entry, _instant(row.slot)) for row in self.effects(entry))

    def slots(self, entry: str) -> list[datetime]:
        """The slots of an entry that were executed, in order, as often as they were."""
        return sorted(_instant(row.slot) for row in self.effects(entry))

    def runs(self, entry: str | None = None) -> list[RunRow]:
        """The recorded runs of an entry."""
        statement = select(runs.c.run_key, runs.c.slot).order_by(runs.c.slot)
        if entry is not None:
            statement = statement.where(runs.c.entry == entry)
        keys = [RunKey(*row) for row in self.sql(statement)]
        found = [self.ledger.read(key) for key in keys]
        return [row for row in found if row is not None]

    def states(self, entry: str) -> Counter[RunState]:
        """How many of its runs are in each state."""
        return Counter(row.state for row in self.runs(entry))

    def is_quiet(self) -> bool:
        """True if every recorded run has ended."""
        open_ = (RunState.SCHEDULED, RunState.RUNNING, RunState.RETRYING)
        statement = select(runs.c.run_key).where(runs.c.state.in_([s.value for s in open_]))
        return not self.sql(statement.limit(1))

    def set_active_since(self, since: datetime) -> None:
        """As if beats had been seen for the first time then, and had been stopped since."""
        self.sql(update(entries_table).values(active_since=since))

    # -- messages --------------------------------------------------------------------------------

    def purge(self, queue: str = "celery") -> int:
        """Throws away the messages of a queue; returns how many there were."""
        with self.connection.channel() as channel:
            return int(channel.queue_purge(queue) or 0)

    def waiting(self, queue: str = "celery") -> int:
        """How many messages wait in a queue."""
        with suppress(*self.connection.channel_errors), self.connection.channel() as channel:
            return int(channel.queue_declare(queue, passive=True).message_count)
        return 0  # For Redis, an empty queue does not exist.

    def is_drained(self, queue: str = "celery") -> bool:
        """True if no message waits in a queue; workers may still have some."""
        return not self.waiting(queue)

    # -- waiting ---------------------------------------------------------------------------------

    def wait_for_executions(self, number: int, entry: str | None = None) -> None:
        """Waits until there are so many."""
        wait_for(
            lambda: len(self.effects(entry)) >= number,
            PATIENCE,
            lambda: f"{number} executions of {entry}: {self.executions(entry)}",
        )

    def wait_until_quiet(self) -> None:
        """Waits until every recorded run has ended."""
        wait_for(
            self.is_quiet,
            PATIENCE,
            lambda: f"the end of {[row for row in self.runs() if not row.state.final]}",
        )


def _instant(slot: str) -> datetime:
    return datetime.fromisoformat(slot.replace("Z", "+00:00"))


def _driver(url: str) -> str:
    name = make_url(url).drivername
    return {"postgresql": "postgresql+psycopg", "mysql": "mysql+pymysql"}.get(name, name)
