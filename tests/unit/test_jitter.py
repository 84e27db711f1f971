"""The starts of slots that are spread: by the same amount in all copies of a message."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest
from celery.beat import BeatLazyFunc

from celery_idem.keys import RunKey
from tests.contract.stores import SettableClock
from tests.unit.beats import ShakyLedger, at, beat, messages, rows, run_for, slots

HOURLY = {"task": "note", "schedule": 3600, "jitter": 600}
NAMES = [f"e{n}" for n in range(50)]


@pytest.fixture
def clock() -> SettableClock:
    return SettableClock(at("2026-03-30T01:59:50"))


@pytest.fixture
def ledger(clock: SettableClock) -> ShakyLedger:
    made = ShakyLedger(clock)
    made.record_tasks("unit", ["note"])
    return made


def etas(going: Any) -> dict[str, datetime | None]:
    """When each message asks to be started."""
    return {
        m.headers["idem_entry"]: m.headers["eta"] and datetime.fromisoformat(m.headers["eta"])
        for m in messages(going.app)
    }


def test_starts_are_spread_and_slots_are_not(ledger: ShakyLedger, clock: SettableClock) -> None:
    going = beat(dict.fromkeys(NAMES, HOURLY), ledger, clock)
    run_for(going, 10)
    slot = at("2026-03-30T02:00:00")
    assert {row.key.slot for row in rows(ledger)} == {slot}
    found = [eta or slot for eta in etas(going).values()]
    assert len(set(found)) > 45
    assert slot <= min(found) < slot + timedelta(seconds=120)
    assert slot + timedelta(seconds=480) < max(found) < slot + timedelta(seconds=600)


def test_all_beats_agree_on_the_start(clock: SettableClock) -> None:
    """Also those that are late, or publish without the ledger."""
    found = []
    start = clock.now()
    for late in (0.0, 0.4, 30.0):
        clock.moment = start
        ledger = ShakyLedger(clock)
        ledger.away = True
        going = beat({"e": HOURLY}, ledger, clock)
        going.tick()
        clock.advance(10 + late)
        going.tick()
        found.append(etas(going)["e"])
    assert found[0] is not None
    assert len(set(found)) == 1


@pytest.mark.parametrize("args", [(), (BeatLazyFunc(lambda: 1),)], ids=["from entry", "kept"])
def test_a_copy_is_started_at_the_same_instant(
    ledger: ShakyLedger, clock: SettableClock, args: Any
) -> None:
    going = beat({"e": {**HOURLY, "args": args}}, ledger, clock)
    run_for(going, 10)
    first = etas(going)["e"]
    assert first is not None
    # As if the beat had died before it could report the publish.
    (run,) = ledger.tables.runs.values()
    run.next_emit_at = clock.now()
    run_for(going, 1)
    assert etas(going) == {"e": first}
    # While it waits in a worker it is not published again.
    run_for(going, (first - clock.now()).total_seconds() + 55)
    assert messages(going.app) == []
    run_for(going, 130)
    assert etas(going) == {"e": None}


def test_a_start_that_is_near_is_now(ledger: ShakyLedger, clock: SettableClock) -> None:
    """Brokers with a native delay refuse a fraction of a second."""
    going = beat({name: {**HOURLY, "jitter": 0.9} for name in NAMES}, ledger, clock)
    run_for(going, 10)
    assert set(etas(going).values()) == {None}


def test_what_the_options_ask_for_is_moved(ledger: ShakyLedger, clock: SettableClock) -> None:
    eta = at("2026-03-30T03:00:00")
    going = beat(
        {
            "eta": {**HOURLY, "options": {"eta": eta}},
            "countdown": {**HOURLY, "options": {"countdown": 7200}},
        },
        ledger,
        clock,
    )
    run_for(going, 10)
    slot = at("2026-03-30T02:00:00")
    parts = {n: 600 * RunKey.for_slot("unit", n, slot).part() for n in ("eta", "countdown")}
    found = etas(going)
    assert found["eta"] == eta + timedelta(seconds=parts["eta"])
    # Celery counts from the publish, by the clock of the machine.
    assert found["countdown"] is not None


def test_without_jitter_there_is_no_eta(ledger: ShakyLedger, clock: SettableClock) -> None:
    going = beat({"e": {"task": "note", "schedule": 3600}}, ledger, clock)
    run_for(going, 10)
    assert etas(going) == {"e": None}


def test_the_setting_holds_for_all_entries(ledger: ShakyLedger, clock: SettableClock) -> None:
    going = beat({"e": {"task": "note", "schedule": 3600}}, ledger, clock, idem_jitter=600)
    run_for(going, 10)
    assert etas(going)["e"] is not None


def test_a_jitter_that_exceeds_the_start_deadline_is_told(
    ledger: ShakyLedger, clock: SettableClock, caplog: pytest.LogCaptureFixture
) -> None:
    going = beat({"bad": {**HOURLY, "start_deadline": 600}, "e": HOURLY}, ledger, clock)
    run_for(going, 10)
    assert [entry for entry, _ in slots(messages(going.app))] == ["e"]
    assert "jitter of entry 'bad' = 600.0 is not possible: it must be less than" in caplog.text


def test_the_part_of_a_run_is_spread_evenly() -> None:
    keys = [RunKey.for_slot("unit", f"e{n}", at("2026-03-30T02:00:00")) for n in range(1000)]
    parts = [key.part() for key in keys]
    assert all(0 <= part < 1 for part in parts)
    assert [80 < sum(n / 10 <= p < (n + 1) / 10 for p in parts) < 120 for n in range(10)] == [
        True
    ] * 10
    assert keys[0].part() == RunKey.for_slot("unit", "e0", at("2026-03-30T02:00:00")).part()
