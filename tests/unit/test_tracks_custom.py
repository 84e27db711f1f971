"""Schedules whose slots beats have to agree on."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest
from celery import Celery
from celery.schedules import BaseSchedule, schedstate

from celery_idem.ledger.memory import MemoryLedger
from celery_idem.tracks import Track
from tests.contract.stores import SettableClock
from tests.unit.test_tracks import NOW, track


@pytest.fixture
def app() -> Celery:
    return Celery("tracks", set_as_current=False)


class Every(BaseSchedule):
    """Due so many seconds after it ran last."""

    def __init__(self, seconds: float, answer: Any = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.seconds = seconds
        self.answer = answer

    def is_due(self, last_run_at: datetime) -> schedstate:
        left = self.seconds - (self.clock.now() - last_run_at).total_seconds()
        return schedstate(left <= 0, max(left, 0.0) if self.answer is None else self.answer)

    clock: SettableClock


@pytest.fixture
def clock() -> SettableClock:
    made = SettableClock(NOW)
    Every.clock = made
    return made


def custom(app: Celery, ledger: MemoryLedger, clock: SettableClock, **options: Any) -> Track:
    answer = options.pop("answer", None)
    made = track(app, Every(600, answer, app=app), clock, **options)
    since = ledger.activate("tracks", [("e", made.fingerprint)])
    made.activate(since["e", made.fingerprint], clock.now())
    return made


def test_a_custom_schedule_waits_for_the_ledger(app: Celery, clock: SettableClock) -> None:
    made = track(app, Every(600, app=app), clock)
    assert made.asks_ledger
    clock.advance(700)
    assert made.advance(clock.now(), MemoryLedger(clock)) == []
    assert made.wake == clock.now() + timedelta(seconds=5)


def test_beats_agree_on_the_slot_of_a_custom_schedule(app: Celery, clock: SettableClock) -> None:
    ledger = MemoryLedger(clock)
    first, second = (custom(app, ledger, clock) for _ in range(2))
    assert first.advance(clock.now(), ledger) == second.advance(clock.now(), ledger) == []
    clock.advance(600)
    found = first.advance(clock.now(), ledger)
    assert found == [NOW + timedelta(seconds=600)]
    clock.advance(0.4)
    # Late, and with another clock: the slot is the one that the first has found.
    assert second.advance(clock.now() + timedelta(seconds=0.3), ledger) == found
    assert first.advance(clock.now(), ledger) == second.advance(clock.now(), ledger) == []


def test_the_slot_of_a_beat_that_died_is_not_lost(app: Celery, clock: SettableClock) -> None:
    ledger = MemoryLedger(clock)
    dead = custom(app, ledger, clock)
    clock.advance(600)
    found = dead.advance(clock.now(), ledger)
    clock.advance(30)
    heir = custom(app, ledger, clock)
    assert heir.advance(clock.now(), ledger) == found


def test_a_custom_slot_that_was_missed_is_dropped_if_so_wished(
    app: Celery, clock: SettableClock
) -> None:
    ledger = MemoryLedger(clock)
    custom(app, ledger, clock)
    clock.advance(600)
    custom(app, ledger, clock).advance(clock.now(), ledger)
    clock.advance(61)
    heir = custom(app, ledger, clock, catchup="none")
    assert heir.advance(clock.now(), ledger) == []


@pytest.mark.parametrize(
    ("answer", "pause"),
    [(3.5, 3.5), (0.0, 0.05), (-7, 0.05), (1e9, 5), (float("nan"), 5), ("soon", 5), (True, 5)],
)
def test_a_custom_schedule_is_asked_again_in_time(
    app: Celery, clock: SettableClock, answer: Any, pause: float
) -> None:
    ledger = MemoryLedger(clock)
    made = custom(app, ledger, clock, answer=answer)
    made.advance(clock.now(), ledger)
    assert made.wake == clock.now() + timedelta(seconds=pause)
