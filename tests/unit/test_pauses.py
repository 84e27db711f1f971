"""Entries that are paused: what beats emit of them, and what workers pause."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from celery import Celery
from celery.schedules import BaseSchedule, schedstate

from celery_idem.keys import Stamp
from tests.contract.stores import SettableClock
from tests.unit.beats import ShakyLedger, at, beat, messages, rows, run_for, slots

EVERY = {"e": {"task": "note", "schedule": 10, "catchup": "all"}}


@pytest.fixture
def clock() -> SettableClock:
    return SettableClock()


@pytest.fixture
def ledger(clock: SettableClock) -> ShakyLedger:
    return ShakyLedger(clock)


def seconds(going: Any) -> list[int]:
    """The slots that were emitted, in seconds after the start of a test."""
    found = [slot for _, slot in slots(messages(going.app))]
    start = at("2026-03-30T01:30:00")
    return [round((at(slot.rstrip("Z")) - start).total_seconds()) for slot in found]


def test_a_paused_entry_is_not_emitted_and_the_others_are(
    ledger: ShakyLedger, clock: SettableClock
) -> None:
    going = beat({**EVERY, "other": EVERY["e"]}, ledger, clock)
    run_for(going, 10)
    ledger.pause("unit", "e")
    run_for(going, 300)
    found = [entry for entry, _ in slots(messages(going.app))]
    assert (found.count("e"), found.count("other")) == (1, 31)


def test_a_pause_is_seen_within_a_second(ledger: ShakyLedger, clock: SettableClock) -> None:
    going = beat({"e": {"task": "note", "schedule": 0.1}}, ledger, clock)
    run_for(going, 5.05)
    ledger.pause("unit", "e")
    run_for(going, 5)
    assert 50 <= len(messages(going.app)) <= 60


def test_a_resumed_entry_counts_as_new(ledger: ShakyLedger, clock: SettableClock) -> None:
    going = beat(EVERY, ledger, clock)
    run_for(going, 10)
    ledger.pause("unit", "e")
    run_for(going, 300)
    ledger.resume("unit", "e")
    run_for(going, 30)
    assert seconds(going) == [10, 320, 330, 340]


def test_a_slot_that_is_due_when_the_entry_is_resumed_is_emitted_in_time(
    ledger: ShakyLedger, clock: SettableClock
) -> None:
    """Before this beat has heard of it."""
    going = beat(EVERY, ledger, clock)
    run_for(going, 1.5)
    ledger.pause("unit", "e")
    run_for(going, 18)
    clock.advance(0.3)
    ledger.resume("unit", "e")  # At 19.8, between two looks.
    run_for(going, 1.5)
    assert seconds(going) == [20]


@pytest.mark.parametrize("hears", [True, False], ids=["restarted", "stood still"])
def test_a_beat_that_saw_nothing_of_a_pause_makes_nothing_up_from_it(
    ledger: ShakyLedger, clock: SettableClock, hears: bool
) -> None:
    going = beat(EVERY, ledger, clock)
    run_for(going, 10)
    assert seconds(going) == [10]
    ledger.pause("unit", "e")
    clock.advance(1000)
    ledger.resume("unit", "e")
    clock.advance(20)
    if hears:
        going = beat(EVERY, ledger, clock)
    run_for(going, 10)
    assert seconds(going) == [1020, 1030, 1040]


def test_a_beat_that_starts_during_a_pause_waits_for_its_end(
    ledger: ShakyLedger, clock: SettableClock
) -> None:
    run_for(beat(EVERY, ledger, clock), 1)
    ledger.pause("unit", "e")
    clock.advance(600)
    going = beat(EVERY, ledger, clock)
    run_for(going, 60)
    ledger.resume("unit", "e")
    run_for(going, 9)
    assert seconds(going) == [670]


def test_what_the_ledger_said_last_holds_while_it_is_away(
    ledger: ShakyLedger, clock: SettableClock
) -> None:
    going = beat(EVERY, ledger, clock)
    ledger.pause("unit", "e")
    run_for(going, 5)
    ledger.away = True
    run_for(going, 300)
    assert seconds(going) == []
    ledger.away = False
    run_for(going, 60)
    ledger.resume("unit", "e")
    run_for(going, 10)
    assert seconds(going) == [370]


class Pause(BaseSchedule):
    """Due so many seconds after the last slot."""

    def is_due(self, last_run_at: Any) -> schedstate:
        left = 10 - (self.now() - last_run_at).total_seconds()
        return schedstate(left <= 0, max(0.1, left))


def test_a_custom_schedule_is_paused_too(ledger: ShakyLedger, clock: SettableClock) -> None:
    entry = {"task": "note", "schedule": Pause(nowfun=clock.now)}
    going = beat({"e": entry}, ledger, clock)
    run_for(going, 25)
    before = len(seconds(going))
    assert before == 2
    ledger.pause("unit", "e")
    run_for(going, 300)
    assert seconds(going) == []
    ledger.resume("unit", "e")
    resumed = clock.now()
    run_for(going, 25)
    assert len(seconds(going)) == 2
    assert all(row.key.slot - resumed > timedelta(seconds=9) for row in rows(ledger)[before:])


# -- what a failed run does ----------------------------------------------------------------------


def headers(app: Celery) -> dict[str, Any]:
    (message,) = messages(app)
    return dict(message.headers)


@pytest.mark.parametrize("key", [None, "geheim"])
def test_a_message_tells_that_a_failure_pauses(
    ledger: ShakyLedger, clock: SettableClock, key: str | None
) -> None:
    entry = {"task": "note", "schedule": 10, "pause_on_failure": True}
    going = beat({"e": entry}, ledger, clock, idem_signing_key=key)
    run_for(going, 10)
    stamp = Stamp.read(headers(going.app), "note", key)
    assert stamp is not None
    assert stamp.pause_on_failure


def test_the_setting_holds_for_all_entries(ledger: ShakyLedger, clock: SettableClock) -> None:
    never = {"task": "note", "schedule": 10, "pause_on_failure": False}
    going = beat({**EVERY, "never": never}, ledger, clock, idem_pause_on_failure=True)
    run_for(going, 10)
    told = {m.headers["idem_entry"]: m.headers for m in messages(going.app)}
    assert told["e"]["idem_pause_on_failure"] is True
    assert "idem_pause_on_failure" not in told["never"]
