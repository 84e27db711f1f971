"""What others override of Celery's scheduler, or patch, works in ours as it does there."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any, ClassVar

import pytest
from celery import Celery
from celery.beat import ScheduleEntry, Scheduler, SchedulingError, Service
from celery.schedules import schedstate, schedule

from celery_idem import IdempotentScheduler
from celery_idem.entry import Entry
from celery_idem.keys import HEADER_KEY
from celery_idem.ledger import Ledger
from celery_idem.ledger.memory import MemoryLedger
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

EVERY: dict[str, Any] = {"e": {"task": "note", "schedule": 10}}
#: Seconds after which what was to come will not.
DEADLINE = 30


@pytest.fixture
def clock() -> SettableClock:
    return SettableClock()


@pytest.fixture
def ledger(clock: SettableClock) -> ShakyLedger:
    return ShakyLedger(clock)


@pytest.fixture
def start(ledger: ShakyLedger, clock: SettableClock) -> Callable[..., UnitScheduler]:
    """A beat of this class, with this schedule."""

    def make(cls: type[UnitScheduler], entries: dict[str, Any] = EVERY) -> UnitScheduler:
        made: UnitScheduler = make_beat(make_app(entries), ledger, clock, cls=cls)
        return made

    return make


def headers(app: Celery) -> list[dict[str, Any]]:
    return [message.headers for message in messages(app)]


# -- how a message is sent ------------------------------------------------------------------------


def test_apply_entry_gets_every_entry_and_may_change_its_message(start: Any) -> None:
    class Own(UnitScheduler):
        def apply_entry(self, entry: Any, producer: Any = None) -> Any:
            assert isinstance(entry, ScheduleEntry)
            options = entry.options or {}
            assert options["headers"][HEADER_KEY].startswith("unit:")
            options["headers"]["mine"] = entry.name
            return super().apply_entry(entry, producer=producer)

    going = start(Own)
    run_for(going, 30)
    assert [found["mine"] for found in headers(going.app)] == ["e"] * 3
    # The entry of the schedule has stayed as it was.
    assert "headers" not in going.schedule["e"].options


@pytest.fixture
def patched(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Celery's own `apply_entry` is wrapped, as by tools that watch it."""
    seen: list[Any] = []
    original = Scheduler.apply_entry

    def apply_entry(scheduler: Any, entry: Any, *args: Any, **kwargs: Any) -> Any:
        assert scheduler.app.main
        seen.append(entry.name)
        entry.options["headers"]["watched"] = True
        return original(scheduler, entry, *args, **kwargs)

    monkeypatch.setattr(Scheduler, "apply_entry", apply_entry)
    return seen


def test_what_is_patched_into_celerys_apply_entry_is_called(start: Any, patched: list[Any]) -> None:
    going = start(UnitScheduler)
    run_for(going, 30)
    assert patched == ["e"] * 3
    assert [found["watched"] for found in headers(going.app)] == [True] * 3


