"""The beat: due slots become messages.

Owns how the parts of a beat work together, and Celery's seams for schedulers. Every beat does the
same; the ledger tells which of them publishes a slot. Nothing is kept in a local file.
Must not know what a task does with its message.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any

from celery.beat import ScheduleEntry, Scheduler
from celery.schedules import schedstate

from celery_idem import signals
from celery_idem.agreement import Agreement
from celery_idem.config import Settings
from celery_idem.due import Due
from celery_idem.emitter import Emitter
from celery_idem.entry import Entry, copied
from celery_idem.errors import LedgerError
from celery_idem.ledger import HANDOVER, Ledger
from celery_idem.member import Member
from celery_idem.outage import Outage, is_ledger_error, prompt
from celery_idem.presence import LASTS, Presence
from celery_idem.publishing import Grace, Sender
from celery_idem.reconcile import ROUND, Reconciler
from celery_idem.run import RunRow
from celery_idem.sending import Sending
from celery_idem.timetable import Timetable
from celery_idem.tracks import Track
from celery_idem.watched import Watched

#: Seconds after which what is due in the ledger is seen as due.
SOON = 0.05
#: How often a message was tried before it is given up.
TRIES = 2
#: What `celery beat` passes for -s when nobody has said anything.
DEFAULT_FILENAME = "celerybeat-schedule"


class IdempotentScheduler(Sending):
    """A beat scheduler of which several may run at once.

    Use it as ``beat_scheduler = "celery_idem:IdempotentScheduler"``, or ``celery beat -S idem``.
    With ``idem_enabled = False`` it is Celery's own scheduler, with nothing kept between two
    starts.
    """

    Entry = Entry
    #: When a message that nobody claims is published again.
    grace = Grace()
    #: Seconds without a tick after which this beat is not healthy any more.
    presence = LASTS

    def __init__(self, app: Any, *args: Any, **kwargs: Any) -> None:
        self._settings = Settings.of(app)
        self._filename = kwargs.get("schedule_filename")
        self._reconcile_at = float("-inf")
        self._look_at: deque[float] = deque()
        self._is_open = False
        if self._settings.enabled and not args and kwargs.get("schedule") is None:
            # Whoever has another mapping keeps it: all of it is looked at each time, then.
            kwargs["schedule"] = Watched()
        super().__init__(app, *args, **kwargs)

    # -- Celery's seams --------------------------------------------------------------------------

    def setup_schedule(self) -> None:
        if self._filename not in (None, DEFAULT_FILENAME):
            signals.schedule_file_ignored(str(self._filename))
        # As Celery's persistent scheduler: the other order would remove the default entries.
        self.merge_inplace(self.app.conf.beat_schedule)
        self.install_default_entries(self.schedule)
        if self._settings.enabled:
            self._open()

    def merge_inplace(self, b: Mapping[str, Any]) -> None:
        super().merge_inplace(self._usable(b))

    def update_from_dict(self, dict_: Mapping[str, Any]) -> None:
        super().update_from_dict(self._usable(dict_))

    def _usable(self, entries: Mapping[str, Any]) -> dict[str, Any]:
        """Those of `entries` that can be made; one that cannot must not stop the others."""
        usable = {}
        for name, entry in entries.items():
            try:
                if not isinstance(entry, ScheduleEntry):
                    self.Entry(**dict(entry, name=name, app=self.app))
            except Exception as exc:
                signals.entry_broken(name, exc)
            else:
                usable[name] = entry
        return usable

    @property
    def info(self) -> str:
        if not self._settings.enabled:
            return "    . ledger -> switched off (idem_enabled = False)"
        from celery_idem.ledger.url import parse, shown

        url = shown(parse(self._settings.database_url))
        return f"    . ledger -> {url}\n    . namespace -> {self._settings.namespace}"

    def close(self) -> None:
        self._is_closed = True
        if self._is_open and self._sender.broker.away:
            self.drop_connection()
        super().close()
        if self._is_open:
            self._presence.leave()
            Member.of(self.app).leases.close()

    # -- the loop --------------------------------------------------------------------------------

    def tick(self, *args: Any, **kwargs: Any) -> float:
        """Emit what is due; return the seconds until there may be more to do.

        Raises:
            SystemExit: the scheduler was closed.
        """
        self.check_closed()
        if not self._settings.enabled:
            return float(super().tick(*args, **kwargs))
        try:
            return self._tick()
        except Exception as exc:
            # What goes wrong with one entry is caught there; whatever this is, the other rounds,
            # and the entries of this one that are not done, come.
            signals.round_failed(exc)
            return ROUND

    def _tick(self) -> float:
        if not self._is_open:
            # A subclass has a `setup_schedule` of its own, which need not call this one's.
            self._open()
        if not self._agreement.is_refused:
            # Before all that may take its time: slots are due from the start on.
            self._timetable.follow(self.schedule)
        refused = self._agreement.is_refused
        if not self._agreement.holds():
            self._timetable.forget()
            return ROUND
        if refused:
            self._timetable.follow(self.schedule)
        self._emitter.settle()
        self._timetable.activate()
        if self._emitter.emit(self._due(self.clock.now())):
            # If the beat that has recorded them has died, they are due then.
            self._look_at.append(self.clock.elapsed() + HANDOVER + SOON)
        self._reconcile()
        self._timetable.write_down()
        # After all that may hang.
        self._presence.tell()
        return self._pause()

    def _open(self) -> None:
        clock, settings = self.clock, self._settings
        ledger = self.make_ledger()
        outage = Outage(
            clock,
            lambda exc: signals.ledger_lost("Beat: slots are published without the ledger", exc),
            lambda: signals.ledger_found("Beat"),
        )
        sender = self._sender = Sender(self, clock)
        self._outage = outage
        self._agreement = Agreement(ledger, outage, clock)
        self._presence = Presence(settings.namespace, ledger, outage, clock, self.presence)
        self._timetable = Timetable(settings, ledger, outage, clock, self._held_back)
        self._emitter = Emitter(ledger, settings, self, sender, outage, clock, self.grace)
        self._reconciler = Reconciler(ledger, settings, self, sender, clock, self.grace)
        self._is_open = True

    def make_ledger(self) -> Ledger:
        """The ledger of this process; nothing is asked of it here."""
        leases = Member.of(self.app).leases
        leases.kind = "beat"
        return prompt(leases.ledger)

    def _pause(self) -> float:
        ready = min(ROUND, self.max_interval or ROUND)
        now = self.clock.elapsed()
        if self._reconcile_at <= now and not self._outage.away:
            return 0.0
        if self._look_at:
            ready = min(ready, self._look_at[0] - now)
        moment = self._timetable.next_moment
        if moment is not None:
            ready = min(ready, (moment - self.clock.now()).total_seconds())
        return max(0.0, ready)

    def _reconcile(self) -> None:
        now = self.clock.elapsed()
        is_time = now >= self._reconcile_at
        while self._look_at and self._look_at[0] <= now:
            self._look_at.popleft()
            is_time = True
        if not is_time or self._outage.is_left_alone:
            return
        self._reconcile_at = now + ROUND
        # Where nothing is due it only reads: no proof that the ledger can be written.
        with suppress(LedgerError), self._outage.watch(is_ledger_error, proves=False):
            self._reconcile_at = now + self._reconciler.run()

    # -- due slots -------------------------------------------------------------------------------

    def _due(self, now: datetime) -> Iterator[Due]:
        for track, slots in self._timetable.due(self.schedule, now):
            entry = track.entry
            self._advance(track)
            for slot in slots:
                try:
                    yield Due.of(track.name, entry, slot, self._settings, self.app)
                except Exception as exc:
                    signals.entry_broken(track.name, exc)

    def _held_back(self, track: Track, last: Callable[[], datetime | None]) -> Any:
        """Seconds for which an `is_due` of somebody's own holds the track's slots back; None: not.

        Celery's is not asked: what is due are the slots.
        """
        entry = track.entry
        if type(self).is_due is Scheduler.is_due and type(entry).is_due is ScheduleEntry.is_due:
            return None
        # Not the time of this beat's last publish: Celery counts intervals from there on.
        before = last()
        if before is None:
            return None
        schedule = entry.schedule
        if track.asks_ledger:
            # It was asked just now, and may say otherwise if it is asked once more.
            schedule = copied(schedule, is_due=lambda last: schedstate(is_due=True, next=0))
        aware = entry.schedule.maybe_make_aware(before)
        asked = copied(entry, last_run_at=aware, schedule=schedule)
        is_due, seconds = self.is_due(asked)
        return None if is_due else (seconds or 0)

    def _advance(self, track: Track) -> None:
        # Celery's counters; the entry that is published is the one before, as there.
        try:
            track.entry = self.reserve(track.entry)
        except Exception as exc:
            signals.entry_broken(track.name, exc)

    def is_left_out(self, row: RunRow) -> bool:
        if row.emit_count < TRIES:
            return False  # A beat of another version may be able to make it.
        recorded_at = self.clock.now() - timedelta(seconds=row.age)
        return self._timetable.is_left_out(row.entry, row.key.slot, recorded_at)

    def entry_of(self, name: str | None) -> Any:
        return self._timetable.entry(name)
