"""Which slots of one entry are due, whatever happened before."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest
from celery import Celery
from celery.beat import ScheduleEntry
from celery.schedules import crontab, schedule

from celery_idem.config import Settings
from celery_idem.entry import Entry
from celery_idem.ledger.memory import MemoryLedger
from celery_idem.rulebook import Rulebook
from celery_idem.tracks import PORTION, Track
from tests.contract.stores import SettableClock
from tests.unit.beats import at

NOW = at("2026-06-01T12:00:00")
LEDGER = MemoryLedger(SettableClock())


@pytest.fixture
def app() -> Celery:
    app = Celery("tracks", set_as_current=False)
    app.conf.update(timezone="UTC")
    return app


def settings(**given: Any) -> Settings:
    return Settings(namespace="tracks", **given)


def track(app: Celery, every: Any, now: datetime | SettableClock = NOW, **options: Any) -> Track:
    entry = Entry(name="e", task="t", schedule=every, app=app, **options)
    clock = SettableClock(now) if isinstance(now, datetime) else now
    made = Track("e", entry, Rulebook(settings(), clock), clock.now())
    made.prepare()
    return made


def after(minutes: float) -> datetime:
    """So many minutes after 12:00."""
    return NOW + timedelta(minutes=minutes)


def minutes(*numbers: float) -> list[datetime]:
    """All of these."""
    return [after(number) for number in numbers]


def test_a_new_entry_has_the_slots_after_its_start(app: Celery) -> None:
    made = track(app, 60)
    made.activate(NOW, NOW)
    assert made.advance(NOW, LEDGER) == []
    assert made.wake == NOW + timedelta(minutes=1)
    assert made.advance(after(1.9), LEDGER) == minutes(1)
    assert made.advance(after(2.9), LEDGER) == minutes(2)
    assert made.advance(after(2.9), LEDGER) == []
    assert made.wake == NOW + timedelta(minutes=3)


def test_slots_are_handed_out_before_the_ledger_has_answered(app: Celery) -> None:
    made = track(app, 60)
    assert made.is_new
    assert made.advance(after(1), LEDGER) == minutes(1)


def test_a_late_answer_of_the_ledger_takes_nothing_away(app: Celery) -> None:
    made = track(app, 60)
    made.advance(after(1), LEDGER)
    # First deploy: active since the ledger was there again.
    made.activate(after(1.5), after(1.5))
    assert made.advance(after(2), LEDGER) == minutes(2)


def test_what_was_done_without_the_ledger_is_offered_to_it_once_more(app: Celery) -> None:
    made = track(app, 20)
    made.advance(after(1), LEDGER)
    made.activate(NOW - timedelta(days=3), after(1))
    assert made.advance(after(1), LEDGER) == [
        NOW + timedelta(seconds=seconds) for seconds in (20, 40, 60)
    ]


CATCHUP = {
    "latest": minutes(-60),
    "all": minutes(*range(-24 * 60, 0, 60)),
    "none": [],
}


@pytest.mark.parametrize("policy", CATCHUP)
def test_missed_slots_follow_the_policy_within_the_window(app: Celery, policy: str) -> None:
    made = track(app, 3600, NOW - timedelta(minutes=1), catchup=policy)
    now = NOW - timedelta(minutes=1)
    made.activate(NOW - timedelta(days=30), now)
    assert made.advance(now, LEDGER) == CATCHUP[policy]
    assert made.wake == NOW


def test_the_window_of_an_entry_comes_first(app: Celery) -> None:
    now = NOW + timedelta(minutes=30)
    made = track(app, 3600, now, catchup="all", catchup_window=7300)
    made.activate(NOW - timedelta(days=30), now)
    assert made.advance(now, LEDGER) == minutes(-60, 0)


def test_nothing_is_caught_up_from_before_the_entry_was_active(app: Celery) -> None:
    made = track(app, 3600, NOW + timedelta(minutes=30), catchup="all")
    made.activate(NOW - timedelta(minutes=90), NOW + timedelta(minutes=30))
    assert made.advance(NOW + timedelta(minutes=30), LEDGER) == minutes(-60, 0)


@pytest.mark.parametrize("policy", CATCHUP)
def test_the_slots_of_the_last_minute_are_due_whatever_the_policy(app: Celery, policy: str) -> None:
    made = track(app, 20, NOW + timedelta(seconds=1), catchup=policy, catchup_window=0)
    made.activate(NOW - timedelta(days=1), NOW + timedelta(seconds=1))
    assert made.advance(NOW + timedelta(seconds=1), LEDGER) == [
        NOW + timedelta(seconds=seconds) for seconds in (-40, -20, 0)
    ]


def test_latest_is_one_slot_if_the_last_minute_has_one(app: Celery) -> None:
    made = track(app, 3600, NOW + timedelta(seconds=10))
    made.activate(NOW - timedelta(days=1), NOW + timedelta(seconds=10))
    assert made.advance(NOW + timedelta(seconds=10), LEDGER) == [NOW]


def test_a_beat_that_stood_still_catches_up_like_one_that_was_down(app: Celery) -> None:
    made = track(app, 600)
    made.activate(NOW, NOW)
    made.advance(NOW, LEDGER)
    assert made.advance(after(35), LEDGER) == minutes(30)


def test_many_slots_come_in_portions_none_twice(app: Celery) -> None:
    made = track(app, 1, catchup="all", catchup_window=3600)
    made.activate(NOW - timedelta(days=1), NOW)
    found: list[datetime] = []
    now, rounds = NOW, 0
    while made.wake is not None and made.wake <= now:
        found += made.advance(now, LEDGER)
        now += timedelta(microseconds=1)
        rounds += 1
    assert found == [NOW - timedelta(seconds=3600 - n) for n in range(1, 3601)]
    assert rounds == 3600 // PORTION + 1


def test_an_interval_of_a_microsecond_does_not_fill_the_memory(app: Celery) -> None:
    made = track(app, timedelta(microseconds=1))
    made.activate(NOW - timedelta(days=1), NOW)
    assert len(made.advance(NOW, LEDGER)) == PORTION


def test_a_clock_that_was_put_back_does_not_put_the_entry_to_sleep(app: Celery) -> None:
    made = track(app, 60)
    made.activate(NOW, NOW)
    wrong = NOW + timedelta(hours=1)
    made.advance(wrong, LEDGER)
    made.put_back(NOW)
    assert made.wake == NOW
    assert made.advance(NOW, LEDGER) == []
    assert made.advance(after(1), LEDGER) == minutes(1)


def test_an_entry_without_a_next_slot_is_never_looked_at_again(app: Celery) -> None:
    made = track(app, timedelta(days=200_000))
    made.activate(NOW, NOW)
    assert made.advance(NOW, LEDGER) == []
    assert made.wake is None


def test_local_time_is_that_of_the_app(app: Celery) -> None:
    app.conf.update(timezone="Europe/Berlin")
    made = track(app, crontab(hour="9", minute="30"), at("2026-03-28T00:00:00"))
    made.activate(at("2026-03-28T00:00:00"), at("2026-03-28T00:00:00"))
    winter = made.advance(at("2026-03-28T08:30:00"), LEDGER)
    summer = made.advance(at("2026-03-29T07:30:00"), LEDGER)
    assert winter + summer == [at("2026-03-28T08:30:00"), at("2026-03-29T07:30:00")]


def test_each_reading_of_the_clock_counts_once_when_it_is_put_back(app: Celery) -> None:
    app.conf.update(timezone="Europe/Berlin")
    night = at("2026-10-24T22:00:00")
    made = track(app, crontab(hour="2", minute="30"), night)
    made.activate(night, night)
    found: list[datetime] = []
    for quarter in range(1, 30):
        found += made.advance(night + timedelta(minutes=15 * quarter), LEDGER)
    assert found == [at("2026-10-25T00:30:00")]


# -- changes -------------------------------------------------------------------------------------


def test_new_arguments_keep_the_place(app: Celery) -> None:
    made = track(app, 60)
    made.activate(NOW, NOW)
    changed = Entry(name="e", task="t", schedule=60.0, args=(1,), app=app)
    assert not made.shows(changed)
    assert made.accept(changed)
    assert made.shows(changed)
    assert made.entry is changed
    assert made.advance(after(1), LEDGER) == minutes(1)


@pytest.mark.parametrize(
    "change",
    [{"schedule": 61}, {"schedule": crontab()}, {"catchup": "all"}, {"catchup_window": 7}],
    ids=str,
)
def test_other_slots_are_another_track(app: Celery, change: dict[str, Any]) -> None:
    made = track(app, 60)
    changed = Entry(**{"name": "e", "task": "t", "schedule": 60, "app": app, **change})
    assert not made.shows(changed)
    assert not made.accept(changed)


def test_an_entry_that_was_changed_in_place_is_noticed(app: Celery) -> None:
    made = track(app, 60)
    assert made.shows(made.entry)
    made.entry.update(Entry(name="e", task="t", schedule=90, app=app))
    assert not made.shows(made.entry)


def test_an_entry_of_celery_does_too(app: Celery) -> None:
    entry = ScheduleEntry(name="e", task="t", schedule=schedule(timedelta(seconds=60)), app=app)
    made = Track("e", entry, Rulebook(settings(), SettableClock(NOW)), NOW)
    made.prepare()
    assert made.advance(after(1), LEDGER) == minutes(1)
