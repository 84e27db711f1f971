"""What a beat has decided about slots that nobody emitted, for people.

Owns the lines of the history about it: one for an entry and a time in which no beat followed it,
however many slots that were and however many beats have come back. The decision itself is that of
`celery_idem.tracks`. Must not know how slots are emitted.
"""

from __future__ import annotations

from collections import deque
from datetime import datetime, timedelta
from itertools import islice

from celery_idem.config import Settings
from celery_idem.errors import LedgerError
from celery_idem.keys import RunKey, iso
from celery_idem.ledger import REFRESH, Ledger
from celery_idem.ledger.rows import line_id
from celery_idem.outage import Outage, is_ledger_error
from celery_idem.tracks import LeftOut, Track

#: Lines written in one round: entries may be many, and their slots come first.
AT_ONCE = 20
#: A beat may have followed its entries for so much longer than it has said.
UNSAID = timedelta(seconds=1.5 * REFRESH)
#: Slots of this time that are asked for, at most.
MOST = 300


class Decisions:
    """The decisions of one beat that are not written down yet."""

    def __init__(self, settings: Settings, ledger: Ledger, outage: Outage) -> None:
        self._namespace = settings.namespace
        self._ledger = ledger
        self._outage = outage
        self._waiting: deque[tuple[Track, datetime, LeftOut]] = deque()

    def consider(self, track: Track, seen: datetime | None, now: datetime) -> None:
        """The entry is followed again, and was last `seen` by anybody then; None: it is new."""
        left = None if seen is None else track.left_out(seen, now)
        if seen is not None and left is not None:
            self._waiting.append((track, seen, left))

    def write(self) -> None:
        """Write some of them down."""
        for _ in range(min(AT_ONCE, len(self._waiting))):
            if self._outage.is_left_alone:
                return
            try:
                with self._outage.watch(is_ledger_error):
                    self._write(*self._waiting[0])
            except LedgerError:
                return
            self._waiting.popleft()

    def _write(self, track: Track, seen: datetime, left: LeftOut) -> None:
        first = self._first(track, left)
        if first is None:
            return
        key = RunKey.for_entry(self._namespace, track.name)
        slots = f"{iso(first)} to {iso(left.last)}" if first < left.last else iso(first)
        # By this name, as several beats that come back have decided the same.
        line = line_id(seen, f"{key}/{track.fingerprint}")
        told = f"slots {slots} are left out: {left.why}"
        self._ledger.record("missed", key, detail=told, line=line)

    def _first(self, track: Track, left: LeftOut) -> datetime | None:
        """The first slot that was not emitted in the time of which nobody has told."""
        until = min(left.last, left.after + UNSAID)
        early = list(islice(track.slots(left.after, until), MOST))
        keys = [RunKey.for_slot(self._namespace, track.name, slot) for slot in early]
        recorded = self._ledger.recorded(keys)
        for slot, key in zip(early, keys, strict=True):
            if key not in recorded:
                return slot
        return next(track.slots(max([left.after, *early]), left.last), None)