def test_what_is_patched_in_need_not_be_a_function(
    start: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Scheduler.apply_entry
    seen: list[str] = []

    class Wrapper:
        """As libraries make them that wrap others: it shows what is said of the original."""

        __code__ = original.__code__

        def __call__(self, scheduler: Any, entry: Any, **options: Any) -> Any:
            seen.append(entry.name)
            return original(scheduler, entry, **options)

    monkeypatch.setattr(Scheduler, "apply_entry", Wrapper())
    going = start(UnitScheduler)
    run_for(going, 20)
    assert seen == ["e"] * 2
    assert len(messages(going.app)) == 2


def test_an_error_is_not_lost_in_a_patched_apply_entry(
    start: Any, patched: list[Any], ledger: ShakyLedger, caplog: pytest.LogCaptureFixture
) -> None:
    class Refusing(UnitScheduler):
        refuses = True

        def send_task(self, *args: Any, **options: Any) -> Any:
            if self.refuses:
                raise ValueError("not today")
            return super().send_task(*args, **options)

    ledger.record_tasks("unit", ["elsewhere"])
    going = start(Refusing, {"e": {"task": "elsewhere", "schedule": 86_400}})
    going.clock.moment = datetime.fromisoformat("2026-03-31T00:00:00+00:00") - timedelta(seconds=1)
    run_for(going, 5)
    assert "not today" in caplog.text
    going.refuses = False
    run_for(going, 100)
    assert len(messages(going.app)) == 1
    assert [row.entry for row in rows(ledger)] == ["e"]


def test_apply_async_may_add_options_and_sees_errors(start: Any) -> None:
    class Own(UnitScheduler):
        seen: list[str]

        def apply_async(self, entry: Any, *args: Any, **options: Any) -> Any:
            entry.options["priority"] = 3
            try:
                return super().apply_async(entry, *args, **options)
            except SchedulingError as exc:
                self.seen.append(str(exc))
                raise

    Own.seen = []
    bad = {"task": "note", "schedule": 10, "args": (lambda: None,)}
    going = start(Own, {"bad": bad, **EVERY})
    run_for(going, 30)
    found = messages(going.app)
    assert [entry for entry, _ in slots(found)] == ["e"] * 3
    assert {message.properties["priority"] for message in found} == {3}
    assert Own.seen
    assert all("bad" in error for error in Own.seen)


def test_tasks_of_others_go_through_send_task(start: Any) -> None:
    class Own(UnitScheduler):
        def send_task(self, name: str, *args: Any, **options: Any) -> Any:
            assert options["producer"] is self.producer
            return super().send_task(f"renamed.{name}", *args, **options)

    going = start(Own, {"e": {"task": "elsewhere", "schedule": 10}})
    run_for(going, 20)
    assert [found["task"] for found in headers(going.app)] == ["renamed.elsewhere"] * 2


def test_the_producer_may_be_another_one(start: Any) -> None:
    class Own(UnitScheduler):
        @property
        def producer(self) -> Any:
            made = super().producer
            made.serializer = "yaml"
            return made

    going = start(Own)
    assert going.producer.serializer == "yaml"
    run_for(going, 10)
    assert len(messages(going.app)) == 1


# -- what is due ----------------------------------------------------------------------------------


class Choosy(Entry):
    """An entry that may be switched off where it is kept."""

    on = True
    asked: ClassVar[list[datetime | None]]

    def is_due(self) -> Any:
        type(self).asked.append(self.last_run_at)
        return super().is_due() if self.on else schedstate(is_due=False, next=2)


@pytest.fixture
def choosy(clock: SettableClock) -> type[Choosy]:
    class Own(Choosy):
        asked: ClassVar[list[datetime | None]] = []

        def default_now(self) -> datetime:
            return clock.now()

    return Own


def test_is_due_of_an_entry_may_say_no(start: Any, choosy: Any) -> None:
    class Own(UnitScheduler):
        Entry = choosy

    going = start(Own)
    choosy.on = False
    run_for(going, 15)
    assert messages(going.app) == []
    assert choosy.asked
    choosy.on = True
    going.schedule["e"].schedule.nowfun = going.clock.now
    run_for(going, 4)
    # The slot that was held back, once.
    assert [slot[-3:] for _, slot in slots(messages(going.app))] == ["10Z"]
    run_for(going, 11)
    assert [slot[-3:] for _, slot in slots(messages(going.app))] == ["20Z", "30Z"]


@pytest.mark.parametrize("again", [0, 0.0, None])
def test_is_due_may_say_no_without_saying_when(start: Any, again: Any) -> None:
    class Own(UnitScheduler):
        closed = True

        def is_due(self, entry: Any) -> Any:
            return (not self.closed, again)

    going = start(Own)
    run_for(going, 15)
    assert messages(going.app) == []
    going.closed = False
    run_for(going, 6)
    assert [slot[-3:] for _, slot in slots(messages(going.app))] == ["10Z", "20Z"]


def test_is_due_of_a_scheduler_may_say_no(start: Any) -> None:
    class Own(UnitScheduler):
        closed = True

        def is_due(self, entry: Any) -> Any:
            if self.closed and entry.name == "e":
                return schedstate(is_due=False, next=0.5)
            return schedstate(is_due=True, next=10)

    going = start(Own, {**EVERY, "other": EVERY["e"]})
    run_for(going, 25)
    assert {entry for entry, _ in slots(messages(going.app))} == {"other"}
    going.closed = False
    run_for(going, 2)
    # All of the last minute, as for any slot that is late by so much.
    assert slots(messages(going.app)) == [
        ("e", "2026-03-30T01:30:10Z"),
        ("e", "2026-03-30T01:30:20Z"),
    ]


class GoesOn(UnitScheduler):
    """Has an `is_due` of its own, which says what Celery's does."""

    def is_due(self, entry: Any) -> Any:
        return super().is_due(entry)


class OfTheirs(schedule):
    """Has one too, so that only it knows when it is due."""

    def is_due(self, last_run_at: datetime) -> Any:
        return super().is_due(last_run_at)


def test_is_due_of_a_scheduler_is_asked_about_a_schedule_of_somebodys_own_too(
    start: Any, clock: SettableClock
) -> None:
    class Own(UnitScheduler):
        closed = True

        def is_due(self, entry: Any) -> Any:
            return schedstate(is_due=False, next=1) if self.closed else super().is_due(entry)

    going = start(Own, {"theirs": {"task": "note", "schedule": OfTheirs(10, nowfun=clock.now)}})
    run_for(going, 30)
    assert messages(going.app) == []
    going.closed = False
    run_for(going, 31)
    assert 3 <= len(slots(messages(going.app))) <= 4


def test_a_schedule_that_remembers_its_answers_is_asked_once(
    ledger: ShakyLedger, clock: SettableClock
) -> None:
    """Though an `is_due` of a scheduler goes on to it."""

    class Once(schedule):
        told = False

        def is_due(self, last_run_at: datetime) -> Any:
            due = clock.now().second == 10 and not self.told
            self.told = self.told or due
            return schedstate(is_due=due, next=1)

    app = make_app({"once": {"task": "note", "schedule": Once(10, nowfun=clock.now)}})
    run_for(make_beat(app, ledger, clock, cls=GoesOn), 30)
    assert [entry for entry, _ in slots(messages(app))] == ["once"]


def test_a_seldom_schedule_of_somebodys_own_is_due_though_beats_are_started_often(
    ledger: ShakyLedger, clock: SettableClock
) -> None:
    """An `is_due` is asked with the slot before, and not with when this beat was started."""
    weekly = OfTheirs(7 * 86_400, nowfun=clock.now)
    found = []
    for _ in range(22):
        app = make_app({"w": {"task": "note", "schedule": weekly}})
        run_for(make_beat(app, ledger, clock, cls=GoesOn), 10)
        found += [slot for entry, slot in slots(messages(app)) if entry == "w"]
        clock.advance(86_400 - 10)
    assert len(found) == 3


def test_an_is_due_that_raises_stops_nobody_else(
    start: Any, caplog: pytest.LogCaptureFixture
) -> None:
    class Own(UnitScheduler):
        def is_due(self, entry: Any) -> Any:
            if entry.name == "e":
                raise ZeroDivisionError("grim")
            return schedstate(is_due=True, next=10)

    going = start(Own, {**EVERY, "other": EVERY["e"]})
    run_for(going, 30)
    assert [entry for entry, _ in slots(messages(going.app))] == ["other"] * 3
    assert "Entry e" in caplog.text


# -- what is in the schedule ----------------------------------------------------------------------


def test_setup_schedule_may_add_entries(start: Any) -> None:
    class Own(UnitScheduler):
        def setup_schedule(self) -> None:
            super().setup_schedule()
            self.add(name="mine", task="note", schedule=timedelta(seconds=10))

    going = start(Own)
    run_for(going, 10)
    assert sorted(entry for entry, _ in slots(messages(going.app))) == ["e", "mine"]


def test_setup_schedule_may_replace_ours(start: Any) -> None:
    """As that of a scheduler which loads its entries from elsewhere: Celery's does nothing else."""

    class Own(UnitScheduler):
        def setup_schedule(self) -> None:
            self.install_default_entries(self.schedule)
            self.update_from_dict(EVERY)

    going = start(Own)
    run_for(going, 10)
    assert [entry for entry, _ in slots(messages(going.app))] == ["e"]


def test_default_entries_may_be_left_out(start: Any) -> None:
    class Own(UnitScheduler):
        def install_default_entries(self, data: Any) -> None: ...

    assert list(start(Own).schedule) == ["e"]


def test_merging_keeps_what_is_the_same_and_drops_what_is_gone(start: Any) -> None:
    going = start(UnitScheduler, {**EVERY, "gone": EVERY["e"]})
    run_for(going, 10)
    counted = going.schedule["e"]
    assert counted.total_run_count == 1
    going.merge_inplace({"e": {"task": "note", "schedule": 5}, "new": EVERY["e"]})
    assert going.schedule["e"] is counted
    assert counted.total_run_count == 1
    assert counted.schedule.run_every == timedelta(seconds=5)
    assert sorted(going.schedule) == ["e", "new"]


def test_a_schedule_that_was_passed_in_stays_the_callers(
    ledger: ShakyLedger, clock: SettableClock
) -> None:
    app = make_app(EVERY)
    mine: dict[str, Any] = {}

    class Own(UnitScheduler):
        def __init__(self, app: Celery, **options: Any) -> None:
            super().__init__(app, schedule=mine, **options)

    going = make_beat(app, ledger, clock, cls=Own)
    assert going.schedule is mine
    run_for(going, 5)
    mine["other"] = Entry(name="other", task="note", schedule=timedelta(seconds=2), app=app)
    run_for(going, 5)
    assert ("other", "2026-03-30T01:30:10Z") in slots(messages(app))


# -- the life of a scheduler ----------------------------------------------------------------------


def test_ticks_may_be_counted(start: Any) -> None:
    class Own(UnitScheduler):
        ticks = 0

        def tick(self, *args: Any, **kwargs: Any) -> float:
            self.ticks += 1
            return super().tick(*args, **kwargs)

    going = start(Own)
    run_for(going, 10)
    assert going.ticks > 1
    assert len(messages(going.app)) == 1


def test_a_schedule_is_synchronized_as_often_as_it_is_asked_for(start: Any) -> None:
    class Own(UnitScheduler):
        synced = 0

        def sync(self) -> None:
            self.synced += 1

    going = start(Own)
    going.sync_every_tasks = 2
    run_for(going, 10)
    # Celery's first publish synchronizes always.
    first = going.synced
    run_for(going, 40)
    assert going.synced == first + 2
    going.close()
    assert going.synced == first + 3


def test_closed_and_opened_again_it_goes_on_where_it_was(
    start: Any, ledger: ShakyLedger, clock: SettableClock
) -> None:
    first = start(UnitScheduler)
    run_for(first, 20)
    first.close()
    with pytest.raises(SystemExit):
        first.tick()
    clock.advance(12)
    again = start(UnitScheduler)
    run_for(again, 18)
    found = slots(messages(first.app)) + slots(messages(again.app))
    assert [slot[-3:] for _, slot in found] == ["10Z", "20Z", "30Z", "40Z", "50Z"]


def test_a_lazy_one_has_no_entries_until_it_is_set_up() -> None:
    app = make_app(EVERY, idem_database_url="sqlite://")
    lazy = IdempotentScheduler(app=app, lazy=True)
    assert dict(lazy.schedule) == {}


def test_celerys_service_runs_and_stops_it() -> None:
    """As the command does, and as a worker does for its ``-B``, which has it in a thread."""
    published = threading.Event()
    ended: list[str] = []

    class Own(IdempotentScheduler):
        def make_ledger(self) -> Ledger:
            return MemoryLedger()

        def apply_entry(self, entry: Any, producer: Any = None) -> Any:
            published.set()
            return super().apply_entry(entry, producer=producer)

        def close(self) -> None:
            super().close()
            ended.append("closed")

    app = make_app({"e": {"task": "note", "schedule": 1}})
    service = Service(app, max_interval=1, scheduler_cls=Own)
    running = threading.Thread(target=service.start, kwargs={"embedded_process": False})
    running.start()
    try:
        assert published.wait(DEADLINE)
    finally:
        service.stop(wait=True)
        running.join(DEADLINE)
    assert not running.is_alive()
    assert ended
