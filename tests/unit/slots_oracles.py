"""Independent answers to "which slots does this crontab have?".

`by_minutes` walks every minute and asks only what the local clock shows: the rules themselves, as
directly as they can be written. `by_cronsim` asks cronsim. Neither shares code with
`celery_idem.slots`.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime, time, timedelta, timezone
from functools import cache
from typing import Any
from zoneinfo import ZoneInfo

from celery import Celery
from celery.schedules import crontab, schedule
from cronsim import CronSim

UTC = timezone.utc
MINUTE = timedelta(minutes=1)
DAY = timedelta(days=1)

ZONES = (
    "Europe/Berlin",
    "America/New_York",
    "Australia/Lord_Howe",
    "America/Sao_Paulo",
    "Asia/Kathmandu",
    "Africa/Casablanca",
    "Pacific/Apia",
    "UTC",
)

#: Shifts of the local clocks of `ZONES`, forward and back, that tests go near (UTC).
SHIFTS = {
    "Europe/Berlin": ("2026-03-29T01:00", "2026-10-25T01:00"),
    "America/New_York": ("2026-03-08T07:00", "2026-11-01T06:00"),
    # Half an hour only.
    "Australia/Lord_Howe": ("2025-10-04T15:30", "2026-04-04T15:00"),
    # At midnight: 00:00 is skipped, and 23:00 repeated.
    "America/Sao_Paulo": ("2018-11-04T03:00", "2018-02-18T02:00"),
    # 15 minutes, in 1986.
    "Asia/Kathmandu": ("1985-12-31T18:30", "1985-12-31T18:30"),
    # Back for Ramadan and forward after it.
    "Africa/Casablanca": ("2024-04-14T02:00", "2024-03-10T02:00"),
    # 30 December 2011 is skipped; back from summer time later.
    "Pacific/Apia": ("2011-12-30T10:00", "2012-03-31T14:00"),
    "UTC": ("2026-03-29T01:00", "2026-10-25T01:00"),
}


def at(text: str) -> datetime:
    """An instant in UTC from ISO text."""
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@cache
def app_in(zone: str) -> Celery:
    """An app with this `timezone` setting."""
    app = Celery("slots", set_as_current=False)
    app.conf.update(timezone=zone)
    return app


@dataclass(frozen=True)
class Cron:
    """A crontab in cron's order of fields, as text."""

    minute: str = "*"
    hour: str = "*"
    day: str = "*"
    month: str = "*"
    weekday: str = "*"

    def __str__(self) -> str:
        return f"{self.minute} {self.hour} {self.day} {self.month} {self.weekday}"

    @property
    def elapsed(self) -> bool:
        return self.minute.startswith("*") or self.hour.startswith("*")

    def on(self, zone: str) -> crontab:
        return crontab(
            self.minute,
            self.hour,
            day_of_week=self.weekday,
            day_of_month=self.day,
            month_of_year=self.month,
            app=app_in(zone),
        )


def every(seconds: float, zone: str = "UTC", relative: bool = False) -> schedule:
    return schedule(seconds, relative=relative, app=app_in(zone))


def _matches(fields: Any, wall: datetime) -> bool:
    return (
        wall.minute in fields.minute
        and wall.hour in fields.hour
        and wall.day in fields.day_of_month
        and wall.month in fields.month_of_year
        and wall.isoweekday() % 7 in fields.day_of_week
    )


def by_minutes(cron: Cron, zone: str, after: datetime, until: datetime) -> list[datetime]:
    """The slots in (after, until], by looking at the local clock at each minute.

    By elapsed time, a minute is a slot if the clock shows a match. Else a match is one slot at the
    first minute at which the clock shows it or more.
    """
    tz, fields = ZoneInfo(zone), cron.on(zone)
    slots = []
    instant = (after - 2 * DAY).replace(second=0, microsecond=0)
    # Labelled UTC, so that differences of readings are plain arithmetic.
    highest = instant.astimezone(tz).replace(tzinfo=UTC, fold=0)
    while instant < until - MINUTE + timedelta(microseconds=1):
        instant += MINUTE
        wall = instant.astimezone(tz).replace(tzinfo=UTC, fold=0)
        if cron.elapsed:
            due = _matches(fields, wall)
        else:
            new = int((wall - highest) / MINUTE)
            due = any(_matches(fields, wall - index * MINUTE) for index in range(new))
            highest = max(highest, wall)
        if due and instant > after:
            slots.append(instant)
    return slots


def _skipped(zone: str, day: date, hour: int) -> bool:
    tz = ZoneInfo(zone)
    reading = datetime.combine(day, time(hour), tzinfo=tz)
    return reading.astimezone(UTC).astimezone(tz).replace(tzinfo=None) != reading.replace(
        tzinfo=None
    )


@cache
def _shifted_by_part_of_an_hour(zone: str, day: date) -> bool:
    noon = datetime.combine(day, time(12), tzinfo=ZoneInfo(zone))
    shift = (noon.utcoffset() or DAY) - ((noon - DAY).utcoffset() or DAY)
    return bool(shift % timedelta(hours=1))


@cache
def _skips_midnight(zone: str, day: date) -> bool:
    return _skipped(zone, day, 0)


@cache
def _does_not_exist(zone: str, day: date) -> bool:
    return _skipped(zone, day, 0) and _skipped(zone, day, 12)


def cronsim_loses_wildcards(zone: str, slot: datetime) -> bool:
    """True if cronsim 2.8 is wrong about crontabs with a wildcard around this slot.

    It goes forward by whole hours from minute 0, so after a shift of half an hour or 15 minutes it
    passes over matching hours, up to the first minutes of the next day. And it starts a day at
    00:00 even if the clock skips that, or the day: that gives a slot at the end of the gap which no
    field names, or drops the first hour after it.
    """
    local = slot.astimezone(ZoneInfo(zone))
    day, day_before = local.date(), local.date() - DAY
    return (
        _shifted_by_part_of_an_hour(zone, day)
        or (local.hour == 0 and _shifted_by_part_of_an_hour(zone, day_before))
        or _skips_midnight(zone, day)
        or _does_not_exist(zone, day_before)
    )


def by_cronsim(cron: Cron, zone: str, after: datetime, until: datetime) -> list[datetime]:
    """The slots in (after, until] by cronsim; what it repeats at the end of a gap only once."""
    assert zone != "Pacific/Chatham", "cronsim does not come back from a shift at 02:45"
    slots: list[datetime] = []
    # From the day before: it loses the second half of a repeated hour when started in it.
    for local in CronSim(str(cron), (after - DAY).astimezone(ZoneInfo(zone))):
        slot = local.astimezone(UTC)
        if slot > until:
            break
        if slot > after and slot not in slots[-1:]:
            slots.append(slot)
    return slots
