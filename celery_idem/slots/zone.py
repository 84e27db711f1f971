"""A time zone, asked in one direction only: from an instant to its offset.

Owns the arithmetic between instants (UTC) and the readings of a local clock. A reading (`wall`)
is carried as a datetime labelled UTC, so that its arithmetic is exact and no naive datetime exists:
``wall = instant + offset(instant)``. Only that direction is unambiguous; "which instant is 02:30?"
has no, one or two answers, and is answered here by looking for the shift of the clock.
Must not know any schedule.
"""

from __future__ import annotations

from datetime import datetime, timedelta, tzinfo

#: Resolution of a slot.
TICK = timedelta(microseconds=1)
#: Two shifts of one local clock are further apart than this, and no shift is larger (the largest
#: are the days that Pacific/Apia skipped in 2011 and Pacific/Kwajalein in 1993: 24 hours).
NEAR = timedelta(hours=36)


class Zone:
    """A local clock. Needs of `tz` only a right ``fromutc`` (pytz objects will do)."""

    __slots__ = ("tz",)

    def __init__(self, tz: tzinfo) -> None:
        self.tz = tz

    def offset(self, instant: datetime) -> timedelta:
        """Local time minus UTC at this instant."""
        return instant.astimezone(self.tz).utcoffset() or timedelta(0)

    def shift(self, low: datetime, high: datetime) -> datetime:
        """The first instant in (low, high] with another offset than `low`; there must be one.

        Shifts happen on whole seconds, so halving an interval of whole seconds finds it.
        """
        before = self.offset(low)
        low, high = low.replace(microsecond=0), high.replace(microsecond=0)
        while (seconds := (high - low) // timedelta(seconds=1)) > 1:
            middle = low + timedelta(seconds=seconds // 2)
            if self.offset(middle) == before:
                low = middle
            else:
                high = middle
        return high

    def high_water(self, instant: datetime) -> datetime:
        """The latest reading shown up to this instant; more than the present one if the clock was
        put back a short while ago."""
        now = self.offset(instant)
        before = self.offset(instant - NEAR)
        if before <= now:
            return instant + now
        put_back = self.shift(instant - NEAR, instant)
        return max(instant + now, put_back + before - TICK)

    def first_shown(self, wall: datetime) -> datetime:
        """The first instant at which the clock shows `wall`, or skips it (the end of the gap)."""
        before, after = self.offset(wall - NEAR), self.offset(wall + NEAR)
        if before == after:
            return wall - before
        shifted = self.shift(wall - NEAR, wall + NEAR)
        if wall - before < shifted:
            return wall - before
        return max(wall - after, shifted)
