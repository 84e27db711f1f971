"""A schedule that is changed, and changed back: which beats are told that it is new."""

from __future__ import annotations

from collections import Counter
from datetime import datetime, timedelta
from typing import Any

import pytest
from celery.schedules import BaseSchedule, schedstate

from celery_idem.ledger import REFRESH
from tests.contract.stores import SettableClock
from tests.unit.beats import ShakyLedger, beat, make_app, make_beat, messages, run_for, slots

OLD = {"e": {"task": "note", "schedule": 30, "catchup": "all"}}
NEW = {"e": {"task": "note", "schedule": 7200, "catchup": "all"}}


@pytest.fixture
def clock() -> SettableClock:
    return SettableClock()


@pytest.fixture
def ledger(clock: SettableClock) -> ShakyLedger:
    return ShakyLedger(clock)


def number(going: Any) -> int:
    return len(slots(messages(going.app)))


def together(seconds: int, *going: Any) -> None:
    """Beats tick by turns, each with a clock that goes as the others'."""
    for _ in range(seconds):
        for one in going:
            one.tick()
        going[0].clock.advance(1)


def test_a_change_back_fires_nothing_from_before(ledger: ShakyLedger, clock: SettableClock) -> None:
    run_for(beat(OLD, ledger, clock), 60)
    run_for(beat(NEW, ledger, clock), 600)
    back = beat(OLD, ledger, clock)
    run_for(back, 300)
    assert number(back) == 10


def test_a_change_back_within_one_beat_does_not_either(
    ledger: ShakyLedger, clock: SettableClock
) -> None:
    going = beat(OLD, ledger, clock)
    run_for(going, 60)
    going.update_from_dict(NEW)
    run_for(going, 600)
    messages(going.app)
    going.update_from_dict(OLD)
    run_for(going, 300)
    assert 9 <= number(going) <= 10


def test_a_rolling_deploy_silences_nobody(ledger: ShakyLedger, clock: SettableClock) -> None:
    """Beats of both versions, of which one is away for a moment: its version has gone on."""
    old, other, new = (beat(schedule, ledger, clock) for schedule in (OLD, OLD, NEW))
    together(100, old, new)
    together(100, old, other, new)
    since = {pair: found.active_since for pair, found in ledger.tables.entries.items()}
    together(400, other, new)
    late = beat(OLD, ledger, clock)
    together(100, late, other, new)
    assert {pair: its.active_since for pair, its in ledger.tables.entries.items()} == since
    assert sum(number(one) for one in (old, other, late)) == 700 // 30


def test_a_version_that_was_followed_to_the_end_is_caught_up(
    ledger: ShakyLedger, clock: SettableClock
) -> None:
    """All beats went down during a deploy; the one that starts again makes up what was missed."""
    old, new = beat(OLD, ledger, clock), beat(NEW, ledger, clock)
    together(301, old, new)
    clock.advance(3599)
    back = beat(OLD, ledger, clock)
    back.tick()
    assert number(back) == 3600 // 30


@pytest.mark.parametrize("changed", ["a", "b"])
@pytest.mark.parametrize("mapping", [None, dict])
def test_a_schedule_may_be_changed_in_place(
    ledger: ShakyLedger, clock: SettableClock, changed: str, mapping: type | None
) -> None:
    """Within a minute it holds; the one that was like it is left alone."""
    alike = {name: {"task": "note", "schedule": 10} for name in "ab"}
    going = make_beat(make_app(alike), ledger, clock, schedule=mapping and mapping())
    run_for(going, 30)
    going.schedule[changed].schedule.run_every = timedelta(hours=1)
    run_for(going, 60)
    messages(going.app)
    run_for(going, 3600)
    found = Counter(entry for entry, _ in slots(messages(going.app)))
    other = "ab".replace(changed, "")
    assert found == {changed: 1, other: 360}


class Counting(BaseSchedule):
    """Keeps what it was asked, as one does that caches answers."""

    def __init__(self, clock: SettableClock, every: float) -> None:
        super().__init__(nowfun=clock.now)
        self.every = every
        self.asked = 0

    def is_due(self, last_run_at: datetime) -> Any:
        self.asked += 1
        left = self.every - (self.now() - last_run_at).total_seconds()
        return schedstate(is_due=left <= 0, next=max(left, 0) or self.every)


def test_a_schedule_of_somebodys_own_may_change_when_it_is_asked(
    ledger: ShakyLedger, clock: SettableClock
) -> None:
    going = beat({"e": {"task": "note", "schedule": Counting(clock, 120)}}, ledger, clock)
    run_for(going, 1300)
    assert number(going) == 10
    assert ledger.calls.count("activate") == 1


def test_a_schedule_that_cannot_be_looked_at_any_more_is_left_out(
    ledger: ShakyLedger, clock: SettableClock, caplog: pytest.LogCaptureFixture
) -> None:
    going = beat({name: {"task": "note", "schedule": 10} for name in "ab"}, ledger, clock)
    run_for(going, 30)
    messages(going.app)
    going.schedule["a"].schedule.run_every = "often"
    run_for(going, 60)
    found = Counter(entry for entry, _ in slots(messages(going.app)))
    assert found["b"] == 6
    assert "Entry a is left out" in caplog.text


def test_entries_are_reported_now_and_then(ledger: ShakyLedger, clock: SettableClock) -> None:
    going = beat({"e": {"task": "note", "schedule": 86_400}}, ledger, clock)
    run_for(going, 1)
    ledger.calls.clear()
    for _ in range(600):
        run_for(going, 1)
        entries = [e for (name, _), e in ledger.tables.entries.items() if name == "unit:e"]
        assert clock.now() - entries[0].last_seen_at <= timedelta(seconds=REFRESH * 1.5)
    assert ledger.calls.count("mark_seen") == 600 / REFRESH


def test_the_ledger_is_asked_about_a_schedule_before_that_is_reported(
    ledger: ShakyLedger, clock: SettableClock
) -> None:
    """Or it would seem to have been followed all the time."""
    run_for(beat(OLD, ledger, clock), 60)
    run_for(beat(NEW, ledger, clock), 600)
    ledger.away = True
    back = beat(OLD, ledger, clock)
    run_for(back, 100)
    messages(back.app)
    ledger.away = False
    run_for(back, 300)
    found = slots(messages(back.app))
    assert len(found) == len(set(found)) == 10
