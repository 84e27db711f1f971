"""Beats whose clock is not the database's."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import pytest

from celery_idem.agreement import EVERY
from celery_idem.errors import LedgerUnavailable
from tests.contract.stores import SettableClock
from tests.unit.beats import ShakyLedger, beat, messages, run_for, slots

SCHEDULE = {"e": {"task": "note", "schedule": 10, "catchup": "all"}}


@dataclass
class Off(SettableClock):
    """A wall clock that is off by so many seconds; elapsed time is right."""

    ahead: float = 0.0

    def now(self) -> datetime:
        return self.moment + timedelta(seconds=self.ahead)


@pytest.fixture
def clock() -> Off:
    return Off()


class Right:
    """The database's clock."""

    def __init__(self, clock: Off) -> None:
        self._clock = clock

    def now(self) -> datetime:
        return self._clock.moment

    def elapsed(self) -> float:
        return self._clock.elapsed()


@pytest.fixture
def ledger(clock: Off) -> ShakyLedger:
    return ShakyLedger(Right(clock))


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was said of the clock."""
    actions = [getattr(record, "action", "") for record in caplog.records]
    return [action for action in actions if action.startswith("clock_")]


def number(going: Any) -> int:
    found = slots(messages(going.app))
    assert len(found) == len(set(found))
    return len(found)


@pytest.mark.parametrize(
    ("ahead", "said", "emitted"),
    [
        (0.0, [], 6),
        (4.0, [], 6),
        (-4.0, [], 6),
        (20.0, ["clock_off"], 8),  # With those since the entry is known to the ledger.
        (-20.0, ["clock_off"], 6),
        (31.0, ["clock_refused"], 0),
        (-31.0, ["clock_refused"], 0),
        (600.0, ["clock_refused"], 0),
    ],
)
def test_a_clock_that_is_off_from_the_start(
    ledger: ShakyLedger,
    clock: Off,
    caplog: pytest.LogCaptureFixture,
    ahead: float,
    said: list[str],
    emitted: int,
) -> None:
    clock.ahead = ahead
    going = beat(SCHEDULE, ledger, clock)
    run_for(going, 60)
    assert number(going) == emitted
    assert told(caplog) == said


@pytest.mark.parametrize("ahead", [600.0, -600.0])
def test_a_clock_that_is_put_right_emits_again(
    ledger: ShakyLedger, clock: Off, caplog: pytest.LogCaptureFixture, ahead: float
) -> None:
    going = beat(SCHEDULE, ledger, clock)
    run_for(going, 20)
    assert number(going) == 2
    clock.ahead = ahead
    run_for(going, 20)
    assert number(going) == 0
    clock.ahead = 0.0
    run_for(going, 20)
    # Those of the last minute are due in any case, and made up.
    assert number(going) == 4
    assert told(caplog) == ["clock_refused", "clock_agrees"]


def test_a_step_is_noticed_before_anything_is_emitted(ledger: ShakyLedger, clock: Off) -> None:
    going = beat(SCHEDULE, ledger, clock)
    run_for(going, 5)
    clock.ahead = 3600.0
    going.tick()
    assert number(going) == 0


def test_a_clock_that_drifts_is_noticed_within_a_minute(
    ledger: ShakyLedger, clock: Off, caplog: pytest.LogCaptureFixture
) -> None:
    going = beat(SCHEDULE, ledger, clock)
    run_for(going, 1)
    for _ in range(40):
        clock.ahead += 0.9
        going.tick()
        clock.advance(0.9)
    run_for(going, EVERY)
    assert told(caplog)[-1] == "clock_refused"


def test_without_a_database_nothing_is_known(ledger: ShakyLedger, clock: Off) -> None:
    """And slots are published, as without this comparison."""
    clock.ahead = 600.0
    ledger.away = True
    going = beat(SCHEDULE, ledger, clock)
    run_for(going, 60)
    assert number(going) == 6


def test_what_is_known_stays_known_while_the_database_is_away(
    ledger: ShakyLedger, clock: Off
) -> None:
    clock.ahead = 600.0
    going = beat(SCHEDULE, ledger, clock)
    run_for(going, 5)
    ledger.away = True
    run_for(going, 60)
    assert number(going) == 0
    # That it was put right is noticed all the same.
    clock.ahead = 0.0
    run_for(going, 60)
    assert number(going) > 0


def test_clocks_that_agree_are_compared_once_a_minute(ledger: ShakyLedger, clock: Off) -> None:
    going = beat(SCHEDULE, ledger, clock)
    run_for(going, 1)
    ledger.calls.clear()
    run_for(going, 600)
    assert 9 <= ledger.calls.count("now") <= 10


def test_a_slow_answer_is_no_disagreement(
    ledger: ShakyLedger, clock: Off, caplog: pytest.LogCaptureFixture
) -> None:
    read = ledger.now

    def slow() -> datetime:
        clock.advance(9)
        moment = read()
        clock.advance(0.5)
        return moment

    ledger.now = slow  # type: ignore[method-assign]
    going = beat(SCHEDULE, ledger, clock)
    for _ in range(3):
        run_for(going, 60)
    assert told(caplog) == []


@pytest.mark.parametrize("ahead", [-600.0, 600.0])
def test_a_first_start_with_a_wrong_clock_fires_nothing_from_before(
    ledger: ShakyLedger, clock: Off, ahead: float
) -> None:
    clock.ahead = ahead
    going = beat(SCHEDULE, ledger, clock)
    run_for(going, 5)
    clock.ahead = 0.0
    run_for(going, 10)
    assert number(going) == 1


def test_the_wait_for_a_database_that_is_away_costs_no_slot(
    ledger: ShakyLedger, clock: Off
) -> None:
    def away() -> datetime:
        clock.advance(8)
        raise LedgerUnavailable("the database is away")

    ledger.now = away  # type: ignore[method-assign]
    ledger.away = True
    clock.advance(3)
    going = beat(SCHEDULE, ledger, clock)
    run_for(going, 10)
    assert number(going) == 1
