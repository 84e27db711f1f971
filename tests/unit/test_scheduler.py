"""How a beat follows its schedule, whatever happens to that."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from celery.beat import BeatLazyFunc
from celery.schedules import crontab, schedule

from celery_idem.keys import Stamp
from celery_idem.ledger.memory import MemoryLedger
from tests.contract.stores import SettableClock
from tests.unit.beats import (
    ShakyLedger,
    UnitScheduler,
    make_app,
    make_beat,
    messages,
    rows,
    run_for,
    slots,
)

EVERY = {"e": {"task": "note", "schedule": 10}}


@pytest.fixture
def clock() -> SettableClock:
    return SettableClock()


BROKEN: dict[str, dict[str, Any]] = {
    "unknown argument": {"schedul": 10},
    "misspelt option": {"options": {"catch_up": "all"}},
    "zero": {"schedule": 0},
    "no task": {"task": None},
    "policy": {"catchup": "sometimes"},
    "": {},
    "NUL \0": {},
    "surrogate \ud800": {},
    "not a schedule": {"schedule": "every day"},
    "expires": {"options": {"expires": "soon"}},
    "far": {"options": {"expires": 1e300}},
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_entry_is_told_of_by_name_and_the_others_go_on(
    name: str, clock: SettableClock, caplog: pytest.LogCaptureFixture
) -> None:
    broken = {"task": "note", "schedule": 10, **BROKEN[name]}
    app = make_app({name: broken, **EVERY})
    going = make_beat(app, clock=clock)
    run_for(going, 30)
    assert [entry for entry, _ in slots(messages(app))] == ["e"] * 3
    told = [r for r in caplog.records if getattr(r, "action", "") == "entry_broken"]
    assert told
    assert all(r.args and r.args[0] == name for r in told)  # type: ignore[index]
    assert "round_failed" not in [getattr(r, "action", "") for r in caplog.records]


NAMES = ["x" * 300, "ä" * 200, "tab\tand\nline", "\u202eright to left", "emoji 🦊", "a@b:c", " "]


@pytest.mark.parametrize("name", NAMES)
def test_odd_names_are_names(name: str, clock: SettableClock) -> None:
    ledger = MemoryLedger(clock)
    app = make_app({name: EVERY["e"]})
    run_for(make_beat(app, ledger, clock), 20)
    found = messages(app)
    assert [entry for entry, _ in slots(found)] == [name, name]
    assert [Stamp.read(message.headers, "note") for message in found] == [
        Stamp(row.key, name) for row in rows(ledger)
    ]


class Grim(schedule):
    """A schedule that cannot be asked any more after a while."""

    broken = False

    def is_due(self, last_run_at: datetime) -> Any:
        if self.broken:
            raise ZeroDivisionError("grim")
        return super().is_due(last_run_at)


def test_a_schedule_that_raises_is_told_of_seldom(
    clock: SettableClock, caplog: pytest.LogCaptureFixture
) -> None:
    app = make_app({"grim": {"task": "note", "schedule": Grim(timedelta(seconds=10))}, **EVERY})
    going = make_beat(app, clock=clock)
    run_for(going, 5)
    going.schedule["grim"].schedule.broken = True
    run_for(going, 600)
    assert [entry for entry, _ in slots(messages(app))].count("e") == 60
    told = [r for r in caplog.records if getattr(r, "action", "") == "entry_broken"]
    assert 3 <= len(told) <= 8
    assert all("Entry grim" in r.getMessage() for r in told)


def test_entries_come_and_go_at_run_time(clock: SettableClock) -> None:
    app = make_app(EVERY)
    going = make_beat(app, clock=clock)
    run_for(going, 10)
    going.add(name="new", task="note", schedule=schedule(timedelta(seconds=10)))
    run_for(going, 10)
    del going.schedule["e"]
    run_for(going, 10)
    going.update_from_dict({"third": {"task": "note", "schedule": 10}})
    going.merge_inplace({"third": {"task": "note", "schedule": 5}})
    run_for(going, 10)
    # Of one moment, in any order.
    found = sorted(slots(messages(app)), key=lambda of: (of[1], of[0]))
    assert [entry for entry, _ in found[:5]] == ["e", "e", "new", "new", "third"]
    assert {entry for entry, _ in found[5:]} == {"third"}
    assert len(found) == len(set(found)) == 6


def test_new_arguments_are_in_the_next_message(clock: SettableClock) -> None:
    app = make_app(EVERY)
    going = make_beat(app, clock=clock)
    run_for(going, 10)
    going.update_from_dict({"e": {"task": "note", "schedule": 10, "args": ("new",)}})
    # Before the beat looks at the schedule again, which it does once in a second.
    clock.advance(10)
    going.tick()
    assert [message.payload[0] for message in messages(app)] == [[], ["new"]]


def test_an_entry_removed_in_the_same_moment_is_not_sent(clock: SettableClock) -> None:
    app = make_app(EVERY)
    going = make_beat(app, clock=clock)
    run_for(going, 9.9)
    clock.advance(0.1)
    going._timetable.follow(going.schedule)
    del going.schedule["e"]
    going.tick()
    assert messages(app) == []
    assert "e" not in going.schedule


def test_a_new_interval_counts_from_now(clock: SettableClock) -> None:
    app = make_app({"e": {"task": "note", "schedule": 3600}})
    going = make_beat(app, clock=clock)
    run_for(going, 5)
    going.update_from_dict({"e": {"task": "note", "schedule": 2}})
    # It is seen within a second.
    run_for(going, 5)
    assert [slot[-3:] for _, slot in slots(messages(app))] == ["08Z", "10Z"]


def test_a_ledger_that_has_forgotten_an_entry_stops_nobody(clock: SettableClock) -> None:
    class Forgetful(MemoryLedger):
        def activate(self, *args: Any) -> dict[tuple[str, str], datetime]:
            super().activate(*args)
            return {}

    app = make_app(EVERY)
    run_for(make_beat(app, Forgetful(clock), clock), 30)
    assert len(messages(app)) == 3


def test_entries_begin_together(clock: SettableClock) -> None:
    """However long it takes to look at all of them: a slot is due for each, or for none."""

    class Slow(SettableClock):
        def now(self) -> datetime:
            self.advance(0.4)
            return super().now()

    app = make_app({f"e{n}": {"task": "note", "schedule": 1} for n in range(10)})
    make_beat(app, clock=Slow(clock.moment)).tick()
    found = [slot for _, slot in slots(messages(app))]
    assert {found.count(slot) for slot in found} == {10}


def test_counters_are_those_of_celery(clock: SettableClock) -> None:
    app = make_app(EVERY)
    going = make_beat(app, clock=clock)
    before = going.schedule["e"]
    run_for(going, 30)
    after = going.schedule["e"]
    assert after is not before
    assert after.total_run_count == 3
    assert after.last_run_at >= before.last_run_at


def test_many_replacements_do_not_fill_the_memory(clock: SettableClock) -> None:
    app = make_app({})
    going = make_beat(app, clock=clock)
    for number in range(3000):
        going.update_from_dict({"e": {"task": "note", "schedule": 86_400 + number % 2}})
        going.tick()
        clock.advance(1)
    assert len(going._timetable._agenda) < 1500


def test_a_clock_that_was_an_hour_ahead_loses_no_slot(clock: SettableClock) -> None:
    app = make_app(EVERY)
    going = make_beat(app, clock=clock)
    run_for(going, 10)
    right = clock.now()
    clock.moment = right + timedelta(hours=1)
    going.tick()
    clock.moment = right + timedelta(seconds=1)
    run_for(going, 29)
    found = [slot for _, slot in slots(messages(app)) if slot.startswith("2026-03-30T01:30")]
    assert found == [f"2026-03-30T01:30:{second}Z" for second in (10, 20, 30, 40)]


def test_an_error_that_nobody_expects_does_not_end_a_beat(
    clock: SettableClock, caplog: pytest.LogCaptureFixture
) -> None:
    class Odd(UnitScheduler):
        def reserve(self, entry: Any) -> Any:
            raise MemoryError("nothing left")

    app = make_app(EVERY)
    going = make_beat(app, clock=clock, cls=Odd)
    run_for(going, 20)
    assert len(messages(app)) == 2
    going._timetable.follow = None
    assert going.tick() == 1.0
    assert "a round has failed" in caplog.text


def test_a_beat_that_was_told_to_end_ends(clock: SettableClock) -> None:
    """Though what it was doing then has swallowed the SystemExit of the signal's handler."""

    class Interrupted(UnitScheduler):
        def apply_async(self, *args: Any, **options: Any) -> Any:
            try:
                self.close()
                raise SystemExit
            finally:
                raise ValueError("I/O operation on closed file")

    app = make_app({f"e{n}": EVERY["e"] for n in range(5)})
    ledger = ShakyLedger(clock)
    ending = make_beat(app, ledger, clock, cls=Interrupted)
    with pytest.raises(SystemExit):
        run_for(ending, 20)
    # What it had recorded is left to the others.
    assert messages(app) == []
    assert [row.emit_count for row in rows(ledger)] == [0] * 5


