"""A ledger that does not answer keeps nobody waiting."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from celery_idem.errors import LedgerError, LedgerUnavailable
from celery_idem.ledger.memory import MemoryLedger
from celery_idem.outage import LONGEST, Outage, is_ledger_error, prompt
from celery_idem.run import RunState
from tests.contract.stores import SettableClock


class Frozen(MemoryLedger):
    """A ledger whose answers come when the test says so."""

    def __init__(self) -> None:
        super().__init__(SettableClock())
        self.thawed = threading.Event()
        self.asked: list[str] = []

    def known_tasks(self, namespace: str) -> set[str]:
        self.asked.append(namespace)
        assert self.thawed.wait(60)
        return {namespace}


def test_answers_and_errors_come_through() -> None:
    ledger = Frozen()
    ledger.thawed.set()
    quick = prompt(ledger, 60)
    assert quick.known_tasks("x") == {"x"}
    with pytest.raises(ValueError, match="emitted or skipped"):
        quick.close_unclaimed([], "batch", RunState.DEAD)


def test_a_frozen_ledger_is_unavailable_until_it_has_answered() -> None:
    ledger = Frozen()
    quick = prompt(ledger, 0.01)
    with pytest.raises(LedgerUnavailable, match=r"within 0\.01 seconds"):
        quick.known_tasks("first")
    for _ in range(3):
        with pytest.raises(LedgerUnavailable, match="not answered yet"):
            quick.known_tasks("more")
    assert ledger.asked == ["first"]
    ledger.thawed.set()
    answers: list[set[str]] = []
    while not answers:
        try:
            answers.append(prompt_again(quick))
        except LedgerUnavailable:
            continue
    assert answers == [{"again"}]


def prompt_again(quick: Any) -> set[str]:
    """Ask until the thread is free."""
    quick._limit = 60
    found: set[str] = quick.known_tasks("again")
    return found


def outage(clock: SettableClock) -> tuple[Outage, list[str]]:
    told: list[str] = []
    return Outage(
        clock, lambda exc: told.append(f"lost: {exc}"), lambda: told.append("found")
    ), told


def fail(one: Outage, clock: SettableClock, took: float, error: Exception) -> None:
    with pytest.raises(type(error)), one.watch(is_ledger_error):
        clock.advance(took)
        raise error


@pytest.mark.parametrize(("took", "pause"), [(0.0, 1.0), (0.4, 1.0), (5.0, 10.0), (60.0, LONGEST)])
def test_it_is_left_alone_for_longer_the_longer_it_takes(took: float, pause: float) -> None:
    clock = SettableClock()
    one, _ = outage(clock)
    assert not one.is_left_alone
    fail(one, clock, took, LedgerUnavailable("away"))
    clock.advance(pause - 0.001)
    assert one.is_left_alone
    clock.advance(0.002)
    assert not one.is_left_alone
    assert one.away


def test_it_is_told_of_once() -> None:
    clock = SettableClock()
    one, told = outage(clock)
    for _ in range(3):
        fail(one, clock, 0.0, LedgerUnavailable("away"))
    with one.watch(is_ledger_error, proves=False):
        pass
    assert told == ["lost: away"]
    for _ in range(2):
        with one.watch(is_ledger_error):
            pass
    assert told == ["lost: away", "found"]


def test_other_errors_are_no_outage() -> None:
    clock = SettableClock()
    one, told = outage(clock)
    fail(one, clock, 0.0, ZeroDivisionError())
    assert not one.away
    fail(one, clock, 0.0, LedgerError("refused"))
    assert one.away
    assert told == ["lost: refused"]
