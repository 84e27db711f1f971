"""Other schedulers name their messages by the slot, and are due at it."""

from __future__ import annotations

import json
import pickle
from collections import Counter
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from celery import Celery
from celery.beat import ScheduleEntry, Scheduler
from celery.schedules import BaseSchedule, crontab, schedstate, schedule, solar

from celery_idem import RunKey, StampingMixin
from celery_idem.aligned import Aligned, AlignedEntry, aligned, plain_of
from celery_idem.keys import Stamp
from tests.contract.stores import SettableClock
from tests.unit.beats import at, make_app, messages, slots

UTC = timezone.utc


class Entry(AlignedEntry, ScheduleEntry):
    """Of the scheduler below."""


class Stamping(StampingMixin, Scheduler):
    """Celery's scheduler, in memory, with run keys."""

    Entry = Entry


class Own(BaseSchedule):
    """Every ten seconds, which only its `is_due` knows."""

    def is_due(self, last_run_at: datetime) -> Any:
        left = 10 - (self.now() - last_run_at).total_seconds()
        return schedstate(is_due=left <= 0, next=10 if left <= 0 else left)


def make(
    app: Celery, clock: SettableClock, kind: Any, cls: type[Stamping] = Stamping, **entry: Any
) -> Any:
    """A beat with one entry, ``e``."""
    kind.nowfun = clock.now
    app.conf.beat_schedule = {"e": {"task": "note", "schedule": kind, **entry}}
    return type("Beat", (cls,), {"clock": clock})(app)


def run_for(beat: Any, seconds: float) -> None:
    """Let a beat tick until its clock has moved on; Celery's does not sleep for the last 10 ms."""
    until = beat.clock.moment + timedelta(seconds=seconds)
    while beat.clock.moment < until:
        left = (until - beat.clock.moment).total_seconds()
        beat.clock.advance(min(max(beat.tick(), 0.002), left))
    while not beat.tick():
        pass


@pytest.fixture
def clock() -> SettableClock:
    return SettableClock()


# -- messages ------------------------------------------------------------------------------------


def test_beats_that_start_at_other_times_name_the_same_slots(clock: SettableClock) -> None:
    app = make_app()
    begin = clock.moment
    for lag in (0, 3.3, 9.9):
        clock.moment = begin + timedelta(seconds=lag)
        run_for(make(app, clock, schedule(10)), 60 - lag)
    found = messages(app)
    assert Counter(slots(found)) == {
        ("e", f"{(begin + timedelta(seconds=n)).replace(tzinfo=None).isoformat()}Z"): 3
        for n in range(10, 70, 10)
    }
    assert {(m.headers["id"], m.headers["idem_run_key"]) for m in found} == {
        (key.task_id, key.text)
        for key in (
            RunKey.for_slot("unit", "e", begin + timedelta(seconds=n)) for n in range(10, 70, 10)
        )
    }


def test_a_beat_that_is_late_each_time_passes_no_slot(clock: SettableClock) -> None:
    """Celery counts from the last run: 0.3 s late each time is a slot lost after 34 of them."""
    app = make_app()
    beat = make(app, clock, schedule(10))
    begin = clock.moment
    while clock.moment < begin + timedelta(seconds=600):
        pause = beat.tick()
        clock.advance(pause + 0.3 if pause else 0)
    found = [slot for _, slot in slots(messages(app))]
    assert len(set(found)) == len(found) >= 59


def test_a_reset_last_run_gives_the_same_key_again(clock: SettableClock) -> None:
    app = make_app()
    beat = make(app, clock, crontab(minute="*/5"))
    run_for(beat, 300)
    for back in (timedelta(hours=1), timedelta(days=400)):
        beat.schedule["e"].last_run_at = clock.moment - back
        beat.populate_heap()
        run_for(beat, 5)
    first, *others = messages(app)
    assert len(others) == 2
    assert {m.headers["idem_run_key"] for m in others} == {first.headers["idem_run_key"]}


def test_after_a_pause_the_last_slot_is_due_once(clock: SettableClock) -> None:
    app = make_app()
    beat = make(app, clock, crontab(minute=0, hour="*"))
    begin = clock.moment
    clock.moment = begin.replace(hour=7, minute=20)
    run_for(beat, 60)
    assert slots(messages(app)) == [("e", f"{begin.date()}T07:00:00Z")]


def test_a_slot_that_begins_between_due_and_publish_is_not_passed_over(
    clock: SettableClock,
) -> None:
    class Slow(Stamping):
        def apply_entry(self, entry: Any, producer: Any = None) -> Any:
            clock.advance(9.5)
            return super().apply_entry(entry, producer=producer)

    app = make_app()
    beat = make(app, clock, schedule(10), cls=Slow)
    clock.advance(12)
    beat.tick()
    clock.advance(8)
    beat.tick()
    assert [slot[-3:] for _, slot in slots(messages(app))] == ["10Z", "20Z"]


def test_entries_are_left_as_they_were(clock: SettableClock) -> None:
    app = make_app(idem_signing_key="secret")
    options = {"headers": {"own": 1}, "priority": 3, "task_id": "mine"}
    beat = make(app, clock, schedule(10), options=options, args=[1], kwargs={"a": 2})
    run_for(beat, 10)
    (message,) = messages(app)
    assert (
        beat.schedule["e"].options
        == options
        == {
            "headers": {"own": 1},
            "priority": 3,
            "task_id": "mine",
        }
    )
    assert message.headers["own"] == 1
    assert message.properties["priority"] == 3
    assert json.loads(message.body)[:2] == [[1], {"a": 2}]
    assert Stamp.read(message.headers, "note", "secret") is not None


