"""Relative intervals against Celery's own arithmetic."""

from __future__ import annotations

from datetime import datetime, timedelta

import celery
import pytest
from celery.schedules import schedule
from celery.utils.time import remaining
from hypothesis import given, settings
from hypothesis import strategies as st

from celery_idem.slots import next_slot
from tests.unit.slots_oracles import DAY, SHIFTS, at, every
from tests.unit.slots_strategies import zones

pytestmark = pytest.mark.unit


def celerys_next(interval: schedule, run_at: datetime) -> datetime:
    """When Celery runs the interval after a run at `run_at`."""
    start = run_at.astimezone(interval.tz)  # type: ignore[arg-type]  # a tzinfo, not a str
    every_: timedelta = interval.run_every  # type: ignore[attr-defined]
    return run_at + remaining(start, every_, start, relative=True)


@settings(max_examples=200, deadline=None)
@given(
    unit=st.sampled_from([1, 60, 3600, 86400]),
    count=st.integers(1, 20),
    rest=st.floats(0, 0.9),
    late=st.floats(0, 0.99),
    hours=st.integers(0, 100_000),
)
def test_rounded_as_celery_does(
    unit: int, count: int, rest: float, late: float, hours: int
) -> None:
    """From a slot, and from a run that was late by less than a second or unit's remainder."""
    interval = every(round(unit * (count + rest), 3), relative=True)
    slot = next_slot(interval, at("2020-01-01") + timedelta(hours=hours))
    assert slot is not None
    following = next_slot(interval, slot)
    assert celerys_next(interval, slot) == following
    run_at = slot + timedelta(seconds=late * unit * (1 - rest))
    assert celerys_next(interval, run_at) == following


@pytest.mark.skipif(
    celery.VERSION < (5, 7), reason="Celery before 5.7 takes the wrong offset around a shift"
)
@settings(max_examples=100, deadline=None)
@given(zone=zones, unit=st.sampled_from([60, 3600, 86400]), data=st.data())
def test_single_units_as_celery_does_around_a_shift(
    zone: str, unit: int, data: st.DataObject
) -> None:
    interval = every(unit, zone, relative=True)
    shift = at(data.draw(st.sampled_from(SHIFTS[zone])))
    after = shift + data.draw(st.timedeltas(-2 * DAY, 2 * DAY))
    slot = next_slot(interval, after)
    assert slot is not None
    assert celerys_next(interval, slot) == next_slot(interval, slot)


@pytest.mark.parametrize(
    ("seconds", "as_if"),
    [(36 * 3600, 86400), (90 * 60, 3600), (119, 60), (2.5, 2), (60 * 3600, 2 * 86400)],
)
def test_what_exceeds_the_unit_is_lost_at_each_run(seconds: float, as_if: float) -> None:
    after = at("2026-01-01T05:17:31")
    short = every(as_if, "Asia/Kathmandu", relative=True)
    assert next_slot(every(seconds, "Asia/Kathmandu", relative=True), after) == next_slot(
        short, after
    )


def test_less_than_a_second_is_not_rounded() -> None:
    after = at("2026-01-01")
    assert next_slot(every(0.25, relative=True), after) == after + timedelta(milliseconds=250)


@pytest.mark.parametrize("days", [1, 2, 7])
def test_days_are_counted_by_the_local_calendar(days: int) -> None:
    """Every n-th day since 1 January 1970, whenever the beat began."""
    interval = every(days * 86400, "America/New_York", relative=True)
    for start in range(10):
        slot = next_slot(interval, at("2026-03-01T12:00") + start * DAY)
        assert slot is not None
        local = slot.astimezone(interval.tz)  # type: ignore[arg-type]  # a tzinfo, not a str
        assert (local.hour, local.minute, local.second) == (0, 0, 0)
        assert (local.date() - at("1970-01-01").date()).days % days == 0
