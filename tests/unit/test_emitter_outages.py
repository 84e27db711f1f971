"""A beat without its ledger, without its broker, without either."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from celery_idem import RunState
from tests.contract.stores import SettableClock
from tests.unit.beats import (
    ShakyLedger,
    beat,
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


def test_without_the_ledger_every_slot_since_the_start_is_published(
    ledger: ShakyLedger, clock: SettableClock
) -> None:
    ledger.away = True
    lonely = beat(EVERY, ledger, clock)
    run_for(lonely, 300)
    assert [slot for _, slot in slots(messages(lonely.app))] == [
        row_slot(clock, seconds) for seconds in range(-290, 10, 10)
    ]
    assert rows(ledger) == []


def row_slot(clock: SettableClock, seconds: int) -> str:
    return (clock.now() + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")


def test_what_was_published_without_the_ledger_is_recorded_later_and_not_published_again(
    ledger: ShakyLedger, clock: SettableClock
) -> None:
    lonely = beat({**EVERY, **PLAIN}, ledger, clock)
    run_for(lonely, 5)
    ledger.away = True
    run_for(lonely, 40)
    assert len(rows(ledger)) == 0
    ledger.away = False
    run_for(lonely, 30)
    recorded = [row for row in rows(ledger) if row.entry == "e"]
    assert len(recorded) == 7
    assert {row.emit_count for row in recorded} == {1}
    assert {row.state for row in rows(ledger) if row.entry == "p"} == {RunState.EMITTED}
    assert len(messages(lonely.app)) == 14
    # And looked after like any other.
    ledger.record_tasks("unit", ["note"])
    run_for(lonely, 61)
    again = slots(messages(lonely.app))
    assert ("e", "2026-03-30T01:30:10Z") in again
    assert ("p", "2026-03-30T01:30:10Z") not in again


def test_a_ledger_that_is_away_is_left_alone_for_a_while(
    ledger: ShakyLedger, clock: SettableClock
) -> None:
    busy = beat({"e": {"task": "note", "schedule": 0.01}}, ledger, clock)
    ledger.away = True
    run_for(busy, 10)
    assert len(messages(busy.app)) == 1000
    assert len(ledger.calls) < 20


def test_the_ledger_is_lost_and_found_in_two_lines(
    ledger: ShakyLedger, clock: SettableClock, caplog: pytest.LogCaptureFixture
) -> None:
    lonely = beat(EVERY, ledger, clock)
    for _ in range(2):
        ledger.away = True
        run_for(lonely, 60)
        ledger.away = False
        run_for(lonely, 60)
    actions = [getattr(record, "action", "") for record in caplog.records]
    noteworthy = [action for action in actions if action != "slot_emitted"]
    assert noteworthy == ["ledger_lost", "ledger_found"] * 2


def test_a_ledger_that_can_only_be_read_is_not_found(
    ledger: ShakyLedger, clock: SettableClock, caplog: pytest.LogCaptureFixture
) -> None:
    lonely = beat(EVERY, ledger, clock)
    run_for(lonely, 1)
    insert, mark = ledger.insert_slots, ledger.mark_seen

    def refuse(*args: Any) -> Any:
        ledger.away = True
        try:
            return insert(*args)
        finally:
            ledger.away = False

    for verb in ("insert_slots", "mark_seen"):
        setattr(ledger, verb, refuse)
    run_for(lonely, 60)
    actions = [getattr(record, "action", "") for record in caplog.records]
    assert "ledger_found" not in actions
    for verb, works in (("insert_slots", insert), ("mark_seen", mark)):
        setattr(ledger, verb, works)
    run_for(lonely, 60)
    assert [getattr(record, "action", "") for record in caplog.records].count("ledger_found") == 1


def test_a_lost_answer_of_the_insert_costs_a_copy_and_no_slot(
    ledger: ShakyLedger, clock: SettableClock
) -> None:
    unlucky = beat(EVERY, ledger, clock)
    run_for(unlucky, 9)
    ledger.mute = True
    run_for(unlucky, 1)
    ledger.mute = False
    run_for(unlucky, 3)
    found = slots(messages(unlucky.app))
    assert 1 <= len(found) <= 2
    assert len(set(found)) == 1


def test_without_the_broker_slots_are_recorded_and_made_up(
    ledger: ShakyLedger, clock: SettableClock
) -> None:
    patient = beat({**EVERY, **PLAIN}, ledger, clock)
    run_for(patient, 5)
    patient.away = True
    run_for(patient, 600)
    assert len(rows(ledger)) == 2 * 60
    assert messages(patient.app) == []
    patient.away = False
    run_for(patient, 4)
    found = slots(messages(patient.app))
    assert len(found) == len(set(found)) == 2 * 60


def test_a_broker_that_is_away_is_left_alone_and_told_of_once(
    ledger: ShakyLedger, clock: SettableClock, caplog: pytest.LogCaptureFixture
) -> None:
    patient = beat({"e": {"task": "note", "schedule": 0.1}}, ledger, clock)
    patient.away = True
    run_for(patient, 60)
    patient.away = False
    run_for(patient, 4)
    actions = [getattr(record, "action", "") for record in caplog.records]
    assert [action for action in actions if action != "slot_emitted"][:2] == [
        "broker_lost",
        "broker_found",
    ]
    assert len(messages(patient.app)) == 640


def test_without_ledger_and_broker_slots_are_remembered(
    ledger: ShakyLedger, clock: SettableClock
) -> None:
    poor = beat({**EVERY, **PLAIN}, ledger, clock)
    run_for(poor, 5)
    ledger.away = poor.away = True
    run_for(poor, 120)
    poor.away = False
    run_for(poor, 4)
    found = slots(messages(poor.app))
    assert len(found) == len(set(found)) == 2 * 12
    ledger.away = False
    run_for(poor, 4)
    assert {slot for _, slot in slots(messages(poor.app))} == {row_slot(clock, -3)}
    assert len(rows(ledger)) == 2 * 13


def test_what_the_ledger_has_again_is_left_to_it(ledger: ShakyLedger, clock: SettableClock) -> None:
    poor, other = (beat({**EVERY, **PLAIN}, ledger, clock) for _ in range(2))
    for one in (poor, other):
        one.tick()
    clock.advance(9)
    ledger.away = poor.away = True
    run_for(poor, 1)
    ledger.away = False
    clock.advance(1)
    other.tick()
    assert len(messages(other.app)) == 2
    run_for(poor, 10)
    poor.away = False
    run_for(poor, 3)
    # Only what the other one did not do meanwhile.
    assert {slot for _, slot in slots(messages(poor.app))} == {row_slot(clock, -4)}


def test_a_broken_message_is_told_of_though_the_broker_was_away(
    ledger: ShakyLedger, clock: SettableClock, caplog: pytest.LogCaptureFixture
) -> None:
    only = beat({"broken": {**EVERY["e"], "args": (object(),)}}, ledger, clock)
    run_for(only, 5)
    only.away = True
    run_for(only, 10)
    only.away = False
    run_for(only, 20)
    told = [r.args for r in caplog.records if getattr(r, "action", "") == "slot_not_emitted"]
    # Each of its slots once: one that was recorded while the broker was away, two since.
    assert len({str(args) for args in told}) == len(told) == 3
