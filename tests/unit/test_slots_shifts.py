"""What happens when a local clock is put forward or back, instant by instant.

The expected instants are written by hand, from the rules and the dates of the time zone database.
cronsim is no help where the shift is no whole hour, or skips midnight.
"""

from __future__ import annotations

from datetime import timedelta

import pytest
from celery.schedules import BaseSchedule

from celery_idem.slots import latest_slot, slots_between
from tests.unit.slots_oracles import Cron, at, every

pytestmark = pytest.mark.unit


def assert_slots(schedule: BaseSchedule, day: str, expected: str) -> None:
    """The slots in the 24 hours from 12:00 UTC of `day`, as ``HH:MM`` in UTC."""
    after = at(f"{day}T12:00")
    until = after + timedelta(days=1)
    slots = list(slots_between(schedule, after, until))
    assert " ".join(f"{slot:%H:%M}" for slot in slots) == expected
    assert latest_slot(schedule, after, until) == (slots[-1] if slots else None)


@pytest.mark.parametrize(
    ("zone", "day", "cron", "expected"),
    [
        # Berlin, 29 March: 02:00 becomes 03:00 at 01:00 UTC.
        ("Europe/Berlin", "2026-03-28", "30 2", "01:00"),
        ("Europe/Berlin", "2026-03-28", "0,15,30,45 2", "01:00"),
        ("Europe/Berlin", "2026-03-28", "0 2,3", "01:00"),
        ("Europe/Berlin", "2026-03-28", "10 1-4", "00:10 01:00 01:10 02:10"),
        # New York, 8 March: 02:00 becomes 03:00 at 07:00 UTC.
        ("America/New_York", "2026-03-07", "30 2", "07:00"),
        ("America/New_York", "2026-03-07", "59 1", "06:59"),
        # Lord Howe, 5 October: 02:00 becomes 02:30 at 15:30 UTC.
        ("Australia/Lord_Howe", "2025-10-04", "15 2", "15:30"),
        ("Australia/Lord_Howe", "2025-10-04", "30 2", "15:30"),
        ("Australia/Lord_Howe", "2025-10-04", "45 2", "15:45"),
        ("Australia/Lord_Howe", "2025-10-04", "0,20,40 2", "15:30 15:40"),
        # São Paulo, 4 November 2018: 00:00 becomes 01:00 at 03:00 UTC.
        ("America/Sao_Paulo", "2018-11-03", "0 0", "03:00"),
        ("America/Sao_Paulo", "2018-11-03", "30 0", "03:00"),
        ("America/Sao_Paulo", "2018-11-03", "30 0,1", "03:00 03:30"),
        # Kathmandu, 1 January 1986: 00:00 becomes 00:15 at 18:30 UTC.
        ("Asia/Kathmandu", "1985-12-31", "0 0", "18:30"),
        ("Asia/Kathmandu", "1985-12-31", "5,20 0", "18:30 18:35"),
        # Casablanca, 14 April 2024, after Ramadan: 02:00 becomes 03:00 at 02:00 UTC.
        ("Africa/Casablanca", "2024-04-13", "30 2", "02:00"),
        # Chatham, 28 September: 02:45 becomes 03:45 at 14:00 UTC.
        ("Pacific/Chatham", "2025-09-27", "50 2", "14:00"),
        ("Pacific/Chatham", "2025-09-27", "30 2,3", "13:45 14:00"),
        # Apia, 30 December 2011 does not exist; 29 December ends at 10:00 UTC of the 30th.
        ("Pacific/Apia", "2011-12-29", "30 9", "19:30 10:00"),
        ("Pacific/Apia", "2011-12-29", "0 0", "10:00"),
        ("Pacific/Apia", "2011-12-30", "30 9", "19:30"),
        ("UTC", "2026-03-28", "30 2", "02:30"),
    ],
)
def test_a_fixed_time_in_a_gap_comes_once_at_its_end(
    zone: str, day: str, cron: str, expected: str
) -> None:
    assert_slots(Cron(*cron.split()).on(zone), day, expected)


