"""Calendar periods: the minute, hour, day, week or month that holds a slot.

Owns where such a period starts, for "at most once per calendar day". Must not know any schedule.
"""

from __future__ import annotations

from datetime import datetime, timedelta, tzinfo
from typing import Literal

from celery_idem.clock import UTC
from celery_idem.slots.zone import Zone

Grain = Literal["minute", "hour", "day", "week", "month"]


def _floor(wall: datetime, grain: Grain) -> datetime:
    if grain == "minute":
        return wall.replace(second=0, microsecond=0)
    if grain == "hour":
        return wall.replace(minute=0, second=0, microsecond=0)
    day = wall.replace(hour=0, minute=0, second=0, microsecond=0)
    if grain == "day":
        return day
    if grain == "week":
        return day - timedelta(days=day.weekday())
    if grain == "month":
        return day.replace(day=1)
    raise ValueError(f"grain {grain!r} is unknown: minute, hour, day, week or month")


def grain_start(slot: datetime, grain: Grain, tz: tzinfo) -> datetime:
    """Where the calendar period of `tz` that holds the slot starts (UTC; never after the slot).

    Weeks start on Monday. A repeated hour is two hours, but the day around it is one. A period
    whose start the local clock skips starts at the end of the gap. Raises `ValueError` for an
    unknown grain or a naive slot.
    """
    if slot.tzinfo is None:
        raise ValueError(f"slot {slot!r} is naive: give it a time zone")
    zone, instant = Zone(tz), slot.astimezone(UTC)
    offset = zone.offset(instant)
    wall = _floor(instant + offset, grain)
    start = wall - offset
    if grain in ("minute", "hour") and zone.offset(start) == offset:
        return start
    return zone.first_shown(wall)
