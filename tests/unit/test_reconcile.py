"""Messages that nobody claims, and who publishes them again."""

from __future__ import annotations

from datetime import timedelta
from itertools import pairwise
from typing import Any

import pytest

from celery_idem import RunState
from celery_idem.due import Due
from celery_idem.ledger import LeaseCount, Owner
from tests.contract.stores import SettableClock
from tests.unit.beats import (
    ShakyBroker,
    ShakyLedger,
    beat,
    make_app,
    make_beat,
    messages,
    rows,
    run_for,
    slots,
)

EVERY = {"e": {"task": "note", "schedule": 10}}
PLAIN = {"p": {"task": "plain", "schedule": 10}}


@pytest.fixture
def clock() -> SettableClock:
    return SettableClock()


@pytest.fixture
def ledger(clock: SettableClock) -> ShakyLedger:
    return ShakyLedger(clock)


def lost(ledger: ShakyLedger, clock: SettableClock, seconds: float, known: bool = True) -> Any:
    """A beat of which the message of one slot was lost; how often it was published again, when."""
    if known:
        ledger.record_tasks("unit", ["note"])
    one = beat({"e": {"task": "note", "schedule": 86_400}}, ledger, clock)
    clock.moment += timedelta(seconds=86_400 - clock.moment.timestamp() % 86_400 - 1)
    one.tick()
    clock.advance(1)
    started = clock.now()
    moments = []
    while (clock.now() - started).total_seconds() <= seconds:
        one.tick()
        found = [entry for entry, _ in slots(messages(one.app)) if entry == "e"]
        moments += [(clock.now() - started).total_seconds()] * len(found)
        clock.advance(5)
    return one, moments


def test_a_message_that_nobody_claims_is_published_again_ever_later(
    ledger: ShakyLedger, clock: SettableClock
) -> None:
    _, moments = lost(ledger, clock, 20_000)
    pauses = [later - before for before, later in pairwise(moments)]
    assert pauses == [60, 120, 240, 480, 960, 1920, 3600, 3600, 3600, 3600]


def test_a_task_that_no_worker_has_recorded_is_published_once(
    ledger: ShakyLedger, clock: SettableClock
) -> None:
    _, moments = lost(ledger, clock, 300, known=False)
    assert moments == [0]
    assert [row.state for row in rows(ledger)] == [RunState.EMITTED]


def test_a_beat_that_dies_between_insert_and_publish_costs_a_second(
    ledger: ShakyLedger, clock: SettableClock
) -> None:
    class Dies(ShakyBroker):
        def publish(self, due: Due, **options: Any) -> Any:
            raise SystemExit

    app = make_app({"e": {"task": "note", "schedule": 600}})
    dying = make_beat(app, ledger, clock, cls=Dies)
    other = beat({"e": {"task": "note", "schedule": 600}}, ledger, clock)
    clock.moment += timedelta(seconds=600 - clock.moment.timestamp() % 600 - 1)
    for one in (dying, other):
        one.tick()
    clock.advance(1)
    with pytest.raises(SystemExit):
        dying.tick()
    other.tick()
    assert messages(other.app) == []
    clock.advance(1)
    other.tick()
    assert len(messages(other.app)) == 1
    run_for(other, 59)
    assert messages(other.app) == []


def test_a_backlog_of_unpublished_slots_is_worked_off_at_once(
    ledger: ShakyLedger, clock: SettableClock
) -> None:
    many = beat({f"e{n}": {"task": "note", "schedule": 600} for n in range(950)}, ledger, clock)
    many.tick()
    many.away = True
    clock.moment += timedelta(seconds=600 - clock.moment.timestamp() % 600)
    run_for(many, 5)
    many.away = False
    run_for(many, 5)
    assert len(messages(many.app)) == 950


