"""All entries that a beat follows, and which of them is due next.

Owns how changes of the schedule are noticed, since when entries are active, and the heap of the
moments at which to look at each. One entry that cannot be used never stops the others.
Must not know how a slot is emitted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from celery_idem import signals
from celery_idem.agenda import Agenda
from celery_idem.clock import Clock
from celery_idem.config import Settings
from celery_idem.decisions import Decisions
from celery_idem.errors import LedgerError
from celery_idem.ledger import REFRESH, Ledger
from celery_idem.outage import Outage, is_ledger_error
from celery_idem.pauses import Pauses
from celery_idem.rulebook import YOUNG, Rulebook
from celery_idem.tracks import HeldBack, Track, never
from celery_idem.turns import Turns
from celery_idem.watched import Watched

#: Entries that are reported, or looked at, at once.
CHUNK = 500
#: Entries that are asked about in one call of the ledger: Python keeps the memory of its answers.
ASKED = 200
#: Seconds after which it is seen that the schedule has another entry, at the latest.
ROUND = 1.0
#: The same for an entry that was changed in place: all are looked at in this time, some a round.
TURN = 50.0
#: The same for a schedule that was changed in place, which takes longer to see: if there are more
#: than so many entries for each second of `TURN`, all are looked at in the other time.
SCHEDULES, SCHEDULES_TURN = 100, 250.0
#: A clock that goes back by more than this was put back; by less, it was slewed.
STEP = timedelta(seconds=1)


class Timetable:
    """The entries of one beat.

    Arguments:
        held_back: asked before the slots of a track are handed out; see `HeldBack`.
    """

    def __init__(
        self,
        settings: Settings,
        ledger: Ledger,
        outage: Outage,
        clock: Clock,
        held_back: HeldBack = never,
    ) -> None:
        self._settings = settings
        self._ledger = ledger
        self._outage = outage
        self._clock = clock
        self._book = Rulebook(settings, clock)
        self._held_back = held_back
        self._pauses = Pauses(settings, ledger, outage, clock)
        self._decisions = Decisions(settings, ledger, outage)
        self._looked_at = clock.elapsed()
        self._tracks: dict[str, Track] = {}
        self._new: list[Track] = []
        self._agenda = Agenda(self._tracks)
        self._look_at = float("-inf")
        #: The schedule whose changes are known, and who of it is looked at next, and how closely.
        self._watched: Watched | None = None
        self._to_look = Turns[Track](CHUNK, TURN)
        self._to_compare = Turns[Track](SCHEDULES, SCHEDULES_TURN)
        self._told_at = float("-inf")
        self._to_tell: list[Track] = []
        self._latest = clock.now()

    def entry(self, name: str | None) -> Any:
        """The present entry of this name; None if there is none."""
        track = self._tracks.get(name or "")
        return track.entry if track else None

    def is_left_out(self, name: str | None, slot: datetime, recorded_at: datetime) -> bool:
        """True if the entry's policy has nothing to make up a slot that was recorded then."""
        track = self._tracks.get(name or "")
        if track is None or not track.fingerprint:
            return False
        return track.is_left_out(slot, recorded_at, self._clock.now())

    @property
    def next_moment(self) -> datetime | None:
        """When to call `due` again; None: as far as is known, never."""
        return self._agenda.next_moment

    # -- which entries there are -----------------------------------------------------------------

    def follow(self, schedule: Mapping[str, Any]) -> None:
        """Notice entries that came, went, or were changed; at most once in `ROUND` seconds."""
        self._notice_halt()
        elapsed = self._clock.elapsed()
        if elapsed < self._look_at:
            return
        passed = max(0.0, elapsed - self._look_at) + ROUND
        self._look_at = elapsed + ROUND
        # One moment for all: entries that begin together have their slots from there on.
        now = self._clock.now()
        if isinstance(schedule, Watched) and schedule is self._watched:
            for name in schedule.changes():
                self._follow_one(name, schedule.get(name), now)
            self._look_over(schedule, passed, now)
        else:
            self._follow_all(schedule, now)
        self._compare(passed, now)

    def _follow_all(self, schedule: Mapping[str, Any], now: datetime) -> None:
        self._watched = schedule if isinstance(schedule, Watched) else None
        # In one step: other threads may change the schedule.
        entries = schedule.all() if isinstance(schedule, Watched) else dict(schedule)
        for name in [*entries, *(self._tracks.keys() - entries.keys())]:
            self._follow_one(name, entries.get(name), now)

    def _follow_one(self, name: str, entry: Any, now: datetime) -> None:
        track = self._tracks.get(name)
        if track is None:
            if entry is not None:
                self._begin(name, entry, now)
        elif entry is None:
            self._drop(track)
        elif not _shows(track, entry):
            self._changed(track, entry, now)

    def _look_over(self, schedule: Mapping[str, Any], passed: float, now: datetime) -> None:
        """Notice changes in place, of some entries after the others."""
        for track in self._to_look.take(self._tracks.values(), passed):
            if not track.gone:
                self._follow_one(track.name, schedule.get(track.name), now)

    def _compare(self, passed: float, now: datetime) -> None:
        """Notice schedules that were changed in place, likewise."""
        for track in self._to_compare.take(self._tracks.values(), passed):
            if not (track.gone or _has_same_slots(track)):
                self._changed(track, track.entry, now)

    def forget(self) -> None:
        """The clock is wrong, and all that was begun by it: begin anew, as at a start."""
        for track in list(self._tracks.values()):
            self._drop(track)
        self._agenda.disorder()
        self._new, self._watched = [], None
        self._look_at = float("-inf")

    def _notice_halt(self) -> None:
        """After a suspension, nothing is sure, as at a start."""
        now = self._clock.elapsed()
        if now - self._looked_at > YOUNG.total_seconds():
            self._new = list(self._tracks.values())
            for track in self._new:
                track.halted(self._clock.now())
            self._agenda.disorder()
            self._new = [track for track in self._new if track.is_new]
        self._looked_at = now

    def _begin(self, name: str, entry: Any, now: datetime) -> None:
        track = Track(name, entry, self._book, now)
        self._tracks[name] = track
        try:
            track.prepare()
        except Exception as exc:
            self._failed(track, exc)
        if track.is_new:
            self._new.append(track)
        self._agenda.put(track)

    def _changed(self, track: Track, entry: Any, now: datetime) -> None:
        with suppress(Exception):  # What is wrong with it is told when it begins.
            if track.accept(entry):
                return
        self._drop(track)
        self._begin(track.name, entry, now)

    def _drop(self, track: Track) -> None:
        track.leave()
        del self._tracks[track.name]

    # -- since when they are active --------------------------------------------------------------

    def activate(self) -> None:
        """Learn since when new entries are active; what was missed since then is looked at."""
        self._new = [track for track in self._new if not track.gone]
        while self._new and not self._outage.is_left_alone:
            some = self._new[:ASKED]
            if self._ask(some):
                del self._new[: len(some)]
        if not self._outage.is_left_alone:
            self._tell()

    def _tell(self) -> None:
        """Report entries that are still followed: each every `REFRESH` seconds, some at a time."""
        elapsed, number = self._clock.elapsed(), len(self._tracks)
        # Where some wait for their turn it must come sooner, for none to be reported too late.
        period = REFRESH if number <= CHUNK else 0.75 * REFRESH
        owed = number * min(1.0, (elapsed - self._told_at) / period)
        # Also for asking whether the ledger is there again: it must be written, as a database that
        # can only be read is of no use.
        if owed < min(number, CHUNK) and not self._outage.away:
            return
        some = number if owed >= number else min(number, CHUNK * max(1, int(owed / CHUNK)))
        if len(self._to_tell) < some:
            self._to_tell = [*self._tracks.values(), *self._to_tell]
        turn = self._to_tell[len(self._to_tell) - some :]
        followed = [t for t in turn if t.fingerprint and not (t.is_new or t.gone)]
        try:
            for start in range(0, max(1, len(followed)), CHUNK):
                pairs = _pairs(followed[start : start + CHUNK])
                with self._outage.watch(is_ledger_error):
                    self._ledger.mark_seen(self._settings.namespace, pairs)
        except LedgerError:
            return
        del self._to_tell[len(self._to_tell) - some :]
        self._told_at = elapsed - period * max(0.0, owed - some) / max(1, number)

    def _ask(self, tracks: list[Track]) -> bool:
        pairs = _pairs(tracks)
        try:
            with self._outage.watch(is_ledger_error):
                seen = self._ledger.last_seen(self._settings.namespace, pairs)
                since = self._ledger.activate(self._settings.namespace, pairs)
        except LedgerError:
            return False
        now = self._clock.now()
        self._agenda.disorder(*tracks)
        same: dict[datetime, datetime] = {}
        for track in tracks:
            if track.is_new:
                # The row may be gone again: somebody has cleared the table.
                pair = track.name, track.fingerprint
                moment = since.get(pair, now)
                track.activate(same.setdefault(moment, moment), now)
                self._decisions.consider(track, seen.get(pair), now)
        return True

    def write_down(self) -> None:
        """Tell the history what was decided about slots that were missed."""
        self._decisions.write()

    # -- what is due -----------------------------------------------------------------------------

    def due(
        self, schedule: Mapping[str, Any], now: datetime
    ) -> Iterator[tuple[Track, list[datetime]]]:
        """The slots that are due at `now`; entry by entry, the longest due first."""
        self._mind_the_clock(now)
        self._pauses.look()
        while (track := self._agenda.take(now)) is not None:
            self._follow_one(track.name, schedule.get(track.name), now)
            if track.gone:
                continue
            slots = self._advance(track, now)
            self._agenda.put(track)
            if slots:
                yield track, slots

    def _advance(self, track: Track, now: datetime) -> list[datetime]:
        was_new = track.is_new
        slots: list[datetime] = []
        pause = self._pauses.of(track.name)
        if pause is not None and track.heed(pause, now):
            return slots
        try:
            seconds = self._held_back(track, partial(track.slot_before, now))
            if seconds is not None:
                track.postpone(now, seconds)
            elif track.asks_ledger and self._outage.is_left_alone:
                track.wait(now)
            else:
                with self._outage.watch(is_ledger_error, proves=False):
                    slots = track.advance(now, self._ledger, self._held_back)
        except LedgerError:
            track.wait(now)
        except Exception as exc:
            self._failed(track, exc)
        if track.is_new and not was_new:
            self._new.append(track)
        return slots

    def _failed(self, track: Track, exc: Exception) -> None:
        track.fails(self._clock.now())
        signals.entry_broken(track.name, exc)

    def _mind_the_clock(self, now: datetime) -> None:
        if now < self._latest - STEP:
            for track in self._tracks.values():
                track.put_back(now)
            self._agenda.disorder()
        self._latest = now


def _pairs(tracks: list[Track]) -> list[tuple[str, str]]:
    return [(track.name, track.fingerprint) for track in tracks]


def _shows(track: Track, entry: Any) -> bool:
    """False also for an entry that cannot be looked at: what is wrong is told when it begins."""
    try:
        return track.shows(entry)
    except Exception:
        return False


def _has_same_slots(track: Track) -> bool:
    """False also for a schedule that cannot be looked at any more."""
    try:
        return track.has_same_slots
    except Exception:
        return False
