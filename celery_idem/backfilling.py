"""Slots of the past that somebody wants to run: missed, or from before the entry was there.

Owns how the slots of a period are emitted by hand: under the keys of beats, so that whoever emits a
slot once more, another backfill or a beat, emits nothing. Must not know when slots are due.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import islice
from typing import Any

from celery import Celery
from celery.beat import ScheduleEntry

from celery_idem import signals
from celery_idem.config import Settings, did_you_mean
from celery_idem.due import Due, check_task
from celery_idem.emitter import MOST, Emitter
from celery_idem.entry import Entry
from celery_idem.errors import ImproperlyConfigured, LedgerError
from celery_idem.keys import RunKey, iso
from celery_idem.ledger import Ledger
from celery_idem.member import make_ledger
from celery_idem.outage import Outage
from celery_idem.publishing import Grace, Sender
from celery_idem.sending import Sending
from celery_idem.slots import check, slots_between

_TICK = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class Backfill:
    """What a backfill has done.

    Attributes:
        slots: how many slots the entry has in the period.
        recorded: those of them that were new to the ledger: emitted, or (``dry_run``) to be.
        unsent: those of them whose message was not published, nor will be: slots of a plain task,
            when the broker went away. Others are published by beats then.
    """

    slots: int
    recorded: tuple[RunKey, ...]
    unsent: tuple[RunKey, ...] = ()


def backfill(
    app: Celery, entry: str, start: datetime, end: datetime, *, dry_run: bool = False
) -> Backfill:
    """Emit the slots of an entry in [`start`, `end`) that are not recorded yet.

    No beat is needed, and none is disturbed: a slot that a beat or another backfill emits as well
    is one run. Start deadlines and ``expires`` of the entry do not hold for these runs. It can be
    repeated if it was broken off.

    Arguments:
        entry: its name in the app's ``beat_schedule``.
        start: aware.
        end: aware, and not in the future.
        dry_run: change nothing; tell what there is to do.

    Raises:
        ImproperlyConfigured: there is no such entry, it cannot be used, or the period is none.
        InvalidSchedule: only the schedule's own `is_due` knows the slots.
        LedgerError: the ledger's database did not answer: what was recorded by then goes on.
    """
    settings = Settings.of(app)
    if not settings.enabled:
        raise ImproperlyConfigured("idem_enabled", False, "a backfill needs the ledger")
    source = _Source(app, settings, _entry(app, entry))
    _check_period(start, end, source.clock.now())
    slots = source.slots(start - _TICK, end - _TICK)
    with closing(make_ledger(settings)) as ledger:
        return _count(source, ledger, slots) if dry_run else _emit(source, ledger, slots)


class _Source(Sending):
    """A scheduler of one entry."""

    def __init__(self, app: Celery, settings: Settings, entry: Any) -> None:
        super().__init__(app, lazy=True)
        self._settings = settings
        self.entry = entry
        self.period = ""

    def entry_of(self, name: str | None) -> Any:
        return self.entry if name == self.entry.name else None

    def slots(self, after: datetime, until: datetime) -> Iterator[datetime]:
        """The slots in (after, until]."""
        self.period = f"{iso(after + _TICK)} to {iso(until + _TICK)}"
        check(self.entry.schedule)
        return slots_between(self.entry.schedule, after, until)

    def due(self, slot: datetime) -> Due:
        """A slot with its message."""
        return Due.of(self.entry.name, self.entry, slot, self._settings, self.app, is_bound=False)

    def emitter(self, ledger: Ledger) -> Emitter:
        """What publishes the slots."""
        clock = self.clock
        outage = Outage(clock, lambda exc: signals.ledger_lost("Backfill", exc), lambda: None)
        sender = Sender(self, clock)
        return Emitter(ledger, self._settings, self, sender, outage, clock, Grace())

    def key(self, slot: datetime) -> RunKey:
        """The run key of a slot."""
        return RunKey.for_slot(self._settings.namespace, self.entry.name, slot)

    @contextmanager
    def written_down(self, ledger: Ledger, done: list[RunKey]) -> Iterator[None]:
        """Leave a line in the history, whatever comes of it, and no connection."""
        key = RunKey.for_entry(self._settings.namespace, self.entry.name)
        try:
            yield
        finally:
            if "connection" in self.__dict__:
                self.drop_connection()
            with suppress(LedgerError):  # Which would hide what has happened before.
                detail = f"{self.period}: {len(done)} slots were recorded"
                ledger.record("backfill", key, detail=detail)


def _emit(source: _Source, ledger: Ledger, slots: Iterator[datetime]) -> Backfill:
    emitter = source.emitter(ledger)
    number = 0
    done: list[RunKey] = []
    unsent: set[RunKey] = set()
    with source.written_down(ledger, done):
        # Of a plain task, only what was published is worth going on.
        while not unsent and (some := [source.due(s) for s in islice(slots, emitter.size)]):
            number += len(some)
            won, unsent = emitter.emit_strictly(some)
            done += sorted(won)
    return Backfill(number, tuple(done), tuple(sorted(unsent)))


def _count(source: _Source, ledger: Ledger, slots: Iterator[datetime]) -> Backfill:
    number = 0
    new: list[RunKey] = []
    while keys := [source.key(slot) for slot in islice(slots, MOST)]:
        number += len(keys)
        new += sorted(set(keys) - ledger.recorded(keys))
    return Backfill(number, tuple(new))


def _entry(app: Celery, name: str) -> Any:
    app.finalize()
    entries = app.conf.beat_schedule
    if name not in entries:
        raise ImproperlyConfigured("entry", name, did_you_mean(str(name), list(entries), "entry"))
    found = entries[name]
    if not isinstance(found, ScheduleEntry):
        found = Entry(**dict(found, name=name, app=app))
    check_task(name, found)
    return found


def _check_period(start: datetime, end: datetime, now: datetime) -> None:
    for what, moment in (("start", start), ("end", end)):
        if moment.utcoffset() is None:
            raise ImproperlyConfigured(what, moment.isoformat(), "it must have a time zone")
    if not start < end:
        raise ImproperlyConfigured(
            "start", start.isoformat(), f"it must be before the end, {end.isoformat()}"
        )
    if end > now:
        raise ImproperlyConfigured(
            "end", end.isoformat(), "it must not be in the future: beats emit what is due then"
        )
