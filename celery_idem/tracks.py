"""Where a beat stands in the slots of one entry.

Owns the choice of the slots that are due: all of the last minute, and of what was missed before
it, what the catch-up policy says. No watermark is kept anywhere: the candidates are offered to the
ledger, whose unique insert tells which of them are new.
Must not know how a slot is emitted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from itertools import islice
from operator import is_
from typing import Any, NamedTuple, TypeAlias

from celery_idem.clock import UTC
from celery_idem.entry import Options, own_options
from celery_idem.keys import EPOCH, iso
from celery_idem.ledger import Ledger, Pause
from celery_idem.policy import CatchUp
from celery_idem.rulebook import YOUNG, Rulebook, Rules
from celery_idem.slots import fingerprint, latest_slot, slots_between

#: Slots of one entry that are handed out at once; the other entries have their turn in between.
PORTION = 1000
#: How soon a custom schedule is asked again, and an entry that failed is tried again; after each
#: further failure twice as late, up to the other one.
PATIENCE, LONGEST_PATIENCE = timedelta(seconds=5), timedelta(seconds=300)
#: Custom schedules are not asked more often than this.
SHORTEST_PATIENCE = timedelta(seconds=0.05)
#: How soon a paused entry is looked at again.
PAUSED = timedelta(seconds=1)
#: Before all slots.
_BEGINNING = datetime(2, 1, 1, tzinfo=UTC)
#: The next moment.
_NEXT = timedelta(microseconds=1)


class LeftOut(NamedTuple):
    """Slots in (`after`, `last`] that are not emitted, and why; `last` is one of them."""

    after: datetime
    last: datetime
    why: str


class State(NamedTuple):
    """What is told of few entries; of all others it is the same object, and takes no memory.

    Attributes:
        gone: see `Track.gone`.
        failures: how often its schedule has raised something, one time after the other.
        is_paused: somebody has paused it.
        halted_at: where it stood when this beat stood still, until the ledger has been asked.
    """

    gone: bool = False
    failures: int = 0
    is_paused: bool = False
    halted_at: datetime | None = None


_USUAL = State()

#: Seconds for which what is due of a track is held back, until this is asked again; None: not. The
#: second argument tells the slot before, for those who want to know; None if none is due.
HeldBack: TypeAlias = "Callable[[Track, Callable[[], datetime | None]], Any]"


def never(track: Track, last: Callable[[], datetime | None]) -> None:
    """Nothing is held back."""


class Track:
    """One entry as this beat follows it.

    Attributes:
        entry: the present entry of this name; its task and arguments are read when it is due.
        cursor: slots up to here were handed out.
        wake: when to look again; None: never.
        is_new: the ledger has not yet told since when the entry is active.
        fingerprint: of its schedule; empty for an entry that cannot be used.
        began: what was missed before is the policy's: where this beat began, or went on after it
            had stood still.
    """

    # There may be many of them: what is the same for most stands in the rulebook.
    __slots__ = (
        "_book",
        "_own",
        "_rules",
        "_schedule",
        "_since",
        "_state",
        "began",
        "cursor",
        "entry",
        "fingerprint",
        "is_new",
        "name",
        "wake",
    )

    _own: Options
    _rules: Rules
    _schedule: Any

    def __init__(self, name: str, entry: Any, book: Rulebook, now: datetime) -> None:
        self.name = name
        self.entry = entry
        self.cursor = now
        self.wake: datetime | None = now
        self.is_new = False
        self.fingerprint = ""
        self._book = book
        self._state = _USUAL
        #: Slots up to here are none of the entry's: it was new then, or paused.
        self._since = EPOCH
        self.began = now

    @property
    def gone(self) -> bool:
        """The schedule does not have it any more, or has it with other slots."""
        return self._state.gone

    def leave(self) -> None:
        """It is `gone`."""
        self._note(gone=True)

    def _note(self, **changes: Any) -> None:
        state = self._state._replace(**changes)
        self._state = _USUAL if state == _USUAL else state

    def __lt__(self, other: Track) -> bool:
        """True for one that is to be looked at before `other`; both are to be, some time.

        Of one moment, none is before another: beats that have them in different orders record
        different slots, and share the work.
        """
        mine, other_s = self.wake, other.wake
        assert mine is not None
        assert other_s is not None
        return mine < other_s

    def is_awake(self, now: datetime) -> bool:
        """True if it is to be looked at."""
        return self.wake is not None and self.wake <= now

    def prepare(self) -> None:
        """Find out what the entry is; until that succeeds it has no slots.

        Raises:
            IdemError: the entry, or its schedule, cannot be used.
            Exception: whatever a schedule of somebody else's raises.
        """
        self._schedule = self.entry.schedule
        self._own = own_options(self.entry)
        self._rules, print_ = self._book.read(self.name, self.entry, self._own)
        if self._rules.custom:
            self.wake = self.cursor
        else:
            self.wake = self._book.next_slot(self._schedule, print_, self.cursor)
        self.fingerprint = print_
        self.is_new = True

    @property
    def _ready(self) -> bool:
        return self.fingerprint != ""

    @property
    def asks_ledger(self) -> bool:
        """True if `advance` needs the ledger."""
        return self._ready and self._rules.custom

    # -- changes ---------------------------------------------------------------------------------

    def shows(self, entry: Any) -> bool:
        """True if nothing has changed since the entry was looked at."""
        # Asked for every entry once a second: by identity, which a change in place shows too.
        return entry is self.entry and (
            not self._ready
            or (entry.schedule is self._schedule and all(map(is_, own_options(entry), self._own)))
        )

    @property
    def has_same_slots(self) -> bool:
        """False if the schedule was changed in place; one of others' own may do so when asked."""
        if not self._ready or self._rules.custom:
            return True
        return fingerprint(self._schedule) == self.fingerprint

    def accept(self, entry: Any) -> bool:
        """True if `entry` has the same slots, and is followed from here on."""
        own = own_options(entry)
        if not self._ready or own != self._own or fingerprint(entry.schedule) != self.fingerprint:
            return False
        self.entry, self._schedule, self._own = entry, entry.schedule, own
        return True

    def activate(self, since: datetime, now: datetime) -> None:
        """The entry is active since then: what was missed from there on is a candidate."""
        self.is_new = False
        self._since = max(since, self._since)
        start = max(self._since, now - self._rules.window)
        halted_at = self._state.halted_at
        if halted_at is None:
            self.cursor = min(self.cursor, start)
        else:
            self.cursor = max(halted_at, start)
            self._note(halted_at=None)
        self.wake = now

    def halted(self, now: datetime) -> None:
        """This beat stood still until now: somebody else may know what has become of the entry."""
        if self._ready and not self.is_new:
            self.is_new = True
            self.began = now
            self._note(halted_at=self.cursor)
            self.wake = now

    def heed(self, pause: Pause, now: datetime) -> bool:
        """True while the entry is paused. Once it was resumed, it counts as new since then."""
        if pause.resumed_at is None:
            self._note(is_paused=True)
            self.cursor = max(self.cursor, now)
            self.wake = now + PAUSED
            return True
        self._since = max(self._since, pause.resumed_at)
        if self._state.is_paused:
            # What was due between the resume and this moment is not lost.
            self.cursor = self._since
            self._note(is_paused=False)
        self.cursor = max(self.cursor, self._since)
        return False

    def put_back(self, now: datetime) -> None:
        """The clock was put back to `now`: what this beat has done since then, it did too early.

        Offering a slot again does no harm, and sleeping until the wrong time has come would.
        """
        self.cursor = min(self.cursor, now)
        if self.wake is not None:
            self.wake = now

    # -- slots -----------------------------------------------------------------------------------

    def advance(self, now: datetime, ledger: Ledger, held_back: HeldBack = never) -> list[datetime]:
        """The slots that are due at `now` and were not handed out before; at most `PORTION`.

        Arguments:
            held_back: asked about a slot that `slot_before` does not know.

        Raises:
            LedgerError: a custom schedule's slot could not be agreed on.
            Exception: whatever the schedule raises; tell `fails`.
        """
        if not self._ready:
            self.prepare()
            return []
        slots = self._agree(now, ledger, held_back) if self._rules.custom else self._pass(now)
        if self._state.failures:
            self._note(failures=0)
        return slots

    def wait(self, now: datetime) -> None:
        """Nothing can be done at the moment: look again, from the same place."""
        self.wake = now + PATIENCE

    def postpone(self, now: datetime, seconds: object) -> None:
        """What is due is not to be handed out yet: look again, from the same place."""
        self.wake = now + _pause(seconds)

    def slot_before(self, now: datetime) -> datetime | None:
        """The slot before the one that is due at `now`; None if none is due, or not known here."""
        if not self._ready or self._rules.custom:
            return None
        due = latest_slot(self._schedule, self.cursor, now)
        return None if due is None else latest_slot(self._schedule, _BEGINNING, due - _NEXT)

    def fails(self, now: datetime) -> None:
        """The schedule has raised something: look again, later after each time."""
        failures = self._state.failures
        self.wake = now + min(LONGEST_PATIENCE, PATIENCE * 2 ** min(failures, 10))
        self._note(failures=failures + 1)

    def _pass(self, now: datetime) -> list[datetime]:
        # What was missed waits for the ledger, which knows whether the entry is the same still.
        reach = YOUNG if self.is_new else self._rules.window
        slots = list(islice(self._candidates(max(self.cursor, now - reach), now), PORTION))
        if len(slots) < PORTION:
            self.cursor, self.wake = (
                now,
                self._book.next_slot(self._schedule, self.fingerprint, now),
            )
        else:
            self.cursor, self.wake = slots[-1], now + _NEXT
        return slots

    def _candidates(self, start: datetime, now: datetime) -> Iterator[datetime]:
        young = max(start, now - YOUNG)
        if start < young:
            yield from self._missed(start, young, now)
        yield from slots_between(self._schedule, young, now)

    def _missed(self, start: datetime, end: datetime, now: datetime) -> Iterator[datetime]:
        if self._rules.catchup is CatchUp.ALL:
            # Not those that would only be recorded as skipped: there may be millions.
            yield from slots_between(self._schedule, max(start, now - self._rules.in_time), end)
        elif self._rules.catchup is CatchUp.LATEST:
            latest = latest_slot(self._schedule, start, now)
            # A younger one is due anyway.
            if latest is not None and latest <= end:
                yield latest

    def left_out(self, seen: datetime, now: datetime) -> LeftOut | None:
        """Which slots the policy has left out of those that nobody emitted since `seen`."""
        if self._rules.custom:
            return None
        start, end = max(seen, self._since), min(self.began, now - YOUNG)
        if self._since > seen:
            # Whatever the policy is.
            start, end, why = seen, self._since, "it counts as new since then"
        elif self._rules.catchup is CatchUp.ALL:
            end = min(end, now - min(self._rules.window, self._rules.in_time))
            why = "catchup is 'all', and they are older than its window or than their deadline"
        elif self._rules.catchup is CatchUp.LATEST:
            latest = latest_slot(self._schedule, max(start, now - self._rules.window), now)
            end = min(end, latest - _NEXT) if latest else end
            which = f"the latest one is {iso(latest)}" if latest else "none is within its window"
            why = f"catchup is 'latest', and {which}"
        else:
            why = "catchup is 'none'"
        last = latest_slot(self._schedule, start, end) if start < end else None
        return LeftOut(start, last, why) if last else None

    def is_left_out(self, slot: datetime, recorded_at: datetime, now: datetime) -> bool:
        """True if a slot that was recorded, and not emitted, is nothing to make up any more."""
        rules = self._rules
        reach = YOUNG if rules.catchup is CatchUp.NONE else rules.window
        if slot > now - YOUNG or slot < recorded_at - reach - YOUNG:
            return False  # Of the latter, somebody wants it all the same: it was backfilled.
        is_latest = rules.catchup is CatchUp.LATEST and not rules.custom
        if is_latest and latest_slot(self._schedule, slot, recorded_at - YOUNG) is not None:
            return False  # Likewise: it was not the latest one then.
        if slot <= now - reach:
            return True
        return is_latest and latest_slot(self._schedule, slot, now) is not None

    def slots(self, after: datetime, until: datetime) -> Iterator[datetime]:
        """The slots in (after, until]."""
        return slots_between(self._schedule, after, until)

    def _agree(self, now: datetime, ledger: Ledger, held_back: HeldBack) -> list[datetime]:
        """The slot of a schedule that only its own `is_due` knows.

        The slot is the moment at which the first beat found the entry due; all beats emit the one
        that the ledger keeps, so that it is not lost with the beat that found it.
        """
        if self.is_new:
            self.wait(now)
            return []
        names = (self._book.settings.namespace, self.name, self.fingerprint)
        agreed = ledger.agreed_slot(*names)
        schedule = self._schedule
        last = max(agreed or EPOCH, self._since).astimezone(schedule.tz)
        due, seconds = schedule.is_due(schedule.maybe_make_aware(last))
        if due or (agreed is not None and agreed > self.cursor):
            before = last if due else self.cursor
            pause = held_back(self, lambda: before)
            if pause is not None:
                self.postpone(now, pause)
                return []
        if due:
            # Not `now`, which was a moment before: the next slot would come that much too early.
            agreed = ledger.agree(*names, agreed, self._book.clock.now())
        self.wake = now + _pause(seconds)
        if agreed is None or agreed <= self.cursor or self._is_dropped(agreed, now):
            return []
        self.cursor = agreed
        return [agreed]

    def _is_dropped(self, slot: datetime, now: datetime) -> bool:
        return self._rules.catchup is CatchUp.NONE and slot <= now - YOUNG


def _pause(seconds: object) -> timedelta:
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        return PATIENCE  # Celery, too, takes other answers for "ask me later".
    # Asked this way round, as "not a number" is not less than anything.
    if not seconds < PATIENCE.total_seconds():
        return PATIENCE
    return max(SHORTEST_PATIENCE, timedelta(seconds=max(0.0, seconds)))
