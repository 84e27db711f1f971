"""Recorded, published, reported: in this order, and what happens when one of them fails."""

from __future__ import annotations

from datetime import timedelta

import pytest

from celery_idem import RunState
from celery_idem.emitter import MANY
from celery_idem.publishing import Grace
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


def test_a_slot_is_recorded_then_published_then_reported(
    ledger: ShakyLedger, clock: SettableClock
) -> None:
    first = beat(EVERY, ledger, clock)
    run_for(first, 10)
    (row,) = rows(ledger)
    assert (row.state, row.emit_count, row.task_id) == (RunState.SCHEDULED, 1, row.key.task_id)
    (message,) = messages(first.app)
    assert message.headers["idem_run_key"] == row.key.text
    assert message.headers["id"] == row.key.task_id
    relevant = [call for call in ledger.calls if call in ("insert_slots", "published")]
    assert relevant == ["insert_slots", "published"]


def test_a_slot_that_another_beat_has_recorded_is_not_published(
    ledger: ShakyLedger, clock: SettableClock
) -> None:
    beats = [beat(EVERY, ledger, clock) for _ in range(3)]
    for _ in range(51):
        for one in beats:
            one.tick()
        clock.advance(1)
    found = [slot for one in beats for slot in slots(messages(one.app))]
    assert len(found) == len(set(found)) == 5


def test_many_slots_come_in_batches(ledger: ShakyLedger, clock: SettableClock) -> None:
    many = beat({f"e{n}": EVERY["e"] for n in range(2500)}, ledger, clock)
    run_for(many, 10)
    assert len(messages(many.app)) == 2500
    assert len(rows(ledger)) == 2500
    # Twenty at first; with a broker as fast as this, soon 500.
    assert ledger.calls.count("insert_slots") < 15


def test_a_batch_that_fails_is_sent_one_by_one(
    ledger: ShakyLedger, clock: SettableClock, caplog: pytest.LogCaptureFixture
) -> None:
    many = beat({f"e{n}": EVERY["e"] for n in range(100)}, ledger, clock)
    many.loses = True
    run_for(many, 10)
    assert many.gathered > 0
    found = slots(messages(many.app))
    assert len(set(found)) == 100
    assert {row.emit_count for row in rows(ledger)} == {1}
    assert {getattr(record, "action", "") for record in caplog.records} <= {"slot_emitted"}


def test_few_slots_are_sent_one_by_one(ledger: ShakyLedger, clock: SettableClock) -> None:
    few = beat({f"e{n}": EVERY["e"] for n in range(MANY - 1)}, ledger, clock)
    run_for(few, 10)
    assert few.gathered == 0


def test_a_plain_task_is_published_once(ledger: ShakyLedger, clock: SettableClock) -> None:
    ledger.record_tasks("unit", ["plain"])
    plain = beat({"p": {"task": "plain", "schedule": 600}}, ledger, clock)
    clock.moment += timedelta(seconds=600 - clock.moment.timestamp() % 600 - 1)
    plain.tick()
    run_for(plain, 500)
    assert len(messages(plain.app)) == 1
    assert [row.state for row in rows(ledger)] == [RunState.EMITTED]


# -- messages that cannot be published -----------------------------------------------------------


def test_a_message_that_cannot_be_made_is_told_of_and_tried_ever_later(
    ledger: ShakyLedger, clock: SettableClock, caplog: pytest.LogCaptureFixture
) -> None:
    ledger.record_tasks("unit", ["note"])
    broken = beat({"e": {"task": "note", "schedule": 86_400}}, ledger, clock)
    broken.refuses = True
    clock.moment += timedelta(seconds=86_400 - clock.moment.timestamp() % 86_400 - 1)
    broken.tick()
    run_for(broken, 3600)
    told = [r for r in caplog.records if getattr(r, "action", "") == "slot_not_emitted"]
    assert all("Entry e:" in r.getMessage() for r in told)
    assert len(told) == 6  # at once, then after 60, 180, 420, 900 and 1860 seconds
    broken.refuses = False
    run_for(broken, 3600)
    assert len(messages(broken.app)) == 1


def test_arguments_that_json_cannot_tell_stop_nobody_else(
    ledger: ShakyLedger, clock: SettableClock, caplog: pytest.LogCaptureFixture
) -> None:
    schedule = {
        "broken": {"task": "note", "schedule": 10, "args": (object(),)},
        "fine": {"task": "note", "schedule": 10},
    }
    mixed = beat(schedule, ledger, clock)
    run_for(mixed, 30)
    assert [entry for entry, _ in slots(messages(mixed.app))] == ["fine"] * 3
    told = [r.getMessage() for r in caplog.records if "could not be published" in r.getMessage()]
    assert len(told) == 3
    assert all("Entry broken" in line for line in told)
    assert "broker_lost" not in [getattr(r, "action", "") for r in caplog.records]


# -- deadlines -----------------------------------------------------------------------------------


def test_a_slot_whose_deadline_has_passed_is_skipped_at_once(
    ledger: ShakyLedger, clock: SettableClock
) -> None:
    late = beat({"e": {"task": "note", "schedule": 10, "options": {"expires": 3}}}, ledger, clock)
    late.tick()
    clock.advance(14)
    late.tick()
    (row,) = rows(ledger)
    assert (row.state, row.error) == (
        RunState.SKIPPED,
        "it was not started before its deadline",
    )
    assert messages(late.app) == []


def test_an_unclaimed_run_is_skipped_soon_after_its_deadline(
    ledger: ShakyLedger, clock: SettableClock
) -> None:
    prompt = beat(
        {"e": {"task": "note", "schedule": 600, "options": {"expires": 20}}}, ledger, clock
    )
    prompt.tick()
    clock.moment += timedelta(seconds=600 - clock.moment.timestamp() % 600)
    run_for(prompt, 10)
    assert [row.state for row in rows(ledger)] == [RunState.SCHEDULED]
    run_for(prompt, 13)
    assert [row.state for row in rows(ledger)] == [RunState.SKIPPED]


GRACES = [
    # publishes before, deadline in, delay, grace
    (0, None, 0.0, 60),
    (1, None, 0.0, 120),
    (5, None, 0.0, 1920),
    (6, None, 0.0, 3600),
    (10**9, None, 0.0, 3600),
    (0, 10, 0.0, 11),
    (0, 100, 0.0, 60),
    (0, -5, 0.0, 2),
    (0, None, 300.0, 360),
    (0, 30, 300.0, 31),
]


@pytest.mark.parametrize(("count", "deadline", "delay", "grace"), GRACES)
def test_grace(
    clock: SettableClock, count: int, deadline: int | None, delay: float, grace: float
) -> None:
    now = clock.now()
    until = None if deadline is None else now + timedelta(seconds=deadline)
    assert Grace().after(count, now, until, delay) == grace