@pytest.mark.parametrize(
    ("zone", "day", "cron", "expected"),
    [
        # Berlin, 25 October: 03:00 becomes 02:00 at 01:00 UTC.
        ("Europe/Berlin", "2026-10-24", "30 2", "00:30"),
        ("Europe/Berlin", "2026-10-24", "0,30 2", "00:00 00:30"),
        ("Europe/Berlin", "2026-10-24", "0 2,3", "00:00 02:00"),
        # New York, 1 November: 02:00 becomes 01:00 at 06:00 UTC.
        ("America/New_York", "2026-10-31", "30 1", "05:30"),
        ("America/New_York", "2026-10-31", "0 1,2", "05:00 07:00"),
        # Lord Howe, 5 April: 02:00 becomes 01:30 at 15:00 UTC.
        ("Australia/Lord_Howe", "2026-04-04", "45 1", "14:45"),
        ("Australia/Lord_Howe", "2026-04-04", "0 2", "15:30"),
        # São Paulo, 18 February 2018: 00:00 becomes 23:00 of the day before at 02:00 UTC.
        ("America/Sao_Paulo", "2018-02-17", "30 23", "01:30"),
        ("America/Sao_Paulo", "2018-02-17", "0 0", "03:00"),
        # Casablanca, 10 March 2024, before Ramadan: 03:00 becomes 02:00 at 02:00 UTC.
        ("Africa/Casablanca", "2024-03-09", "30 2", "01:30"),
        # Apia, 1 April 2012: 04:00 becomes 03:00 at 14:00 UTC.
        ("Pacific/Apia", "2012-03-31", "30 3", "13:30"),
        # Chatham, 5 April: 03:45 becomes 02:45 at 14:00 UTC.
        ("Pacific/Chatham", "2026-04-04", "0 3", "13:15"),
        ("UTC", "2026-10-24", "30 2", "02:30"),
    ],
)
def test_a_fixed_time_in_a_repeated_hour_comes_once(
    zone: str, day: str, cron: str, expected: str
) -> None:
    assert_slots(Cron(*cron.split()).on(zone), day, expected)


@pytest.mark.parametrize(
    ("zone", "day", "cron", "expected"),
    [
        ("Europe/Berlin", "2026-03-28", "*/15 2", ""),
        ("Europe/Berlin", "2026-03-28", "*/20 3", "01:00 01:20 01:40"),
        ("Europe/Berlin", "2026-03-28", "30 */2", "13:30 15:30 17:30 19:30 21:30 23:30 "
         "02:30 04:30 06:30 08:30 10:30"),
        ("Australia/Lord_Howe", "2025-10-04", "*/15 2", "15:30 15:45"),
        ("America/Sao_Paulo", "2018-11-03", "*/30 0", ""),
        ("America/Sao_Paulo", "2018-11-03", "*/30 1", "03:00 03:30"),
        ("Asia/Kathmandu", "1985-12-31", "*/10 0", "18:35 18:45 18:55 19:05"),
        ("Pacific/Chatham", "2025-09-27", "*/15 2,3", "13:15 13:30 13:45 14:00"),
        # The 30th, a Friday, is skipped; the 31st is none.
        ("Pacific/Apia", "2011-12-29", "*/15 0 * * 5", ""),
        ("Pacific/Apia", "2011-12-29", "*/30 0", "10:00 10:30"),
        ("Pacific/Apia", "2011-12-29", "*,0 9", " ".join(f"19:{m:02}" for m in range(60))),
    ],
)  # fmt: skip
def test_a_wildcard_makes_nothing_up_in_a_gap(
    zone: str, day: str, cron: str, expected: str
) -> None:
    assert_slots(Cron(*cron.split()).on(zone), day, expected)


@pytest.mark.parametrize(
    ("zone", "day", "cron", "expected"),
    [
        ("Europe/Berlin", "2026-10-24", "*/30 2", "00:00 00:30 01:00 01:30"),
        ("America/New_York", "2026-10-31", "*/30 1", "05:00 05:30 06:00 06:30"),
        ("Australia/Lord_Howe", "2026-04-04", "*/15 1", "14:00 14:15 14:30 14:45 15:00 15:15"),
        ("America/Sao_Paulo", "2018-02-17", "*/30 23", "01:00 01:30 02:00 02:30"),
        ("Africa/Casablanca", "2024-03-09", "*/30 2", "01:00 01:30 02:00 02:30"),
        ("Pacific/Apia", "2012-03-31", "*/30 3", "13:00 13:30 14:00 14:30"),
        ("Pacific/Chatham", "2026-04-04", "*/30 3", "13:15 13:45 14:15 14:45"),
    ],
)
def test_a_wildcard_comes_in_both_repeated_hours(
    zone: str, day: str, cron: str, expected: str
) -> None:
    assert_slots(Cron(*cron.split()).on(zone), day, expected)


@pytest.mark.parametrize(
    ("day", "minutes", "expected"),
    [
        # One hour apart, across a gap of half an hour: what the clock shows decides.
        ("2025-10-04", "35", "14:05 15:05 15:35 16:35"),
        ("2025-10-04", "15", "13:45 14:45 16:15"),
        ("2026-04-04", "45", "13:45 14:45 15:15 16:15"),
    ],
)
def test_every_hour_in_lord_howe(day: str, minutes: str, expected: str) -> None:
    shown = list(
        slots_between(
            Cron(minutes, "*").on("Australia/Lord_Howe"), at(f"{day}T13:30"), at(f"{day}T16:40")
        )
    )
    assert " ".join(f"{slot:%H:%M}" for slot in shown) == expected


