"""From a clock to a slot, where no schedule says it.

Owns the ways to name an interval, and the slot that an instant belongs to. Two processes whose
clocks agree are in one slot. Must not know what is done in it, nor read a clock.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime, timedelta, tzinfo
from typing import Any, get_args
from zoneinfo import ZoneInfo

from celery_idem.clock import UTC
from celery_idem.errors import ImproperlyConfigured
from celery_idem.slots import Grain, grain_start
from celery_idem.slots.grid import Grid
from celery_idem.slots.zone import TICK

#: The slot that holds an instant.
SlotAt = Callable[[datetime], datetime]

GRAINS: tuple[Grain, ...] = get_args(Grain)

_UNITS = {
    "second": timedelta(seconds=1),
    "minute": timedelta(minutes=1),
    "hour": timedelta(hours=1),
    "day": timedelta(days=1),
    "week": timedelta(weeks=1),
}
_TEXT = re.compile(r"(\d{1,9}) +([a-z]+?)s?")
#: Shorter intervals than the first would be over before a claim is answered.
_SHORTEST, _LONGEST = timedelta(milliseconds=10), timedelta(days=366 * 10)
_ALLOWED = f"it must be {', '.join(GRAINS)}, a text like '10 minutes', seconds, or a timedelta"


def every_of(every: str | float | timedelta, timezone: str | tzinfo = "UTC") -> SlotAt:
    """What tells the slot of an instant.

    Arguments:
        every: the calendar period, or the interval on a grid that begins with the Unix epoch.
        timezone: whose calendar it is; it has no part in a grid.

    Raises:
        ImproperlyConfigured: one of them is not possible.
    """
    zone = _zone(timezone)
    for grain in GRAINS:
        if every == grain:
            return lambda instant: grain_start(instant, grain, zone)
    grid = Grid(_interval(every) // TICK)

    def slot_at(instant: datetime) -> datetime:
        slot = grid.at_or_before(instant)
        assert slot is not None, f"{instant} is at the end of the calendar"
        return slot

    return slot_at


def _interval(every: Any) -> timedelta:
    interval = _read(every)
    if interval is None:
        raise ImproperlyConfigured("every", every, _ALLOWED)
    if not _SHORTEST <= interval <= _LONGEST:
        raise ImproperlyConfigured(
            "every", every, "it must be between 10 milliseconds and 3660 days"
        )
    return interval


def _read(every: Any) -> timedelta | None:
    if isinstance(every, timedelta):
        return every
    if isinstance(every, str):
        found = _TEXT.fullmatch(every.strip().lower())
        if found is None or found.group(2) not in _UNITS:
            return None
        return _product(_UNITS[found.group(2)], int(found.group(1)))
    if isinstance(every, bool) or not isinstance(every, int | float):
        return None
    return _product(timedelta(seconds=1), every)


def _product(unit: timedelta, number: float) -> timedelta:
    try:
        return unit * number
    except (OverflowError, ValueError):
        return timedelta.max


def _zone(timezone: Any) -> tzinfo:
    if isinstance(timezone, tzinfo):
        return timezone
    try:
        return UTC if timezone == "UTC" else ZoneInfo(timezone)
    except (OSError, ValueError, TypeError, KeyError) as exc:
        raise ImproperlyConfigured(
            "timezone", timezone, f"it must be the name of a time zone, or a tzinfo ({exc})"
        ) from None
