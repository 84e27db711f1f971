"""All entries that a beat follows, and which of them is due next.

Owns how changes of the schedule are noticed, since when entries are active, and the heap of the
moments at which to look at each. One entry that cannot be used never stops the others.
Must not know how a slot is emitted.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import datetime, timedelta
from itertools import count
from typing import Any

from celery_idem import signals
from celery_idem.clock import Clock
from celery_idem.config import Settings
from celery_idem.decisions import Decisions
from celery_idem.errors import LedgerError
from celery_idem.ledger import REFRESH, Ledger
from celery_idem.outage import Outage, is_ledger_error
from celery_idem.pauses import Pauses
from celery_idem.tracks import YOUNG, Track

#: Entries that are asked about in one call of the ledger.
CHUNK = 500
#: Seconds after which a change of the schedule is seen at the latest.
ROUND = 1.0
#: A clock that goes back by more than this was put back; by less, it was slewed.
STEP = timedelta(seconds=1)


class Timetable:
    """The entries of one beat."""

    def __init__(self, settings: Settings, ledger: Ledger, outage: Outage, clock: Clock) -> None:
        self._settings = settings
        self._ledger = ledger
        self._outage = outage
        self._clock = clock
        self._pauses = Pauses(settings, ledger, outage, clock)
        self._decisions = Decisions(settings, ledger, outage)
        self._looked_at = clock.elapsed()
        self._tracks: dict[str, Track] = {}
        self._new: list[Track] = []
        #: Moment, a number that makes each item comparable, and the track to be looked at.
        self._heap: list[tuple[datetime, int, Track]] = []
        self._numbers = count()
        self._look_at = float("-inf")
        self._tell_at = float("-inf")
        self._latest = clock.now()

    def entry(self, name: str | None) -> Any:
        """The present entry of this name; None if there is none."""
        track = self._tracks.get(name or "")
        return track.entry if track else None

    @property
    def next_moment(self) -> datetime | None:
        """When to call `due` again; None: as far as is known, never."""
        return self._heap[0][0] if self._heap else None

    # -- which entries there are -----------------------------------------------------------------

    def follow(self, schedule: Mapping[str, Any]) -> None:
        """Notice entries that came, went, or were changed; at most once in `ROUND` seconds."""
        self._notice_halt()
        if self._clock.elapsed() < self._look_at:
            return
        self._look_at = self._clock.elapsed() + ROUND
        # One moment for all: entries that begin together have their slots from there on.
        now = self._clock.now()
        # In one step: other threads may change the schedule.
        entries = list(schedule.items())
        for name, entry in entries:
            track = self._tracks.get(name)
            if track is None:
                self._begin(name, entry, now)
            elif not track.shows(entry):
                self._changed(track, entry, now)
        if len(self._tracks) > len(entries):
            for name in self._tracks.keys() - {name for name, _ in entries}:
                self._drop(self._tracks[name])
        if len(self._heap) > 2 * len(self._tracks) + 1000:
            self._tidy_up()

    def forget(self) -> None:
        """The clock is wrong, and all that was begun by it: begin anew, as at a start."""
        for track in list(self._tracks.values()):
            self._drop(track)
        self._new, self._heap = [], []
        self._look_at = float("-inf")

    def _notice_halt(self) -> None:
        """After a suspension, nothing is sure, as at a start."""
        now = self._clock.elapsed()
        if now - self._looked_at > YOUNG.total_seconds():
            self._new = list(self._tracks.values())
            for track in self._new:
                track.halted(self._clock.now())
                self._push(track)
            self._new = [track for track in self._new if track.is_new]
        self._looked_at = now

    def _begin(self, name: str, entry: Any, now: datetime) -> None:
        track = Track(name, entry, self._settings, self._clock, now)
        self._tracks[name] = track
        try:
            track.prepare()
        except Exception as exc:
            self._failed(track, exc)
        self._take(track)

    def _take(self, track: Track) -> None:
        if track.is_new:
            self._new.append(track)
        self._push(track)

    def _changed(self, track: Track, entry: Any, now: datetime) -> None:
        with suppress(Exception):  # What is wrong with it is told when it begins.
            if track.accept(entry):
                return
        self._drop(track)
        self._begin(track.name, entry, now)

    def _drop(self, track: Track) -> None:
        track.gone = True
        del self._tracks[track.name]

    def _push(self, track: Track) -> None:
        if track.wake is not None:
            heapq.heappush(self._heap, (track.wake, next(self._numbers), track))

    def _tidy_up(self) -> None:
        self._heap = []
        for track in self._tracks.values():
            self._push(track)

    # -- since when they are active --------------------------------------------------------------

    def activate(self) -> None:
        """Learn since when new entries are active; what was missed since then is looked at."""
        self._new = [track for track in self._new if not track.gone]
        while self._new and not self._outage.is_left_alone:
            some = self._new[:CHUNK]
            if self._ask(some):
                del self._new[: len(some)]
        is_time = self._clock.elapsed() >= self._tell_at
        # Also for asking whether the ledger is there again: it must be written, as a database that
        # can only be read is of no use.
        if (is_time or self._outage.away) and not self._outage.is_left_alone and self._tell():
            self._tell_at = self._clock.elapsed() + REFRESH

    def _tell(self) -> bool:
        """Report the entries that are still followed; False if the ledger is away."""
        tracks = self._tracks.values()
        pairs = [(t.name, t.fingerprint) for t in tracks if t.fingerprint and not t.is_new]
        try:
            for start in range(0, max(1, len(pairs)), CHUNK):
                with self._outage.watch(is_ledger_error):
                    self._ledger.mark_seen(self._settings.namespace, pairs[start : start + CHUNK])
        except LedgerError:
            return False
        return True

    def _ask(self, tracks: list[Track]) -> bool:
        pairs = [(track.name, track.fingerprint) for track in tracks]
        try:
            with self._outage.watch(is_ledger_error):
                seen = self._ledger.last_seen(self._settings.namespace, pairs)
                since = self._ledger.activate(self._settings.namespace, pairs)
        except LedgerError:
            return False
        now = self._clock.now()
        for track in tracks:
            if track.is_new:
                # The row may be gone again: somebody has cleared the table.
                pair = track.name, track.fingerprint
                track.activate(since.get(pair, now), now)
                self._decisions.consider(track, seen.get(pair), now)
                self._push(track)
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
        while self._heap and self._heap[0][0] <= now:
            track = heapq.heappop(self._heap)[2]
            # A track may be in the heap more than once, under earlier moments.
            if track.gone or track.wake is None or track.wake > now:
                continue
            if not self._is_current(track, schedule, now):
                continue
            slots = self._advance(track, now)
            self._push(track)
            if slots:
                yield track, slots

    def _is_current(self, track: Track, schedule: Mapping[str, Any], now: datetime) -> bool:
        entry = schedule.get(track.name)
        if entry is None:
            self._drop(track)
        elif not track.shows(entry):
            self._changed(track, entry, now)
        return not track.gone

    def _advance(self, track: Track, now: datetime) -> list[datetime]:
        was_new = track.is_new
        slots: list[datetime] = []
        pause = self._pauses.of(track.name)
        if pause is not None and track.heed(pause, now):
            return slots
        try:
            if track.asks_ledger and self._outage.is_left_alone:
                track.wait(now)
            else:
                with self._outage.watch(is_ledger_error, proves=False):
                    slots = track.advance(now, self._ledger)
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
            self._tidy_up()
        self._latest = now