def test_a_day_that_was_skipped_keeps_its_name() -> None:
    """Friday, 30 December 2011: what was due then in Apia comes when the 31st begins."""
    on_fridays = Cron("0", "17", "*", "*", "fri").on("Pacific/Apia")
    slots = list(slots_between(on_fridays, at("2011-12-20"), at("2012-01-10")))
    expected = ["2011-12-24T03:00", "2011-12-30T10:00", "2012-01-06T03:00"]
    assert slots == [at(text) for text in expected]


@pytest.mark.parametrize(
    ("day", "minutes", "expected"),
    [
        # 2026-03-28 12:00 is 1,774,699,200 s after the epoch: 236,626 periods and 70 minutes.
        ("2026-03-28", 125, "12:55 15:00 17:05 19:10 21:15 23:20 "
         "01:25 03:30 05:35 07:40 09:45 11:50"),
        ("2026-10-24", 240, "16:00 20:00 00:00 04:00 08:00 12:00"),
    ],
)  # fmt: skip
def test_a_plain_interval_does_not_know_local_clocks(day: str, minutes: int, expected: str) -> None:
    assert_slots(every(minutes * 60, "Europe/Berlin"), day, expected)


def test_a_plain_interval_counts_from_the_epoch() -> None:
    slots = slots_between(every(7), at("1969-12-31T23:59:50"), at("1970-01-01T00:00:14"))
    assert [(slot - at("1970-01-01")).total_seconds() for slot in slots] == [-7, 0, 7, 14]
    third = list(slots_between(every(1 / 3), at("1970-01-01"), at("1970-01-01T00:00:01")))
    assert [slot.microsecond for slot in third] == [333_333, 666_666, 999_999]


@pytest.mark.parametrize(
    ("zone", "day", "hours", "expected"),
    [
        ("Europe/Berlin", "2026-03-28", 24, "23:00"),
        ("Europe/Berlin", "2026-03-29", 24, "22:00"),
        ("Europe/Berlin", "2026-10-24", 24, "22:00"),
        ("Europe/Berlin", "2026-10-25", 24, "23:00"),
        # Midnight is skipped.
        ("America/Sao_Paulo", "2018-11-03", 24, "03:00"),
        # Midnight is shown twice in Havana (01:00 becomes 00:00): a day begins once.
        ("America/Havana", "2025-11-01", 24, "04:00"),
        ("America/Havana", "2025-11-02", 24, "05:00"),
        # Half an hour is skipped, which holds 02:00: the hour begins at the end of the gap.
        ("Australia/Lord_Howe", "2025-10-04", 2, "13:30 15:30 17:00 19:00 21:00 23:00 "
         "01:00 03:00 05:00 07:00 09:00 11:00"),
        # When 02:00 is due the clock shows 01:30 again: it comes half an hour later.
        ("Australia/Lord_Howe", "2026-04-04", 2, "13:00 15:30 17:30 19:30 21:30 23:30 "
         "01:30 03:30 05:30 07:30 09:30 11:30"),
        # Even hours: the skipped one comes at the end of the gap, the repeated one twice.
        ("Europe/Berlin", "2026-03-28", 2, "13:00 15:00 17:00 19:00 21:00 23:00 "
         "01:00 02:00 04:00 06:00 08:00 10:00 12:00"),
        ("Europe/Berlin", "2026-10-24", 2, "14:00 16:00 18:00 20:00 22:00 "
         "00:00 01:00 03:00 05:00 07:00 09:00 11:00"),
    ],
)  # fmt: skip
def test_a_relative_interval_follows_the_local_clock(
    zone: str, day: str, hours: float, expected: str
) -> None:
    assert_slots(every(hours * 3600, zone, relative=True), day, expected)


def test_a_gap_may_begin_in_the_very_next_microsecond() -> None:
    """A window that ends just before the gap leaves what is skipped in it to the next window."""
    interval, gap_ends = every(7 * 60, "Europe/Berlin", relative=True), at("2026-03-29T01:00")
    just_before = gap_ends - timedelta(microseconds=1)
    after = gap_ends - timedelta(minutes=10)
    slots = list(slots_between(interval, after, gap_ends))
    assert slots[-1] == gap_ends
    assert list(slots_between(interval, just_before, gap_ends)) == [gap_ends]
    assert list(slots_between(interval, after, just_before)) == slots[:-1]
