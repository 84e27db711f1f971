"""What becomes of slots that nobody emitted: no burst unless asked, and one line for a decision."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta
from typing import Any

import pytest
from celery.schedules import crontab

from celery_idem import RunState
from celery_idem.keys import RunKey
from celery_idem.ledger import NewSlot
from tests.contract.stores import SettableClock
from tests.unit.beats import ShakyLedger, at, beat, messages, rows, run_for, slots

DAY, YEAR = 86_400, 366 * 86_400


@pytest.fixture
def clock() -> SettableClock:
    return SettableClock()  # 2026-03-30T01:30:00


@pytest.fixture
def ledger(clock: SettableClock) -> ShakyLedger:
    return ShakyLedger(clock)


def schedule(every: float = 600, **options: Any) -> dict[str, Any]:
    return {"e": {"task": "note", "schedule": every, **options}}


def emitted(*going: Any) -> list[str]:
    """The slots of `e`, by their time."""
    found = [slot for one in going for name, slot in slots(messages(one.app)) if name == "e"]
    assert len(found) == len(set(found))
    return sorted(slot[5:-1] for slot in found)


def lines(ledger: ShakyLedger, entry: str = "e") -> list[str]:
    """What the history tells of it."""
    found = ledger.history(RunKey.for_entry("unit", entry))
    assert {line.kind for line in found} <= {"missed"}
    return [str(line.detail) for line in found]


def after_outage(
    ledger: ShakyLedger, clock: SettableClock, seconds: float, entries: dict[str, Any]
) -> list[Any]:
    """Three beats that come back after all were down for so long."""
    run_for(beat(entries, ledger, clock), 1)
    clock.advance(seconds)
    back = [beat(entries, ledger, clock) for _ in range(3)]
    for one in back:
        run_for(one, 1)
    return back


OUTAGES = [
    # policy, hours of the outage, slots, line
    (
        {},
        2,
        ["03-30T03:30:00"],
        "slots 2026-03-30T01:40:00Z to 2026-03-30T03:20:00Z are left out: catchup is 'latest', and "
        "the latest one is 2026-03-30T03:30:00Z",
    ),
    (
        {"catchup": "none"},
        2.02,
        [],
        "slots 2026-03-30T01:40:00Z to 2026-03-30T03:30:00Z are left out: catchup is 'none'",
    ),
    ({"catchup": "all"}, 0.5, ["03-30T01:40:00", "03-30T01:50:00", "03-30T02:00:00"], None),
    (
        {"catchup": "all", "catchup_window": 900},
        2.02,
        ["03-30T03:20:00", "03-30T03:30:00"],
        "slots 2026-03-30T01:40:00Z to 2026-03-30T03:10:00Z are left out: catchup is 'all', and "
        "they are older than its window or than their deadline",
    ),
    (
        {"catchup_window": 60},
        2.02,
        [],
        "slots 2026-03-30T01:40:00Z to 2026-03-30T03:30:00Z are left out: catchup is 'latest', and "
        "none is within its window",
    ),
]


@pytest.mark.parametrize(("options", "hours", "found", "line"), OUTAGES, ids=str)
def test_after_an_outage_of_all_beats(
    ledger: ShakyLedger,
    clock: SettableClock,
    options: dict[str, Any],
    hours: float,
    found: list[str],
    line: str | None,
) -> None:
    back = after_outage(ledger, clock, hours * 3600, schedule(**options))
    assert emitted(*back) == found
    assert lines(ledger) == ([line] if line else [])


@pytest.mark.parametrize(
    ("options", "most"),
    [
        ({}, 61),
        ({"catchup": "none"}, 61),
        ({"catchup": "all", "catchup_window": YEAR, "start_deadline": 120}, 121),
        ({"catchup": "all", "catchup_window": YEAR, "options": {"expires": 120}}, 121),
        ({"catchup": "all", "catchup_window": 300}, 301),
    ],
    ids=str,
)
def test_a_year_at_a_second_is_one_line(
    ledger: ShakyLedger, clock: SettableClock, options: dict[str, Any], most: int
) -> None:
    (back, *_) = after_outage(ledger, clock, YEAR - DAY, schedule(1, **options))
    assert most - 10 <= len(emitted(back)) <= most
    assert len(rows(ledger)) <= most + 5
    (line,) = lines(ledger)
    assert line.startswith("slots 2026-03-30T01:30:02Z to 2027-03-30T")


def test_a_short_pause_of_all_beats_leaves_nothing_out(
    ledger: ShakyLedger, clock: SettableClock
) -> None:
    back = after_outage(ledger, clock, 50, schedule(1))
    assert len(emitted(*back)) == 53
    assert lines(ledger) == []


def test_a_suspended_machine_is_an_outage(ledger: ShakyLedger, clock: SettableClock) -> None:
    """If there is no other beat."""
    going = beat(schedule(), ledger, clock)
    run_for(going, 30)
    clock.advance(7200)
    run_for(going, 1)
    assert emitted(going) == ["03-30T03:30:00"]
    assert lines(ledger) == [
        "slots 2026-03-30T01:40:00Z to 2026-03-30T03:20:00Z are left out: catchup is 'latest', and "
        "the latest one is 2026-03-30T03:30:00Z"
    ]


def test_a_beat_that_was_suspended_beside_others_has_nothing_to_do(
    ledger: ShakyLedger, clock: SettableClock
) -> None:
    for policy in ("latest", "all", "none"):
        entries = schedule(catchup=policy)
        slept, going = (beat(entries, ledger, clock) for _ in range(2))
        run_for(slept, 1)
        run_for(going, 7200)
        assert len(emitted(going)) == 12
        run_for(slept, 1)
        assert emitted(slept) == []
    assert lines(ledger) == []


def test_what_was_emitted_just_before_an_outage_is_not_left_out(
    ledger: ShakyLedger, clock: SettableClock
) -> None:
    """Though beats report only now and then that they follow an entry."""
    run_for(beat(schedule(1), ledger, clock), 19)
    clock.advance(3600)
    run_for(beat(schedule(1), ledger, clock), 1)
    assert lines(ledger)[0].startswith("slots 2026-03-30T01:30:20Z to ")


def test_a_schedule_that_was_put_back_is_one_line(
    ledger: ShakyLedger, clock: SettableClock
) -> None:
    """A rolling deploy, in which both definitions live for a while, and one back."""
    old, new = schedule(60, catchup="all"), schedule(7200, catchup="all")
    first = beat(old, ledger, clock)
    run_for(first, 60)
    second = beat(new, ledger, clock)
    for _ in range(100):
        first.tick()
        second.tick()
        clock.advance(1)
    run_for(second, 600)
    assert emitted(first, second) == ["03-30T01:31:00", "03-30T01:32:00"]
    back = beat(old, ledger, clock)
    for _ in range(100):
        back.tick()
        second.tick()
        clock.advance(1)
    run_for(back, 10)
    assert emitted(back, second) == ["03-30T01:43:00", "03-30T01:44:00"]
    assert lines(ledger) == [
        "slots 2026-03-30T01:33:00Z to 2026-03-30T01:42:00Z are left out: it counts as new since "
        "then"
    ]


def test_a_beat_that_slept_through_a_change_of_the_schedule_makes_nothing_up(
    ledger: ShakyLedger, clock: SettableClock
) -> None:
    old, new = schedule(60, catchup="all"), schedule(7200, catchup="all")
    slept = beat(old, ledger, clock)
    run_for(slept, 61)
    assert emitted(slept) == ["03-30T01:31:00"]
    run_for(beat(new, ledger, clock), 900)
    run_for(slept, 60)
    assert emitted(slept) == ["03-30T01:47:00"]


def test_an_entry_that_is_put_back_is_caught_up_by_its_policy(
    ledger: ShakyLedger, clock: SettableClock
) -> None:
    going = beat(schedule(), ledger, clock)
    run_for(going, 1)
    entry = going.schedule.pop("e")
    run_for(going, 7200)
    assert emitted(going) == []
    going.schedule["e"] = entry
    run_for(going, 2)
    assert emitted(going) == ["03-30T03:30:00"]
    assert len(lines(ledger)) == 1


@pytest.mark.parametrize("starts", [True, False], ids=["started meanwhile", "before"])
def test_what_was_published_without_the_database_runs_once_and_is_not_called_missed(
    ledger: ShakyLedger, clock: SettableClock, starts: bool
) -> None:
    entries = schedule(60, catchup="all")
    going = beat(entries, ledger, clock)
    run_for(going, 1)
    ledger.away = True
    if starts:
        going = beat(entries, ledger, clock)
    run_for(going, 900)
    assert len(emitted(going)) == 15
    ledger.away = False
    run_for(going, 60)
    another = beat(entries, ledger, clock)
    run_for(another, 60)
    assert emitted(going, another) == ["03-30T01:46:00", "03-30T01:47:00"]
    assert lines(ledger) == []
    assert [row.key.slot for row in rows(ledger)] == [
        at("2026-03-30T01:30:00") + n * timedelta(seconds=60) for n in range(1, 18)
    ]


def test_lines_wait_for_the_database(ledger: ShakyLedger, clock: SettableClock) -> None:
    entries = {f"e{n}": schedule()["e"] for n in range(50)}
    run_for(beat(entries, ledger, clock), 1)
    clock.advance(7200)
    back = beat(entries, ledger, clock)
    back.tick()
    ledger.away = True
    run_for(back, 60)
    ledger.away = False
    run_for(back, 60)
    assert [len(lines(ledger, name)) for name in entries] == [1] * 50


def test_a_resumed_entry_is_not_called_missed_twice(
    ledger: ShakyLedger, clock: SettableClock
) -> None:
    """The pause is in the history already."""
    going = beat(schedule(), ledger, clock)
    run_for(going, 1)
    ledger.pause("unit", "e")
    run_for(going, 3600)
    ledger.resume("unit", "e")
    run_for(going, 60)
    assert lines(ledger) == []


# -- a message that cannot be made -----------------------------------------------------------------


def corrected(
    ledger: ShakyLedger, clock: SettableClock, seconds: float, entries: dict[str, Any]
) -> Any:
    """A beat whose messages could not be made for so long, and then could."""
    ledger.record_tasks("unit", ["note"])
    one = beat(entries, ledger, clock)
    one.refuses = True
    run_for(one, seconds)
    assert messages(one.app) == []
    one.refuses = False
    return one


#: With "latest" two, as the one before is not looked at in the moment in which another one comes.
@pytest.mark.parametrize(("policy", "made_up"), [("none", 1), ("latest", 2), ("all", 20)])
def test_a_message_that_is_corrected_late_is_made_up_as_the_policy_says(
    ledger: ShakyLedger, clock: SettableClock, policy: str, made_up: int
) -> None:
    going = corrected(ledger, clock, 20 * 600 + 30, schedule(catchup=policy))
    # The longest pause until a slot is tried again.
    run_for(going, 3600)
    found = {slot for name, slot in slots(messages(going.app)) if name == "e"}
    assert len(found) == made_up + 6
    states = Counter(row.state for row in rows(ledger) if row.entry == "e")
    assert states[RunState.SCHEDULED] == made_up + 6
    assert states[RunState.SKIPPED] == 20 - made_up


def test_the_latest_slot_is_made_up_within_its_window(
    ledger: ShakyLedger, clock: SettableClock
) -> None:
    run_for(beat(schedule(DAY), ledger, clock), 1)
    clock.moment = at("2026-03-30T23:59:59")
    going = corrected(ledger, clock, 8 * 3600, schedule(DAY))
    run_for(going, 3600)
    assert emitted_at_least_once(going) == {"03-31T00:00:00"}


def test_what_was_backfilled_is_not_given_up(ledger: ShakyLedger, clock: SettableClock) -> None:
    """Somebody wants it, though it was not the latest one when it was recorded."""
    going = beat(schedule(), ledger, clock)
    run_for(going, 1)
    key = RunKey.for_slot("unit", "e", at("2026-03-30T00:30:00"))
    new = NewSlot(key, "unit", "e", "note", claims=True)
    assert ledger.insert_slots([new], "backfill") == {key}
    ledger.record_tasks("unit", ["note"])
    going.refuses = True
    run_for(going, 1800)
    (row,) = (row for row in rows(ledger) if row.key == key)
    assert row.state is RunState.SCHEDULED
    going.refuses = False
    run_for(going, 3600)
    assert "03-30T00:30:00" in emitted_at_least_once(going)


def test_a_slot_older_than_its_window_is_given_up(
    ledger: ShakyLedger, clock: SettableClock, caplog: pytest.LogCaptureFixture
) -> None:
    run_for(beat(schedule(DAY), ledger, clock), 1)
    clock.moment = at("2026-03-30T23:59:59")
    going = corrected(ledger, clock, 8 * 3600, schedule(DAY, catchup_window=3600))
    run_for(going, 3600)
    assert emitted_at_least_once(going) == set()
    (row,) = (row for row in rows(ledger) if row.entry == "e")
    assert row.state is RunState.SKIPPED
    assert "its message cannot be published" in str(row.error)
    assert "is skipped: its message cannot be published" in caplog.text


def emitted_at_least_once(going: Any) -> set[str]:
    return {slot[5:-1] for name, slot in slots(messages(going.app)) if name == "e"}


# -- Celery's own setting --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("deadline", "own", "made_up"),
    [(None, {}, 1), (3600, {}, 1), (600, {}, 0), (600, {"catchup_window": 7200}, 1)],
)
def test_crontabs_heed_the_deadline_that_celery_has_for_them(
    ledger: ShakyLedger,
    clock: SettableClock,
    deadline: float | None,
    own: dict[str, Any],
    made_up: int,
) -> None:
    entries = {
        "e": {"task": "note", "schedule": crontab(minute=0), **own},
        "interval": {"task": "note", "schedule": 3600, **own},
    }
    settings = {"beat_cron_starting_deadline": deadline}
    run_for(beat(entries, ledger, clock, **settings), 1)
    clock.advance(3600)
    back = beat(entries, ledger, clock, **settings)  # At half past.
    run_for(back, 1)
    found = Counter(name for name, _ in slots(messages(back.app)))
    assert (found["e"], found["interval"]) == (made_up, 1)