def test_an_entry_that_cannot_be_used_any_more_does_not_stop_others(
    ledger: ShakyLedger, clock: SettableClock
) -> None:
    """Their messages were lost, and are published again."""
    ledger.record_tasks("unit", ["note"])
    both = {name: {"task": "note", "schedule": 86_400} for name in ("broken", "e")}
    one = beat(both, ledger, clock)
    clock.moment += timedelta(seconds=86_400 - clock.moment.timestamp() % 86_400 - 1)
    run_for(one, 2)
    messages(one.app)
    one.schedule["broken"].jitter = "a little"
    run_for(one, 300)
    found = [entry for entry, _ in slots(messages(one.app))]
    assert found.count("e") == 2


def test_the_slots_of_an_unknown_entry_wait_for_a_beat_that_knows_it(
    ledger: ShakyLedger, clock: SettableClock
) -> None:
    ledger.record_tasks("unit", ["note"])
    old = beat({"e": {"task": "note", "schedule": 600}}, ledger, clock)
    old.away = True
    old.tick()
    clock.moment += timedelta(seconds=600 - clock.moment.timestamp() % 600)
    old.tick()
    new = beat({}, ledger, clock)
    run_for(new, 3500)
    assert [row.state for row in rows(ledger)] == [RunState.SCHEDULED]
    run_for(new, 200)
    (row,) = rows(ledger)
    assert (row.state, row.error) == (RunState.SKIPPED, "no beat knows entry 'e' any more")


def test_an_entry_of_the_same_name_for_another_task_is_another_entry(
    ledger: ShakyLedger, clock: SettableClock
) -> None:
    ledger.record_tasks("unit", ["note", "other"])
    old = beat({"e": {"task": "note", "schedule": 86_400}}, ledger, clock)
    old.away = True
    old.tick()
    clock.moment += timedelta(seconds=86_400 - clock.moment.timestamp() % 86_400)
    old.tick()
    new = beat({"e": {"task": "other", "schedule": 86_400}}, ledger, clock)
    run_for(new, 60)
    assert messages(new.app) == []


# -- leases ---------------------------------------------------------------------------------------


def register(ledger: ShakyLedger, number: int, seconds: float) -> None:
    for n in range(number):
        ledger.register(f"lease {seconds} {n}", Owner("worker", "host", 1, "parent"), seconds)


@pytest.mark.parametrize("away", [False, True])
def test_leases_of_the_dead_are_buried(
    ledger: ShakyLedger, clock: SettableClock, away: bool
) -> None:
    """Whether the broker is there or not; those that hold stay."""
    going = beat({}, ledger, clock)
    going.away = away
    run_for(going, 1)
    register(ledger, 3, 60.0)
    register(ledger, 2, 600.0)
    run_for(going, 59)
    assert ledger.lease_counts()["worker"] == LeaseCount(5, 0)
    run_for(going, 11)
    assert ledger.lease_counts()["worker"] == LeaseCount(2, 0)


def test_a_beat_looks_for_leases_of_the_dead_every_ten_seconds(
    ledger: ShakyLedger, clock: SettableClock
) -> None:
    going = beat({}, ledger, clock)
    run_for(going, 1)
    ledger.calls.clear()
    run_for(going, 600)
    assert 55 <= ledger.calls.count("bury_expired") <= 60


def test_very_many_leases_of_the_dead_are_buried_in_a_row(
    ledger: ShakyLedger, clock: SettableClock
) -> None:
    register(ledger, 1600, 60.0)
    clock.advance(60)
    run_for(beat({}, ledger, clock), 4)
    assert "worker" not in ledger.lease_counts()


def test_leases_wait_for_a_ledger_that_is_away(ledger: ShakyLedger, clock: SettableClock) -> None:
    going = beat({}, ledger, clock)
    run_for(going, 1)
    register(ledger, 1, 10.0)
    ledger.away = True
    run_for(going, 60)
    ledger.away = False
    run_for(going, 12)
    assert "worker" not in ledger.lease_counts()
