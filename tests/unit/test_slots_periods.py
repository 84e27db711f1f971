"""Where the calendar period of a slot starts."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from celery_idem.slots import Grain, grain_start
from tests.unit.slots_oracles import UTC, at
from tests.unit.slots_strategies import near_shift, zones

pytestmark = pytest.mark.unit

grains: st.SearchStrategy[Grain] = st.sampled_from(["minute", "hour", "day", "week", "month"])


@pytest.mark.parametrize(
    ("zone", "slot", "grain", "start"),
    [
        ("UTC", "2026-08-13T14:15:16", "minute", "2026-08-13T14:15"),
        ("UTC", "2026-08-13T14:15:16", "hour", "2026-08-13T14:00"),
        ("UTC", "2026-08-13T14:15:16", "day", "2026-08-13T00:00"),
        # A Thursday; weeks start on Monday.
        ("UTC", "2026-08-13T14:15:16", "week", "2026-08-10T00:00"),
        ("UTC", "2026-08-13T14:15:16", "month", "2026-08-01T00:00"),
        ("Asia/Kathmandu", "2026-08-13T14:20", "hour", "2026-08-13T14:15"),
        ("Europe/Berlin", "2026-08-12T22:30", "day", "2026-08-12T22:00"),
        # The day, week and month hold a shift of the clock.
        ("Europe/Berlin", "2026-03-29T20:00", "day", "2026-03-28T23:00"),
        ("Europe/Berlin", "2026-03-29T20:00", "week", "2026-03-22T23:00"),
        ("Europe/Berlin", "2026-03-31T20:00", "month", "2026-02-28T23:00"),
        # A repeated hour is two hours.
        ("Europe/Berlin", "2026-10-25T00:10", "hour", "2026-10-25T00:00"),
        ("Europe/Berlin", "2026-10-25T01:10", "hour", "2026-10-25T01:00"),
        ("Europe/Berlin", "2026-10-25T01:10", "day", "2026-10-24T22:00"),
        # Half an hour repeated makes the hour longer, half an hour skipped makes it shorter.
        ("Australia/Lord_Howe", "2026-04-04T15:20", "hour", "2026-04-04T14:00"),
        ("Australia/Lord_Howe", "2025-10-04T15:50", "hour", "2025-10-04T15:30"),
        # Midnight is skipped.
        ("America/Sao_Paulo", "2018-11-04T12:00", "day", "2018-11-04T03:00"),
        # Midnight is shown twice: one day.
        ("America/Havana", "2025-11-02T04:10", "day", "2025-11-02T04:00"),
        ("America/Havana", "2025-11-02T05:10", "day", "2025-11-02T04:00"),
        # The day after the one that Apia skipped.
        ("Pacific/Apia", "2011-12-30T12:00", "day", "2011-12-30T10:00"),
        ("Pacific/Apia", "2011-12-30T12:00", "month", "2011-12-01T10:00"),
    ],
)
def test_start_of_the_period(zone: str, slot: str, grain: Grain, start: str) -> None:
    assert grain_start(at(slot), grain, ZoneInfo(zone)) == at(start)


@settings(max_examples=200, deadline=None)
@given(data=st.data(), zone=zones, grain=grains)
def test_a_period_holds_its_slots(data: st.DataObject, zone: str, grain: Grain) -> None:
    tz = ZoneInfo(zone)
    slot = data.draw(near_shift(zone, 40))
    start = grain_start(slot, grain, tz)
    assert start <= slot
    assert start.utcoffset() == timedelta(0)
    assert grain_start(start, grain, tz) == start
    between = start + (slot - start) * data.draw(st.floats(0, 1))
    if grain != "hour":
        # Not of hours: half of one can be repeated in the middle of another.
        assert grain_start(between, grain, tz) == start


def test_any_aware_time_will_do() -> None:
    tokyo = datetime(2026, 8, 13, 23, 15, tzinfo=timezone(timedelta(hours=9)))
    assert grain_start(tokyo, "hour", UTC) == at("2026-08-13T14:00")


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match="'fortnight' is unknown: minute, hour, day"):
        grain_start(at("2026-01-01"), "fortnight", UTC)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="is naive"):
        grain_start(datetime(2026, 1, 1), "day", UTC)  # noqa: DTZ001
