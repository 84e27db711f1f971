"""A dict that notes its changes: every way to change one, and many entries under a beat."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from celery.schedules import schedule

from celery_idem.keys import HEADER_ENTRY
from celery_idem.ledger import REFRESH
from celery_idem.timetable import CHUNK
from celery_idem.watched import Watched
from tests.contract.stores import SettableClock
from tests.unit.beats import ShakyLedger, UnitScheduler, beat, make_app, make_beat, messages

MANY = 3 * CHUNK
NEVER = 360 * 86_400


def ior(watched: Watched) -> None:
    watched |= {"a": 2, "c": 3}


@pytest.mark.parametrize(
    ("change", "changed"),
    [
        (lambda w: w.__setitem__("a", 2), {"a"}),
        (lambda w: w.__delitem__("a"), {"a"}),
        (lambda w: w.setdefault("c", 1), {"c"}),
        (lambda w: w.pop("a"), {"a"}),
        (lambda w: w.pop("c", None), {"c"}),
        (lambda w: w.popitem(), {"b"}),
        (lambda w: w.clear(), {"a", "b"}),
        (lambda w: w.update({"a": 2}, c=3), {"a", "c"}),
        (lambda w: w.update([("a", 2)]), {"a"}),
        (ior, {"a", "c"}),
    ],
)
def test_every_change_is_noted_and_made(change: Callable[[Any], object], changed: set[str]) -> None:
    watched, plain = Watched(a=1, b=1), {"a": 1, "b": 1}
    change(watched)
    if change is ior:
        plain |= {"a": 2, "c": 3}
    else:
        change(plain)
    assert watched == plain
    assert set(watched.changes()) == changed
    assert not set(watched.changes())


@pytest.mark.parametrize(
    "change", [lambda w: w.pop("c"), lambda w: w.__delitem__("c"), lambda w: w.update(1)]
)
def test_what_is_no_change_raises_as_ever(change: Callable[[Any], object]) -> None:
    watched = Watched(a=1)
    with pytest.raises((KeyError, TypeError)):
        change(watched)
    assert not set(watched.changes())


# -- of a beat -----------------------------------------------------------------------------------


@pytest.fixture
def clock() -> SettableClock:
    return SettableClock()


@pytest.fixture
def ledger(clock: SettableClock) -> ShakyLedger:
    return ShakyLedger(clock)


def many() -> dict[str, Any]:
    return {f"e{number}": {"task": "note", "schedule": NEVER} for number in range(MANY)}


def names(going: UnitScheduler) -> set[str]:
    return {message.headers[HEADER_ENTRY] for message in messages(going.app)}


def after(going: UnitScheduler, seconds: int) -> set[str]:
    for _ in range(seconds):
        going.clock.advance(1)
        going.tick()
    return names(going)


def test_of_many_entries_a_change_in_the_mapping_holds_at_once(
    ledger: ShakyLedger, clock: SettableClock
) -> None:
    going = beat(many(), ledger, clock)
    assert not after(going, 3)
    entry = going.schedule["e0"]
    going.schedule["e0"] = type(entry)(
        name="e0", task="note", schedule=timedelta(seconds=1), app=going.app
    )
    del going.schedule["e1"]
    going.add(name="new", task="note", schedule=timedelta(seconds=1))
    assert after(going, 4) == {"e0", "new"}
    going.schedule.pop("e0")
    assert after(going, 3) == {"new"}


def test_of_many_entries_a_change_in_place_holds_within_a_minute(
    ledger: ShakyLedger, clock: SettableClock
) -> None:
    going = beat(many(), ledger, clock)
    after(going, 3)
    for number in range(MANY):
        going.schedule[f"e{number}"].schedule = schedule(timedelta(seconds=30), app=going.app)
    assert len(after(going, 90)) == MANY


def test_many_entries_are_reported_some_at_a_time(
    ledger: ShakyLedger, clock: SettableClock
) -> None:
    going = beat(many(), ledger, clock)
    after(going, 3)
    ledger.calls.clear()
    for _ in range(200):
        after(going, 1)
        seen = [entry.last_seen_at for entry in ledger.tables.entries.values()]
        assert clock.now() - min(seen) <= timedelta(seconds=REFRESH * 1.5)
    # Never all of them in one tick, as due slots would wait for it.
    assert ledger.calls.count("mark_seen") == pytest.approx(
        200 / REFRESH / 0.75 * MANY / CHUNK, abs=3
    )


class Own(UnitScheduler):
    """A scheduler with a mapping of its own, as Celery allows."""

    mine: dict[str, Any]

    def setup_schedule(self) -> None:
        self.mine = {}
        super().setup_schedule()

    def _mine(self) -> dict[str, Any]:
        return self.mine

    schedule: Any = property(_mine)


def test_a_mapping_of_ones_own_is_followed_too(ledger: ShakyLedger, clock: SettableClock) -> None:
    going = make_beat(make_app(many()), ledger, clock, cls=Own)
    assert not after(going, 3)
    for name in ("e0", "e1"):
        entry = going.schedule[name]
        changed = type(entry)(name=name, task="note", schedule=timedelta(seconds=1), app=going.app)
        going.schedule[name] = changed
    assert after(going, 3) == {"e0", "e1"}


def test_a_mapping_may_be_replaced_as_a_whole(ledger: ShakyLedger, clock: SettableClock) -> None:
    going = beat(many(), ledger, clock)
    after(going, 3)
    one = going._maybe_entry("e7", {"task": "note", "schedule": timedelta(seconds=1)})
    going.schedule = {"e7": one}
    assert after(going, 3) == {"e7"}


def test_changes_by_another_thread_are_not_lost() -> None:
    """A key that is set between the taking of a change and its use is given out again."""
    watched = Watched()

    def interrupted() -> Iterator[str]:
        for name in watched.changes():
            if name == "a" and len(watched) == 1:
                watched["a"] = watched["b"] = 2
            yield name

    watched["a"] = 1
    assert sorted(interrupted()) == ["a", "a", "b"]