@pytest.mark.parametrize("enable_utc", [True, False])
def test_local_time(clock: SettableClock, enable_utc: bool) -> None:
    entry = {"task": "note", "schedule": crontab(hour="6", minute="0")}
    app = make_app({"e": entry}, timezone="Europe/Berlin", enable_utc=enable_utc)
    clock.moment = datetime(2026, 3, 28, 4, 59, 30, tzinfo=timezone.utc)
    local = make_beat(app, clock=clock)
    run_for(local, 60)
    # A night later clocks are put forward.
    clock.advance(86_400 - 3600)
    run_for(local, 60)
    found = [slot for entry, slot in slots(messages(app)) if entry == "e"]
    assert found == ["2026-03-28T05:00:00Z", "2026-03-29T04:00:00Z"]


def test_a_name_that_no_other_beat_has_is_told_of(caplog: pytest.LogCaptureFixture) -> None:
    app = make_app()
    lazy = BeatLazyFunc(int)
    app.add_periodic_task(10, app.tasks["note"].s(lazy))
    app.add_periodic_task(10, app.tasks["note"].s(lazy), name="named")
    app.add_periodic_task(10, app.tasks["note"].s("meet at 0x10"))
    run_for(make_beat(app), 10)
    assert len(messages(app)) == 3
    told = [r for r in caplog.records if getattr(r, "action", "") == "name_not_shared"]
    assert len(told) == 1
    assert "give it a name" in told[0].getMessage()
