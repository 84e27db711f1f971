"""Slots are recorded while those before them are published; whatever happens in between."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest

from celery_idem.due import Due
from celery_idem.emitter import FEWEST
from celery_idem.errors import LedgerUnavailable
from celery_idem.ledger import Ledger
from celery_idem.outage import prompt
from tests.contract.stores import SettableClock
from tests.unit.beats import (
    ShakyLedger,
    UnitScheduler,
    make_app,
    make_beat,
    messages,
    rows,
    run_for,
    slots,
)

#: Seconds after which something that was to come will not.
DEADLINE = 30
SCHEDULE = {f"e{number}": {"task": "note", "schedule": 10} for number in range(3 * FEWEST)}


class Prompt(UnitScheduler):
    """A beat that asks its ledger in a thread, as in a real process."""

    ledger: ShakyLedger
    #: Called before each publish.
    before: Callable[[], object] = staticmethod(lambda: None)

    def make_ledger(self) -> Ledger:
        return prompt(self.ledger, limit=DEADLINE)

    def publish(self, due: Due, **options: Any) -> Any:
        self.before()
        return super().publish(due, **options)


class Watching(ShakyLedger):
    """A ledger that notices what is asked of it.

    Attributes:
        inserts: how many statements have recorded slots.
        fails_at: the number of the insert from which on it is away.
    """

    def __init__(self, clock: SettableClock) -> None:
        super().__init__(clock)
        self.inserts = 0
        self.fails_at = 1_000_000
        self.again = threading.Semaphore(0)

    def insert_slots(self, *args: Any) -> Any:
        self.inserts += 1
        if self.inserts >= self.fails_at:
            raise LedgerUnavailable("the ledger's database is away")
        won = super().insert_slots(*args)
        self.again.release()
        return won


@pytest.fixture
def clock() -> SettableClock:
    return SettableClock()


@pytest.fixture
def ledger(clock: SettableClock) -> Watching:
    return Watching(clock)


@pytest.fixture
def going(ledger: Watching, clock: SettableClock) -> Prompt:
    made = make_beat(make_app(SCHEDULE), ledger, clock, cls=Prompt)
    assert isinstance(made, Prompt)
    made.tick()
    clock.advance(10)
    return made


def test_the_next_slots_are_recorded_before_the_last_ones_are_published(
    going: Prompt, ledger: Watching
) -> None:
    published = 0

    def before() -> None:
        nonlocal published
        if published == 0:
            # Its own insert, and the one that goes on meanwhile.
            for _ in range(2):
                assert ledger.again.acquire(timeout=DEADLINE)
        published += 1

    going.before = before
    going.tick()
    assert published == len(SCHEDULE) == len(set(slots(messages(going.app))))
    assert {row.emit_count for row in rows(ledger)} == {1}


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_ledger_that_goes_away_in_between_holds_up_nothing(
    going: Prompt, ledger: Watching, number: int
) -> None:
    ledger.fails_at = number
    going.tick()
    assert len(messages(going.app)) == len(SCHEDULE)
    ledger.fails_at = 1_000_000
    run_for(going, 5)
    assert len(rows(ledger)) == len(SCHEDULE)
    assert {row.emit_count for row in rows(ledger)} == {1}
    assert not messages(going.app)


def test_a_beat_that_ends_in_between_leaves_what_it_has_recorded_to_others(
    going: Prompt, ledger: Watching, clock: SettableClock
) -> None:
    def end() -> None:
        assert ledger.again.acquire(timeout=DEADLINE)
        if ledger.inserts >= 2:
            raise SystemExit(0)

    going.before = end
    with pytest.raises(SystemExit):
        going.tick()
    going.close()
    clock.advance(-5)
    other = make_beat(make_app(SCHEDULE), ledger, clock)
    other.tick()
    run_for(other, 9)
    found = messages(going.app) + messages(other.app)
    assert set(slots(found)) >= {
        (row.entry, row.key.text.partition("@")[2]) for row in rows(ledger)
    }
    assert {row.emit_count for row in rows(ledger)} == {1}


class Broken:
    """Due slots of which one cannot be told."""

    def __init__(self, going: Prompt, at: int) -> None:
        self._dues, self._at = going._due(going.clock.now()), at

    def __iter__(self) -> Iterator[Due]:
        for number, due in enumerate(self._dues):
            if number == self._at:
                raise ZeroDivisionError("grim")
            yield due


@pytest.mark.parametrize("at", [0, 5, FEWEST, FEWEST + 5, 2 * FEWEST + 5])
def test_what_was_due_before_an_error_is_recorded_and_published(
    going: Prompt, ledger: Watching, at: int
) -> None:
    with pytest.raises(ZeroDivisionError):
        going._emitter.emit(Broken(going, at))
    assert len(set(slots(messages(going.app)))) == at == len(rows(ledger))
    assert {row.emit_count for row in rows(ledger)} <= {1}


def test_what_was_recorded_ahead_is_not_lost_by_an_error(
    going: Prompt, ledger: Watching, monkeypatch: pytest.MonkeyPatch
) -> None:
    emit = going._emitter._emit

    def fail(*args: Any) -> Any:
        emit(*args)
        raise ZeroDivisionError("grim")

    monkeypatch.setattr(going._emitter, "_emit", fail)
    going.tick()
    monkeypatch.undo()
    run_for(going, 3)
    found = slots(messages(going.app))
    assert len(found) == len(set(found)) == len(rows(ledger)) == len(SCHEDULE)


def test_slots_of_plain_tasks_are_not_recorded_ahead(
    ledger: Watching, clock: SettableClock
) -> None:
    """Their row is closed when it is made: whoever ends before the publish takes it along."""
    plain = {name: {**entry, "task": "plain"} for name, entry in SCHEDULE.items()}
    made = make_beat(make_app(plain), ledger, clock, cls=Prompt)
    assert isinstance(made, Prompt)
    made.tick()
    clock.advance(10)
    recorded: list[int] = []
    made.before = lambda: recorded.append(len(ledger.tables.runs))
    made.tick()
    assert recorded[0] == FEWEST
    assert len(messages(made.app)) == len(SCHEDULE)


@pytest.mark.parametrize("late", [0.0, 0.3, 0.6, 0.9])
def test_a_slot_that_a_dead_beat_has_recorded_is_published_after_a_second(
    ledger: Watching, clock: SettableClock, late: float
) -> None:
    """Whenever the other beat looks for such slots, which it does once a second."""
    schedule = {"e": {"task": "note", "schedule": 10}}
    other = make_beat(make_app(schedule), ledger, clock)
    clock.advance(late)
    other.tick()
    dying = make_beat(make_app(schedule), ledger, clock, cls=Dying)
    dying.tick()
    run_for(other, 10 - late - 0.001)
    clock.advance(0.001)
    with pytest.raises(SystemExit):
        dying.tick()
    since = clock.now()
    other.tick()
    while not (found := messages(other.app)):
        run_for(other, 0.01)
        assert clock.now() - since < timedelta(seconds=1.1)
    assert slots(found) == [("e", "2026-03-30T01:30:10Z")]


class Dying(UnitScheduler):
    """A beat that ends between the record of a slot and its publish."""

    def publish(self, due: Due, **options: Any) -> Any:
        raise SystemExit(137)
