"""Evenly spaced slots: `celery.schedules.schedule`.

Owns the two grids of an interval:

- A plain interval counts from the Unix epoch, in whole microseconds of elapsed time. Celery counts
  from the last run, which each beat knows differently; from the epoch they all agree.
- ``relative=True`` is rounded as Celery does (``celery.utils.time.delta_resolution``): an interval
  of a day and more to local midnight, of an hour and more to the hour, of a minute and more to the
  minute, less to the second. In Celery the rest is lost again at each run (36 hours run daily, 90
  minutes hourly), so the period here is the interval cut down to its unit. Of longer periods Celery
  runs every n-th unit since its start; here it is every n-th since 1970-01-01 00:00 by the local
  clock, the same for all beats. Days count once (`Once`), hours and minutes by elapsed time
  (`Elapsed`); in a gap both come at its end. Less than a minute is not rounded to the calendar, and
  so on the epoch grid, in whole seconds if it is at least one.

Must not know crontabs or time zones.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from celery_idem.clock import UTC
from celery_idem.slots.zone import TICK

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
SECOND: Final = 1_000_000
MINUTE: Final = 60 * SECOND
HOUR: Final = 60 * MINUTE
DAY: Final = 24 * HOUR
#: The ends of the calendar (microseconds) are left out, so that no zone's offset leaves it.
_BEGIN: Final = (datetime(2, 1, 1, tzinfo=UTC) - EPOCH) // TICK
_END: Final = (datetime(9999, 1, 1, tzinfo=UTC) - EPOCH) // TICK


def cut_to_unit(step: int) -> int:
    """The period (microseconds) at which Celery runs a relative interval of `step` microseconds."""
    for unit in (DAY, HOUR, MINUTE, SECOND):
        if step >= unit:
            return step - step % unit
    return step


@dataclass(frozen=True)
class Grid:
    """The multiples of `step` microseconds since the epoch.

    On instants it is a `celery_idem.slots.walk.Walk` (elapsed time), on the readings of a local
    clock a `celery_idem.slots.walk.Pattern`.
    """

    step: int

    def at_or_after(self, wall: datetime) -> datetime | None:
        return self._at(-((EPOCH - wall) // TICK // self.step))

    def at_or_before(self, wall: datetime) -> datetime | None:
        return self._at((wall - EPOCH) // TICK // self.step)

    def first(self, after: datetime, limit: datetime) -> datetime | None:
        slot = self._at((after - EPOCH) // TICK // self.step + 1)
        return slot if slot is not None and slot <= limit else None

    def last(self, after: datetime, until: datetime) -> datetime | None:
        slot = self.at_or_before(until)
        return slot if slot is not None and slot > after else None

    def _at(self, index: int) -> datetime | None:
        micros = index * self.step
        return EPOCH + timedelta(microseconds=micros) if _BEGIN <= micros < _END else None
