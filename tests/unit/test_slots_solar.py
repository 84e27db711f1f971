"""Solar schedules against Celery, and against the equations of NOAA."""

from __future__ import annotations

import math
from datetime import datetime, timedelta
from typing import Any

import celery
import pytest
from celery.schedules import solar

from celery_idem.slots import latest_slot, next_slot, slots_between
from tests.unit.slots_oracles import DAY, app_in, at

pytest.importorskip("ephem", reason="ephem is not installed: solar schedules need it")
pytestmark = pytest.mark.unit

BERLIN, SYDNEY, TROMSO, LONGYEARBYEN = (
    (52.52, 13.405),
    (-33.87, 151.21),
    (69.65, 18.96),
    (78.22, 15.65),
)
EVENTS = (
    "dawn_astronomical",
    "dawn_nautical",
    "dawn_civil",
    "sunrise",
    "solar_noon",
    "sunset",
    "dusk_civil",
    "dusk_nautical",
    "dusk_astronomical",
)


def sun(event: Any, place: tuple[float, float], zone: str = "UTC") -> solar:
    return solar(event, *place, app=app_in(zone))


def by_noaa(day: datetime, place: tuple[float, float], rising: bool) -> datetime:
    """Sunrise or sunset (UTC) by NOAA's low-precision equations; a minute or two exact."""
    latitude, longitude = math.radians(place[0]), place[1]
    year_angle = 2 * math.pi / 365 * (day.timetuple().tm_yday - 1 + (day.hour - 12) / 24)
    sine, cosine = math.sin, math.cos
    equation_of_time = 229.18 * (
        0.000075
        + 0.001868 * cosine(year_angle)
        - 0.032077 * sine(year_angle)
        - 0.014615 * cosine(2 * year_angle)
        - 0.040849 * sine(2 * year_angle)
    )
    declination = (
        0.006918
        - 0.399912 * cosine(year_angle)
        + 0.070257 * sine(year_angle)
        - 0.006758 * cosine(2 * year_angle)
        + 0.000907 * sine(2 * year_angle)
        - 0.002697 * cosine(3 * year_angle)
        + 0.00148 * sine(3 * year_angle)
    )
    zenith = math.radians(90.833)
    hour_angle = math.degrees(
        math.acos(
            cosine(zenith) / (cosine(latitude) * cosine(declination))
            - math.tan(latitude) * math.tan(declination)
        )
    )
    angle = longitude + hour_angle if rising else longitude - hour_angle
    return day.replace(hour=0) + timedelta(minutes=720 - 4 * angle - equation_of_time)


@pytest.mark.parametrize("event", ["sunrise", "sunset"])
@pytest.mark.parametrize("day", ["2026-03-28", "2026-03-29", "2026-06-21", "2026-10-25"])
def test_as_an_almanac_also_when_clocks_shift(event: str, day: str) -> None:
    """The time zone of the app does not matter: the sun rises when it does."""
    start = at(f"{day}T00:00")
    expected = by_noaa(at(f"{day}T06:00"), BERLIN, event == "sunrise")
    in_berlin, in_utc = sun(event, BERLIN, "Europe/Berlin"), sun(event, BERLIN)
    slots = list(slots_between(in_berlin, start, start + DAY))
    assert len(slots) == 1
    assert abs(slots[0] - expected) < timedelta(minutes=3)
    assert slots == list(slots_between(in_utc, start, start + DAY))
    assert slots[0].microsecond == 0


@pytest.mark.skipif(
    celery.VERSION < (5, 7), reason="Celery before 5.7 does not search over a polar night"
)
@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("place", [BERLIN, SYDNEY, TROMSO, LONGYEARBYEN])
def test_the_events_are_celerys(event: str, place: tuple[float, float]) -> None:
    """Celery's next event is our next slot, all over a year."""
    schedule: Any = sun(event, place)
    asked = at("2026-01-01")
    while asked < at("2027-01-01"):
        slot = next_slot(schedule, asked)
        assert slot is not None
        schedule.nowfun = lambda now=asked: now
        celerys = asked + schedule.remaining_estimate(asked)
        assert abs(celerys - slot) < timedelta(seconds=2), (asked, celerys, slot)
        # Daily events by samples; those around a night or day of months one by one.
        asked = slot + (7 * DAY if slot < asked + 2 * DAY else timedelta(minutes=5))


def test_all_beats_calculate_the_same_second() -> None:
    """ephem ends a few milliseconds apart when asked from different moments."""
    schedule = sun("sunset", BERLIN)
    expected = next_slot(schedule, at("2026-05-01T12:00"))
    assert expected is not None
    for minutes in range(0, 26 * 60, 17):
        after = expected - timedelta(minutes=minutes, microseconds=1)
        assert expected in slots_between(schedule, after, expected + DAY)
        assert latest_slot(schedule, after, expected + timedelta(minutes=minutes)) is not None


def test_polar_night_and_midnight_sun_have_no_slots() -> None:
    rises, sets = sun("sunrise", TROMSO), sun("sunset", TROMSO)
    assert list(slots_between(rises, at("2025-12-01"), at("2026-01-10"))) == []
    assert list(slots_between(sets, at("2026-05-25"), at("2026-07-15"))) == []
    first = next_slot(rises, at("2025-12-01"))
    assert first is not None
    assert at("2026-01-13") < first < at("2026-01-18")
    last = latest_slot(rises, at("2025-11-01"), at("2026-01-10"))
    assert last is not None
    assert at("2025-11-24") < last < at("2025-11-30")


def test_what_never_happens_ends_the_search() -> None:
    """At the pole no hour angle separates day from night."""
    schedule = sun("dawn_civil", (90, 0))
    assert next_slot(schedule, at("2026-01-01")) is None
    assert latest_slot(schedule, at("2020-01-01"), at("2026-01-01")) is None
