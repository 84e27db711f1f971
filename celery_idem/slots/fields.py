"""The readings of a local clock that a crontab names.

Owns the calendar of a crontab: minutes, hours, and the days that are in ``day_of_month`` AND in
``day_of_week`` (as Celery has it; cron takes either if both are restricted). The sets come parsed
from Celery, so its syntax is Celery's.

Owns too what counts as a *wildcard*. As in Debian's cron (``entry.c``: MIN_STAR and HR_STAR) and
in cronsim, a crontab whose minute or hour field BEGINS WITH ``*`` goes by elapsed time: ``*``,
``*/5``, ``*,30``. Everything else has a fixed hour and minute: numbers, lists, ranges, ``0-23``
and ``range(24)`` too. The two differ only where a local clock is put forward or back.

Must not know time zones: a reading is a datetime labelled UTC.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from calendar import monthrange
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import MAXYEAR, MINYEAR, datetime

from celery.schedules import crontab

from celery_idem.clock import UTC
from celery_idem.errors import InvalidSchedule

_DAYS_IN_LONGEST = (0, 31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
#: Enough to come from a minute to the next whole one.
_ALMOST_A_MINUTE = 59_999_999


def goes_by_elapsed_time(schedule: crontab) -> bool:
    """True if the minute or the hour field begins with ``*``."""
    texts = (getattr(schedule, "_orig_minute", None), getattr(schedule, "_orig_hour", None))
    return any(isinstance(text, str) and text.startswith("*") for text in texts)


@dataclass(frozen=True)
class Fields:
    """A crontab's five fields, each sorted; a `celery_idem.slots.walk.Pattern`."""

    minutes: tuple[int, ...]
    hours: tuple[int, ...]
    days: tuple[int, ...]
    months: tuple[int, ...]
    #: Sunday is 0, as in Celery.
    weekdays: frozenset[int]

    @classmethod
    def of(cls, schedule: crontab) -> Fields:
        """The fields of a crontab. Raises `InvalidSchedule` if no moment can ever match."""

        def field(name: str) -> tuple[int, ...]:
            values: Iterable[int] = getattr(schedule, name)
            if not values:
                raise InvalidSchedule(schedule, f"{name} is empty: name at least one value")
            if not all(isinstance(value, int) for value in values):
                raise InvalidSchedule(schedule, f"{name} = {values!r}: give whole numbers")
            return tuple(sorted(values))

        days, months = field("day_of_month"), field("month_of_year")
        if all(days[0] > _DAYS_IN_LONGEST[month] for month in months):
            raise InvalidSchedule(
                schedule,
                f"day_of_month {list(days)} never occurs in month_of_year {list(months)}: "
                "name a day that one of the months has",
            )
        weekdays = frozenset(field("day_of_week"))
        return cls(field("minute"), field("hour"), days, months, weekdays)

    def at_or_after(self, wall: datetime) -> datetime | None:
        """The first matching reading that is not before `wall` (seconds count as over)."""
        micros = wall.second * 1_000_000 + wall.microsecond
        minute = wall.minute + (micros + _ALMOST_A_MINUTE) // 60_000_000
        at = bisect_left(self.hours, wall.hour)
        time = None
        if at < len(self.hours) and self.hours[at] == wall.hour:
            index = bisect_left(self.minutes, minute)
            if index < len(self.minutes):
                time = wall.hour, self.minutes[index]
            else:
                at += 1
        if time is None and at < len(self.hours):
            time = self.hours[at], self.minutes[0]
        start = time or (self.hours[0], self.minutes[0])
        for year, month, day in self._dates_from(wall, today=time is not None):
            same = (year, month, day) == (wall.year, wall.month, wall.day)
            hour, minute = start if same else (self.hours[0], self.minutes[0])
            return datetime(year, month, day, hour, minute, tzinfo=UTC)
        return None

    def at_or_before(self, wall: datetime) -> datetime | None:
        """The last matching reading that is not after `wall`."""
        at = bisect_right(self.hours, wall.hour) - 1
        time = None
        if at >= 0 and self.hours[at] == wall.hour:
            index = bisect_right(self.minutes, wall.minute) - 1
            if index >= 0:
                time = wall.hour, self.minutes[index]
            else:
                at -= 1
        if time is None and at >= 0:
            time = self.hours[at], self.minutes[-1]
        start = time or (self.hours[-1], self.minutes[-1])
        for year, month, day in self._dates_to(wall, today=time is not None):
            same = (year, month, day) == (wall.year, wall.month, wall.day)
            hour, minute = start if same else (self.hours[-1], self.minutes[-1])
            return datetime(year, month, day, hour, minute, tzinfo=UTC)
        return None

    def _dates_from(self, wall: datetime, today: bool) -> Iterator[tuple[int, int, int]]:
        """Matching dates upwards. A date that exists comes again within 40 years, so this is
        short; the last year of the calendar is left out, so that no offset can leave it."""
        first_month, first_day = wall.month, wall.day + (0 if today else 1)
        for year in range(wall.year, MAXYEAR):
            for month in self.months[bisect_left(self.months, first_month) :]:
                start = first_day if (year, month) == (wall.year, wall.month) else 1
                yield from self._days(year, month, start, 31)
            first_month = 1

    def _dates_to(self, wall: datetime, today: bool) -> Iterator[tuple[int, int, int]]:
        """Matching dates downwards; the first year of the calendar is left out."""
        last_month, last_day = wall.month, wall.day - (0 if today else 1)
        for year in range(wall.year, MINYEAR, -1):
            for month in reversed(self.months[: bisect_right(self.months, last_month)]):
                end = last_day if (year, month) == (wall.year, wall.month) else 31
                yield from reversed(list(self._days(year, month, 1, end)))
            last_month = 12

    def _days(self, year: int, month: int, low: int, high: int) -> Iterator[tuple[int, int, int]]:
        monday_first, length = monthrange(year, month)
        for day in self.days[bisect_left(self.days, low) :]:
            if day > min(high, length):
                return
            if (monday_first + day) % 7 in self.weekdays:
                yield year, month, day
