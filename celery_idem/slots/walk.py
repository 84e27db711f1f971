"""From readings of a local clock to slots: the rules for clocks that are put forward or back.

Owns how a repeated and a skipped hour are treated, and nothing else does:

- `Once`: each reading of the pattern counts once, at the first instant at which the clock shows it.
  A reading that the clock skips counts at the first instant after the gap; several of them, or one
  of them and the reading at the end of the gap, are one slot. For things done at a certain hour: a
  bill is made neither twice nor never.
- `Elapsed`: a reading counts whenever the clock shows it: twice in a repeated hour, never in a gap.
  For things done every so often. With `fill_gaps` a skipped reading counts at the end of the gap,
  so that elapsed time between two slots never exceeds the period.

All searches go over at most a few shifts of the clock, never over every slot.
Must not know what a crontab or an interval is: they come as a `Pattern` of readings.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

from celery_idem.slots.zone import NEAR, TICK, Zone

#: Where to go on after a leap to a far reading: this much before it. Larger than any shift of the
#: clock, so that the leap never passes the reading; smaller than `NEAR`, so that it is progress.
_MARGIN = timedelta(hours=30)


class Pattern(Protocol):
    """A set of readings of a local clock (labelled UTC, see `celery_idem.slots.zone`)."""

    def at_or_after(self, wall: datetime) -> datetime | None:
        """The first reading of the pattern that is not before `wall`; None: there is none."""

    def at_or_before(self, wall: datetime) -> datetime | None:
        """The last reading of the pattern that is not after `wall`; None: there is none."""


class Walk(Protocol):
    """The slots of one schedule."""

    def first(self, after: datetime, limit: datetime) -> datetime | None:
        """The first slot in (after, limit]."""

    def last(self, after: datetime, until: datetime) -> datetime | None:
        """The last slot in (after, until]."""


@dataclass(frozen=True)
class Once:
    """Each reading counts once, a skipped one at the end of the gap."""

    pattern: Pattern
    zone: Zone

    def first(self, after: datetime, limit: datetime) -> datetime | None:
        wall = self.pattern.at_or_after(self.zone.high_water(after) + TICK)
        if wall is None:
            return None
        slot = self.zone.first_shown(wall)
        return slot if slot <= limit else None

    def last(self, after: datetime, until: datetime) -> datetime | None:
        wall = self.pattern.at_or_before(self.zone.high_water(until))
        if wall is None:
            return None
        slot = self.zone.first_shown(wall)
        return slot if slot > after else None


@dataclass(frozen=True)
class Elapsed:
    """A reading counts each time that the clock shows it."""

    pattern: Pattern
    zone: Zone
    fill_gaps: bool = False

    def first(self, after: datetime, limit: datetime) -> datetime | None:
        # From `after` itself, not from the tick after it: a gap may begin in between.
        at, beyond = after, TICK
        while at <= limit:
            offset = self.zone.offset(at)
            wall = self.pattern.at_or_after(at + offset + beyond)
            if wall is None:
                return None
            slot = wall - offset
            probe, beyond = min(slot, at + NEAR), timedelta(0)
            if self.zone.offset(probe) == offset:
                if probe == slot:
                    return slot if slot <= limit else None
                # The clock is not put back near here, so no reading before `wall` comes again.
                at = slot - _MARGIN
                continue
            at = self.zone.shift(at, probe)
            if self.fill_gaps and wall <= at + self.zone.offset(at):
                return at if at <= limit else None
        return None

    def last(self, after: datetime, until: datetime) -> datetime | None:
        at = until
        while at > after:
            offset = self.zone.offset(at)
            wall = self.pattern.at_or_before(at + offset)
            if wall is None:
                return None
            slot = wall - offset
            probe = max(slot, at - NEAR)
            if self.zone.offset(probe) == offset:
                if probe == slot:
                    return slot if slot > after else None
                at = slot + _MARGIN
                continue
            shifted = self.zone.shift(probe, at)
            if self.fill_gaps and wall >= shifted + self.zone.offset(shifted - TICK):
                return shifted if shifted > after else None
            at = shifted - TICK
        return None
