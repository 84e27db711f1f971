"""Crontabs against three independent oracles: cronsim, a walk over every minute, and Celery."""

from __future__ import annotations

from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from celery.schedules import crontab
from celery.utils.time import remaining
from hypothesis import given, settings
from hypothesis import strategies as st

from celery_idem.slots import latest_slot, next_slot, slots_between
from tests.unit.slots_oracles import (
    DAY,
    UTC,
    ZONES,
    Cron,
    app_in,
    at,
    by_cronsim,
    by_minutes,
    cronsim_loses_wildcards,
)
from tests.unit.slots_strategies import crons, field, hours, near_shift, steps, zones

pytestmark = pytest.mark.unit

#: Where both day fields are restricted, cron takes either and Celery both; cronsim (Debian) too
#: takes both if one of them begins with a star.
days_that_cron_joins = st.one_of(
    st.tuples(st.sampled_from(["*", "*/2", "*/3"]), field(0, 6)),
    st.tuples(field(1, 28), st.sampled_from(["*", "*/2"])),
)
months = st.one_of(st.just("*"), steps, field(1, 12))
oracle_crons = st.builds(
    lambda minute, hour, days, month: Cron(minute, hour, days[0], month, days[1]),
    field(0, 59),
    hours,
    days_that_cron_joins,
    months,
)


def compare_with_cronsim(cron: Cron, zone: str, after: datetime, until: datetime) -> None:
    """Equal; but days on which cronsim is proven wrong are left to `by_minutes`."""

    def comparable(slots: list[datetime]) -> list[datetime]:
        if not cron.elapsed:
            return slots
        return [slot for slot in slots if not cronsim_loses_wildcards(zone, slot)]

    ours = list(slots_between(cron.on(zone), after, until))
    assert comparable(ours) == comparable(by_cronsim(cron, zone, after, until))


@settings(max_examples=400, deadline=None)
@given(data=st.data(), zone=zones, cron=oracle_crons)
def test_as_cronsim_near_the_shifts_of_the_clock(
    data: st.DataObject, zone: str, cron: Cron
) -> None:
    after = data.draw(near_shift(zone, 2))
    compare_with_cronsim(cron, zone, after, after + 2 * DAY)


@pytest.mark.parametrize("zone", ZONES)
@settings(max_examples=12, deadline=None)
@given(cron=oracle_crons, days=st.integers(0, 6000))
def test_as_cronsim_for_a_season(zone: str, cron: Cron, days: int) -> None:
    # Noon in UTC is in no repeated hour of these zones: cronsim cannot start in the second one.
    after = at("2010-01-01T12:00") + days * DAY
    span = 20 if cron.minute.startswith("*") else 200
    compare_with_cronsim(cron, zone, after, after + span * DAY)


@settings(max_examples=150, deadline=None)
@given(data=st.data(), zone=zones, cron=crons)
def test_as_a_walk_over_every_minute(data: st.DataObject, zone: str, cron: Cron) -> None:
    after = data.draw(near_shift(zone, 1))
    until = after + timedelta(hours=data.draw(st.integers(1, 40)))

    expected = by_minutes(cron, zone, after, until)

    assert list(slots_between(cron.on(zone), after, until)) == expected
    assert latest_slot(cron.on(zone), after, until) == (expected[-1] if expected else None)


@settings(max_examples=60, deadline=None)
@given(cron=crons, minutes=st.integers(-2000, 2000))
@pytest.mark.parametrize("shift", ["2025-09-27T14:00", "2026-04-04T14:00"])
def test_chatham_where_cronsim_hangs(shift: str, cron: Cron, minutes: int) -> None:
    """02:45 becomes 03:45, and back: neither the hour nor the shift is whole."""
    zone, after = "Pacific/Chatham", at(shift) + timedelta(minutes=minutes)
    until = after + timedelta(hours=20)
    assert list(slots_between(cron.on(zone), after, until)) == by_minutes(cron, zone, after, until)


@settings(max_examples=200, deadline=None)
@given(
    minute=field(0, 59),
    hour=hours,
    days=st.tuples(field(1, 31), months, field(0, 6)),
    after=st.datetimes(datetime(2020, 1, 1), datetime(2030, 1, 1)),  # noqa: DTZ001
)
def test_as_celery_where_no_clock_shifts(
    minute: str, hour: str, days: tuple[str, str, str], after: datetime
) -> None:
    """All five fields at once: both day fields must match."""
    day, month, weekday = days
    start = after.replace(tzinfo=UTC)
    try:
        schedule = crontab(
            minute, hour, weekday, day, month, nowfun=lambda: start, app=app_in("UTC")
        )
        celerys = start + remaining(*schedule.remaining_delta(start))
    except (ValueError, RuntimeError):
        return  # 31 February, which each Celery refuses in its own way.
    assert next_slot(schedule, start) == celerys


def test_both_day_fields_must_match() -> None:
    first_mondays = Cron("0", "9", "1-7", "*", "mon").on("UTC")
    slots = list(slots_between(first_mondays, at("2026-01-01"), at("2026-05-01")))
    expected = ["2026-01-05T09:00", "2026-02-02T09:00", "2026-03-02T09:00", "2026-04-06T09:00"]
    assert slots == [at(text) for text in expected]


def test_a_rare_day_is_found() -> None:
    """29 February on a Monday: 28 years apart, and 40 across 2100, which is no leap year."""
    schedule = Cron("0", "0", "29", "2", "mon").on("UTC")
    slots = list(slots_between(schedule, at("2026-01-01"), at("2130-01-01")))
    assert slots == [at("2044-02-29"), at("2072-02-29"), at("2112-02-29")]
    assert next_slot(schedule, at("2072-02-29")) == at("2112-02-29")
    assert latest_slot(schedule, at("2072-03-01"), at("2112-02-28")) is None
    assert latest_slot(schedule, at("2026-01-01"), at("2112-02-28")) == at("2072-02-29")


def test_a_match_that_every_gap_swallows_never_comes() -> None:
    """The last Sunday of March at 2 o'clock, by elapsed time: Berlin has no such minute."""
    schedule = Cron("*/5", "2", "25-31", "3", "sun").on("Europe/Berlin")
    assert next_slot(schedule, at("2026-01-01")) is None
    assert next_slot(Cron("5", "2", "25-31", "3", "sun").on("Europe/Berlin"), at("2026-01-01")) == (
        at("2026-03-29T01:00")
    )


def test_the_ends_of_the_calendar() -> None:
    schedule = Cron("0", "0").on("Pacific/Apia")
    first, last = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)
    assert next_slot(schedule, last) is None
    assert next_slot(schedule, first) is not None
    assert latest_slot(schedule, first, last) is not None
    in_tokyo = datetime.min.replace(tzinfo=ZoneInfo("Asia/Tokyo"))
    assert next_slot(schedule, in_tokyo) == next_slot(schedule, first)