def test_a_publish_by_hand_names_the_last_slot(clock: SettableClock) -> None:
    """``scheduler.apply_async(entry)``, as RedBeat's way is."""
    app = make_app()
    beat = make(app, clock, schedule(10))
    clock.advance(17)
    beat.apply_async(beat.schedule["e"])
    assert beat.schedule["e"].last_run_at == clock.moment
    ((_, slot),) = slots(messages(app))
    assert slot.endswith(":10Z")


def test_a_time_without_a_zone_is_in_utc(clock: SettableClock) -> None:
    class Naive(Stamping):
        def reserve(self, entry: Any) -> Any:
            return super().reserve(entry)

    class NaiveEntry(Entry):
        def __next__(self, last_run_at: Any = None) -> Any:
            return self._next_instance(last_run_at=clock.moment.replace(tzinfo=None))  # type: ignore[attr-defined]

    Naive.Entry = NaiveEntry
    app = make_app(timezone="Asia/Tokyo")
    run_for(make(app, clock, crontab(minute=0), cls=Naive), 3600)
    expected = clock.moment.replace(minute=0, second=0, microsecond=0, tzinfo=None)
    assert slots(messages(app)) == [("e", f"{expected.isoformat()}Z")]


def test_a_repeated_hour_has_one_key_and_a_skipped_one_has_one_too() -> None:
    for day, expected in (("2026-10-25", "T00:30:00Z"), ("2026-03-29", "T01:00:00Z")):
        clock = SettableClock()
        clock.moment = at(f"{day}T00:00:00") - timedelta(hours=2)
        app = make_app(timezone="Europe/Berlin")
        run_for(make(app, clock, crontab(minute=30, hour=2)), 8 * 3600)
        assert slots(messages(app)) == [("e", day + expected)]


def test_a_schedule_without_slots_goes_out_unstamped_and_is_told_of_once(
    clock: SettableClock, caplog: pytest.LogCaptureFixture
) -> None:
    app = make_app()
    run_for(make(app, clock, Own()), 35)
    found = messages(app)
    assert len(found) == 3
    assert not any("idem_run_key" in m.headers for m in found)
    told = [r for r in caplog.records if getattr(r, "action", "") == "entry_unstamped"]
    assert len(told) == 1
    assert "only its own is_due knows its slots" in told[0].getMessage()


def test_a_scheduler_may_know_the_slots_of_its_own_schedules(clock: SettableClock) -> None:
    class Knowing(Stamping):
        def slot_of(self, entry: Any, until: datetime) -> datetime:
            return until.replace(second=until.second // 10 * 10, microsecond=0)

    app = make_app()
    run_for(make(app, clock, Own(), cls=Knowing), 10)
    ((_, slot),) = slots(messages(app))
    assert slot.endswith(":10Z")


def test_switched_off_it_is_the_scheduler_that_it_was(clock: SettableClock) -> None:
    app = make_app(idem_enabled=False)
    beat = make(app, clock, schedule(10))
    assert not isinstance(beat.schedule["e"].schedule, Aligned)
    run_for(beat, 10)
    (message,) = messages(app)
    assert "idem_run_key" not in message.headers


# -- schedules -----------------------------------------------------------------------------------

KINDS = [
    schedule(90),
    schedule(timedelta(days=1), relative=True),
    crontab(minute="*/7"),
    solar("sunset", 48.0, 11.0),
]


@pytest.mark.parametrize("plain", KINDS, ids=repr)
def test_due_is_what_has_a_slot_since_the_last_run(plain: Any) -> None:
    clock = SettableClock()
    plain.nowfun = clock.now
    plain.app = make_app()
    made = aligned(plain)
    start = clock.moment
    due, seconds = made.is_due(start)
    assert (due, made.remaining_estimate(start).total_seconds()) == (False, seconds)
    clock.advance(seconds - 0.001)
    assert not made.is_due(start).is_due
    clock.advance(0.002)
    slot = clock.moment - timedelta(seconds=0.001)
    assert made.is_due(start).is_due
    assert made.remaining_estimate(start) < timedelta(0)
    assert not made.is_due(slot).is_due
    # A last run of any age makes it due, and once it has run it is not.
    assert made.is_due(start - timedelta(days=800)).is_due
    assert not made.is_due(clock.moment).is_due


def test_an_aligned_schedule_is_else_what_it_was() -> None:
    for plain in KINDS:
        made = aligned(plain)
        assert isinstance(made, type(plain))
        assert made == plain
        assert aligned(made) is made
        assert type(plain_of(made)) is type(plain)
        assert repr(made) == repr(plain)
    for plain in (schedule(90), crontab(minute=5)):
        stored = pickle.loads(pickle.dumps(aligned(plain)))
        assert type(stored) is type(plain)
        assert stored == plain
    for other in (Own(), None, schedule(0)):
        assert aligned(other) is other


def test_the_deadline_of_crontabs_holds(clock: SettableClock) -> None:
    app = make_app(beat_cron_starting_deadline=60)
    kinds: list[tuple[Any, bool]] = [(crontab(minute=0), False), (schedule(3600), True)]
    for kind, due in kinds:
        kind.app, kind.nowfun = app, clock.now
        clock.moment = clock.moment.replace(minute=1, second=1)
        made: Any = aligned(kind)
        assert made.is_due(clock.moment - timedelta(hours=5)).is_due is due
        clock.moment = clock.moment.replace(minute=0, second=59)
        assert made.is_due(clock.moment - timedelta(hours=5)).is_due


def test_an_entry_that_is_changed_stays_aligned() -> None:
    app = make_app()
    entry = Entry("e", "note", schedule=schedule(10), app=app)
    entry.update(ScheduleEntry("e", "note", schedule=schedule(20), app=app))
    assert isinstance(entry.schedule, Aligned)
    assert entry.schedule == schedule(20)
