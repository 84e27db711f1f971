"""Slots that are too late to be started, as beats see it."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from celery_idem import RunState
from celery_idem.keys import Stamp
from celery_idem.ledger import Owner, Retry
from celery_idem.run import TOO_LATE, ClaimRequest
from tests.contract.stores import SettableClock
from tests.unit.beats import ShakyLedger, at, beat, messages, rows, run_for, slots

TEN_MINUTES = {"task": "note", "schedule": 600}


@pytest.fixture
def clock() -> SettableClock:
    return SettableClock()


@pytest.fixture
def ledger(clock: SettableClock) -> ShakyLedger:
    return ShakyLedger(clock)


def first_slot(ledger: ShakyLedger, clock: SettableClock, **entry: Any) -> Any:
    """A beat that has emitted the slot of 01:40:00 a moment ago."""
    ledger.record_tasks("unit", ["note"])
    going = beat({"e": {**TEN_MINUTES, **entry}}, ledger, clock)
    going.tick()
    clock.moment = at("2026-03-30T01:40:00")
    going.tick()
    return going


DEADLINES = [
    # start_deadline, expires, deadline in seconds after the slot, expires of the message
    (20, None, 20, None),
    (20, 60, 20, 60),
    (60, 20, 20, 20),
    (timedelta(seconds=20), None, 20, None),
]


@pytest.mark.parametrize(("start", "expires", "deadline", "header"), DEADLINES)
def test_the_earlier_one_of_both_is_the_deadline(
    ledger: ShakyLedger, clock: SettableClock, start: Any, expires: Any, deadline: int, header: Any
) -> None:
    going = first_slot(ledger, clock, start_deadline=start, options={"expires": expires})
    slot = at("2026-03-30T01:40:00")
    (row,) = rows(ledger)
    assert row.deadline == slot + timedelta(seconds=deadline)
    (message,) = messages(going.app)
    stamp = Stamp.read(message.headers, "note")
    assert stamp is not None
    seconds = start.total_seconds() if isinstance(start, timedelta) else start
    assert stamp.start_by == slot + timedelta(seconds=seconds)
    found = message.headers["expires"]
    assert (found and at(found.removesuffix("+00:00"))) == (
        header and slot + timedelta(seconds=header)
    )


def test_the_setting_holds_for_all_entries(ledger: ShakyLedger, clock: SettableClock) -> None:
    going = beat({"e": TEN_MINUTES}, ledger, clock, idem_start_deadline=30)
    run_for(going, 600)
    assert [row.deadline for row in rows(ledger)] == [at("2026-03-30T01:40:30")]


def test_a_plain_task_learns_of_it_by_expires(ledger: ShakyLedger, clock: SettableClock) -> None:
    first = first_slot(ledger, clock, task="plain", start_deadline=20, options={"expires": 60})
    (message,) = messages(first.app)
    assert message.headers["expires"] == "2026-03-30T01:40:20+00:00"


def test_a_slot_that_is_found_too_late_is_skipped_at_once(
    ledger: ShakyLedger, clock: SettableClock
) -> None:
    late = beat({"e": {**TEN_MINUTES, "start_deadline": 20}}, ledger, clock)
    late.tick()
    clock.moment = at("2026-03-30T01:40:21")
    late.tick()
    (row,) = rows(ledger)
    assert (row.state, row.error) == (RunState.SKIPPED, TOO_LATE)
    assert messages(late.app) == []


def test_a_slot_that_nobody_starts_is_skipped(ledger: ShakyLedger, clock: SettableClock) -> None:
    going = first_slot(ledger, clock, start_deadline=20)
    run_for(going, 19)
    assert [row.state for row in rows(ledger)] == [RunState.SCHEDULED]
    run_for(going, 4)
    assert [(row.state, row.error) for row in rows(ledger)] == [(RunState.SKIPPED, TOO_LATE)]


@pytest.mark.parametrize("expires", [None, 40], ids=["start_deadline", "expires"])
def test_a_retry_is_bound_by_expires_alone(
    ledger: ShakyLedger, clock: SettableClock, expires: Any
) -> None:
    """Its first attempt was started in time."""
    going = first_slot(ledger, clock, start_deadline=20, options={"expires": expires})
    (row,) = rows(ledger)
    ledger.register("lease", Owner("worker", "host", 1, "process"), 600)
    claim = ledger.claim(ClaimRequest(row.key, "note", "unit", "e", "id", 0, "lease", "claim"))
    until = None if expires is None else row.key.slot + timedelta(seconds=expires)
    ledger.retry(row.key, claim.fence, Retry(1, 5.0, None, deadline=until, grace=10.0))
    messages(going.app)
    run_for(going, 50)
    (row,) = rows(ledger)
    assert row.state is (RunState.SKIPPED if expires else RunState.RETRYING)
    assert [m.headers["retries"] for m in messages(going.app)] == [1]


@pytest.mark.parametrize("value", [0, "soon", -5])
def test_an_impossible_deadline_is_told(
    ledger: ShakyLedger, clock: SettableClock, caplog: pytest.LogCaptureFixture, value: Any
) -> None:
    going = beat({"bad": {**TEN_MINUTES, "start_deadline": value}, "e": TEN_MINUTES}, ledger, clock)
    run_for(going, 600)
    assert [entry for entry, _ in slots(messages(going.app))] == ["e"]
    assert f"start_deadline of entry 'bad' = {value!r} is not possible" in caplog.text


def test_a_changed_deadline_holds_for_the_next_slot(
    ledger: ShakyLedger, clock: SettableClock
) -> None:
    going = first_slot(ledger, clock, start_deadline=20)
    going.schedule["e"].start_deadline = 30
    run_for(going, 600)
    assert rows(ledger)[1].deadline == at("2026-03-30T01:50:30")
