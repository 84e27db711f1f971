"""Beats in one process, by a clock that a test sets, on a ledger in memory.

Owns: an app whose broker is kombu's in memory, a scheduler that uses clock and ledger of the test,
and a ledger that can be away. Must not know what is tested.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from itertools import count
from typing import Any

from celery import Celery
from kombu.exceptions import OperationalError

from celery_idem import IdempotentTask
from celery_idem.clock import Clock
from celery_idem.due import Due
from celery_idem.errors import LedgerUnavailable
from celery_idem.ledger import Ledger
from celery_idem.ledger.memory import MemoryLedger
from celery_idem.publishing import Grace
from celery_idem.run import RunRow
from celery_idem.scheduler import IdempotentScheduler
from tests.contract.stores import SettableClock

_numbers = count(1)


class ShakyLedger(MemoryLedger):
    """A ledger whose database can be away.

    Attributes:
        away: no verb is answered.
        mute: every verb is done, and its answer is lost.
        calls: the verbs that were asked for.
    """

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock)
        self.away = False
        self.mute = False
        self.calls: list[str] = []

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        if name not in VERBS:
            return value

        def verb(*args: Any, **kwargs: Any) -> Any:
            self.calls.append(name)
            if self.away:
                raise LedgerUnavailable("the ledger's database is away")
            answer = value(*args, **kwargs)
            if self.mute:
                raise LedgerUnavailable("the answer was lost")
            return answer

        return verb


VERBS = {
    "activate",
    "mark_seen",
    "bury_expired",
    "agree",
    "agreed_slot",
    "insert_slots",
    "published",
    "acquire_due",
    "close_unclaimed",
    "known_tasks",
    "pauses",
    "renew",
    "register",
    "now",
    "last_seen",
    "record",
}


def make_app(schedule: dict[str, Any] | None = None, **settings: Any) -> Celery:
    """An app with tasks of both kinds, and a queue of its own in memory."""
    app = Celery(f"unit{next(_numbers)}", set_as_current=False)
    app.conf.update(
        broker_url="memory://",
        result_backend=None,
        task_default_queue=f"{app.main}-queue",
        beat_schedule=schedule or {},
        idem_namespace="unit",
    )
    app.conf.update(settings)

    @app.task(name="note", base=IdempotentTask, shared=False)
    def note(*args: Any, **kwargs: Any) -> None: ...

    @app.task(name="plain", shared=False)
    def plain(*args: Any, **kwargs: Any) -> None: ...

    return app


class UnitScheduler(IdempotentScheduler):
    """A beat whose clock and ledger are the test's."""

    clock: SettableClock
    ledger: Ledger

    def make_ledger(self) -> Ledger:
        return self.ledger


def make_beat(
    app: Celery,
    ledger: Ledger | None = None,
    clock: SettableClock | None = None,
    grace: Grace | None = None,
    cls: type[UnitScheduler] = UnitScheduler,
    **options: Any,
) -> Any:
    """A scheduler as `celery beat` makes it."""
    moments = clock or SettableClock()
    attributes = {
        "clock": moments,
        "ledger": ledger or MemoryLedger(moments),
        "grace": grace or Grace(),
    }
    return type("Beat", (cls,), attributes)(app, **options)


def run_for(beat: Any, seconds: float) -> None:
    """Let a beat tick, with the sleeps that it asks for, until its clock has moved on."""
    until = beat.clock.now() + timedelta(seconds=seconds)
    while True:
        pause = beat.tick()
        left = (until - beat.clock.now()).total_seconds()
        if pause >= left:
            beat.clock.advance(left)
            beat.tick()
            return
        beat.clock.advance(max(pause, 1e-6))


def messages(app: Celery, queue: str | None = None) -> list[Any]:
    """Takes all messages out of a queue."""
    return list(_messages(app, queue or app.conf.task_default_queue))


def _messages(app: Celery, name: str) -> Iterator[Any]:
    with app.connection_for_read() as connection, connection.SimpleQueue(name) as queue:
        while True:
            try:
                message = queue.get_nowait()
            except queue.Empty:
                return
            message.ack()
            yield message


def slots(found: list[Any]) -> list[tuple[str, str]]:
    """Entry and slot of each message."""
    return [(m.headers["idem_entry"], m.headers["idem_slot"]) for m in found]


def rows(ledger: MemoryLedger) -> list[RunRow]:
    """All runs, by slot."""
    found = [run.row for run in ledger.tables.runs.values()]
    return sorted(found, key=lambda row: (row.key.slot, row.key.text))


def at(text: str) -> datetime:
    """An instant in UTC: ``2026-03-29T01:30:00``."""
    return datetime.fromisoformat(f"{text}+00:00")


class ShakyBroker(UnitScheduler):
    """A beat whose broker can be away, refuse messages, or lose many that are sent together."""

    away = False
    refuses = False
    loses = False
    gathered = 0

    @contextmanager
    def together(self) -> Iterator[None]:
        self.gathered += 1
        with super().together():
            yield
        if self.loses:
            raise OperationalError("nobody knows what has arrived")

    def publish(self, due: Due, **options: Any) -> Any:
        if self.away:
            raise OperationalError("the broker is away")
        if self.refuses:
            raise TypeError("this message cannot be made")
        return super().publish(due, **options)


def beat(
    schedule: dict[str, Any], ledger: ShakyLedger, clock: SettableClock, **settings: Any
) -> Any:
    return make_beat(make_app(schedule, **settings), ledger, clock, cls=ShakyBroker)
