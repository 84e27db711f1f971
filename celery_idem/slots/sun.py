"""The slots of a solar schedule.

Owns the calculation of solar events by ephem, as Celery has it (``celery.schedules.solar``), with
three differences that let all beats agree:

- ephem approaches an event from the moment it is asked from, and ends within some milliseconds of
  it. Here every event is calculated from a fixed moment of its own day, some hours away from where
  it can happen, and rounded to the second.
- The horizons are those of Celery 5.6 and later; before, ``dusk_astronomical`` was 18 degrees above
  the horizon instead of below.
- Where an event is missing for days (midnight sun, polar night), the next one counts, and never the
  moment at which Celery merely asks again.

ephem is optional, and loaded when the first event is calculated.
Must not know other schedules or time zones: the sun does not care for them.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from importlib import import_module
from typing import Final

from celery_idem.clock import UTC
from celery_idem.slots.grid import EPOCH

_DAY: Final = timedelta(days=1)
#: An event that does not happen within so many days is taken never to happen. Near the poles some
#: happen once a year.
SEARCH_DAYS: Final = 400

#: Event: method of ephem, horizon (degrees), whether the sun's centre counts (not its upper limb),
#: and the local mean solar hour at which its day begins: six hours or more from where it happens.
EVENTS: Final = {
    "dawn_astronomical": ("next_rising", "-18", True, 18),
    "dawn_nautical": ("next_rising", "-12", True, 18),
    "dawn_civil": ("next_rising", "-6", True, 18),
    "sunrise": ("next_rising", "-0:34", False, 18),
    "solar_noon": ("next_transit", "0", False, 0),
    "sunset": ("next_setting", "-0:34", False, 6),
    "dusk_civil": ("next_setting", "-6", True, 6),
    "dusk_nautical": ("next_setting", "-12", True, 6),
    "dusk_astronomical": ("next_setting", "-18", True, 6),
}


@lru_cache(maxsize=8192)
def _event(event: str, latitude: float, longitude: float, start: datetime) -> datetime | None:
    """The event in the 24 hours after `start`, to the second; None: it does not happen then."""
    ephem = import_module("ephem")
    method, horizon, use_centre, _ = EVENTS[event]
    observer = ephem.Observer()
    observer.lat, observer.lon = str(latitude), str(longitude)
    observer.elevation, observer.pressure, observer.horizon = 0, 0, horizon
    options = {"use_center": True} if use_centre else {}
    try:
        found = getattr(observer, method)(ephem.Sun(), start=ephem.Date(start), **options)
    except ephem.CircumpolarError:
        return None
    moment = found.datetime().replace(tzinfo=UTC)
    if moment >= start + _DAY:
        return None
    rounded: datetime = (moment + timedelta(milliseconds=500)).replace(microsecond=0)
    return rounded


@dataclass(frozen=True)
class Sun:
    """The instants of one solar event at one place (degrees); a `celery_idem.slots.walk.Walk`."""

    event: str
    latitude: float
    longitude: float

    def first(self, after: datetime, limit: datetime) -> datetime | None:
        start = self._day_of(after)
        for _ in range(SEARCH_DAYS):
            slot = _event(self.event, self.latitude, self.longitude, start)
            if slot is not None and slot > after:
                return slot if slot <= limit else None
            start += _DAY
            if start > limit:
                return None
        return None

    def last(self, after: datetime, until: datetime) -> datetime | None:
        start = self._day_of(until)
        for _ in range(SEARCH_DAYS):
            slot = _event(self.event, self.latitude, self.longitude, start)
            if slot is not None and slot <= until:
                return slot if slot > after else None
            if start <= after:
                return None
            start -= _DAY
        return None

    def _day_of(self, instant: datetime) -> datetime:
        """Where the solar day that holds the instant began."""
        hour = EVENTS[self.event][3]
        first = EPOCH + timedelta(seconds=round(hour * 3600 - self.longitude * 240))
        return first + (instant - first) // _DAY * _DAY
