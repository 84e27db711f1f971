"""Which slots are due, and what is to be said about what happened in them.

Owns: the demo's judgement. It is made from the grid and the shop's table alone; nothing is asked
of celery_idem, which is what is on trial.
Must not know: processes, servers, terminals.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import NamedTuple

from example_project.schedule import ENTRIES, EPOCH, grid_slot
from example_project.settings import BILL_CENTS


class Slot(NamedTuple):
    """A nominal instant of an entry."""

    instant: datetime
    entry: str


@dataclass(frozen=True)
class Seen:
    """What the tables show: copies published and executions of each slot, and the sums."""

    copies: Counter[Slot] = field(default_factory=Counter)
    runs: Counter[Slot] = field(default_factory=Counter)
    #: copies that the demo sent again
    resent: int = 0
    #: copies that celery_idem did not execute, from the ledger's history
    duplicates: Counter[Slot] = field(default_factory=Counter)
    #: executions that were begun again as their process had died, from the same
    takeovers: Counter[Slot] = field(default_factory=Counter)
    #: sums of the effects' amounts
    amounts: Counter[Slot] = field(default_factory=Counter)

    @property
    def settled(self) -> bool:
        """Whether each copy that was published is accounted for."""
        # A process that was killed may have taken the copy along that it was executing.
        known = self.runs + self.duplicates + self.takeovers
        return self.copies <= known


@dataclass(frozen=True)
class Verdict:
    """The outcome: the slots that were due, and those not executed exactly once."""

    due: list[Slot]
    seen: Seen
    wrong: list[Slot]

    @property
    def executions(self) -> int:
        """Executions of the slots that were due."""
        return sum(self.seen.runs[slot] for slot in self.due)

    @property
    def charged(self) -> int:
        """Cents taken for the bills that were due."""
        return sum(self.seen.amounts[slot] for slot in self._bills)

    @property
    def chargeable(self) -> int:
        """Cents that were due."""
        return BILL_CENTS * len(self._bills)

    @property
    def _bills(self) -> list[Slot]:
        return [slot for slot in self.due if slot.entry == "daily-bill"]


def due_slots(begin: datetime, end: datetime) -> list[Slot]:
    """Return the slots of all entries from `begin` to `end`, both included, in order."""
    slots = []
    for entry, spec in ENTRIES.items():
        instant = grid_slot(entry, begin)
        while instant <= end:
            if instant >= begin:
                slots.append(Slot(instant, entry))
            instant += spec.interval
    return sorted(slots)


def full_windows(slots: list[Slot], end: datetime) -> list[Slot]:
    """Return the slots whose whole interval is over at `end`.

    For Celery's own scheduler: each beat counts from its own start, and so executes a slot at
    some moment of its interval.
    """
    return [slot for slot in slots if slot.instant + ENTRIES[slot.entry].interval <= end]


def judge(due: list[Slot], seen: Seen) -> Verdict:
    """Compare: a slot that was due counts as wrong when missed, any slot when executed twice."""
    missed = {slot for slot in due if not seen.runs[slot]}
    doubled = {slot for slot, runs in seen.runs.items() if runs > 1}
    return Verdict(due, seen, sorted(missed | doubled))


def next_instant(after: datetime) -> datetime:
    """Return the first instant of the shortest interval that is later than `after`."""
    seconds = step()
    return EPOCH + ((after - EPOCH) // seconds + 1) * seconds


def step() -> timedelta:
    """Return the shortest interval."""
    return min(entry.interval for entry in ENTRIES.values())
