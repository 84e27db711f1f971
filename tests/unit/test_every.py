"""Intervals outside of schedules: what names one, and which slot an instant belongs to."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_idem.clock import UTC
from celery_idem.errors import ImproperlyConfigured
from celery_idem.once.every import every_of

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
NOON = datetime(2026, 7, 1, 12, 34, 56, 789, tzinfo=UTC)


@pytest.mark.parametrize(
    ("every", "seconds"),
    [
        ("10 minutes", 600),
        ("1 minute", 60),
        ("2 seconds", 2),
        (" 2  Hours ", 7200),
        ("3 days", 259_200),
        ("2 weeks", 1_209_600),
        (90, 90),
        (0.25, 0.25),
        (timedelta(minutes=7), 420),
    ],
)
def test_an_interval_is_a_grid_since_the_epoch(every: Any, seconds: float) -> None:
    slot = every_of(every)(NOON)
    assert slot <= NOON < slot + timedelta(seconds=seconds)
    assert (slot - EPOCH) % timedelta(seconds=seconds) == timedelta(0)


@given(st.floats(0.01, 1e6), st.integers(0, 4 * 10**15))
def test_each_instant_is_in_one_interval(seconds: float, micros: int) -> None:
    instant = EPOCH + timedelta(microseconds=micros)
    slot_at = every_of(seconds)
    slot = slot_at(instant)
    assert slot <= instant < slot + timedelta(seconds=seconds + 1e-6)
    assert slot_at(slot) == slot
    assert slot_at(instant.astimezone(timezone(timedelta(hours=5)))) == slot


@pytest.mark.parametrize(
    ("every", "zone", "slot"),
    [
        ("minute", "UTC", datetime(2026, 7, 1, 12, 34, tzinfo=UTC)),
        ("hour", "Asia/Kolkata", datetime(2026, 7, 1, 12, 30, tzinfo=UTC)),
        ("day", "UTC", datetime(2026, 7, 1, tzinfo=UTC)),
        ("day", "Europe/Berlin", datetime(2026, 6, 30, 22, tzinfo=UTC)),
        ("week", ZoneInfo("Europe/Berlin"), datetime(2026, 6, 28, 22, tzinfo=UTC)),
        ("month", "Europe/Berlin", datetime(2026, 6, 30, 22, tzinfo=UTC)),
        # A grid knows no calendar.
        ("1 day", "Europe/Berlin", datetime(2026, 7, 1, tzinfo=UTC)),
    ],
)
def test_a_calendar_period_is_that_of_a_time_zone(every: str, zone: Any, slot: datetime) -> None:
    assert every_of(every, zone)(NOON) == slot


@pytest.mark.parametrize(
    "every", ["", "fortnight", "10 fortnights", "minutes", "-1 days", 0, -5, 0.001, True, None]
)
def test_an_interval_that_is_none_is_refused(every: Any) -> None:
    with pytest.raises(ImproperlyConfigured, match=r"every = .* is not possible: it must be"):
        every_of(every)


@pytest.mark.parametrize("every", ["999999999 weeks", float("inf"), float("nan"), 1e300])
def test_an_interval_that_is_too_long_is_refused(every: Any) -> None:
    with pytest.raises(ImproperlyConfigured, match="between 10 milliseconds and 3660 days"):
        every_of(every)


@pytest.mark.parametrize("zone", ["Europe/Nowhere", "", None, 7, "../etc/passwd"])
def test_a_time_zone_that_is_none_is_refused(zone: Any) -> None:
    with pytest.raises(ImproperlyConfigured, match=r"timezone = .* is not possible"):
        every_of("day", zone)
