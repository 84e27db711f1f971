"""What people give the command and the settings of a beat."""

from __future__ import annotations

import copy
import pickle
from datetime import timedelta
from typing import Any

import pytest
from celery import Celery, beat
from celery.beat import ScheduleEntry, Scheduler
from celery.schedules import schedule

from celery_idem import IdempotentScheduler
from celery_idem.clock import SYSTEM
from celery_idem.errors import ImproperlyConfigured
from tests.contract.stores import SettableClock
from tests.unit.beats import (
    ShakyLedger,
    make_app,
    make_beat,
    messages,
    run_for,
)

EVERY: dict[str, dict[str, Any]] = {"e": {"task": "note", "schedule": 10}}


@pytest.fixture
def clock() -> SettableClock:
    return SettableClock()


def test_a_lazy_scheduler_asks_nothing(clock: SettableClock) -> None:
    ledger = ShakyLedger(clock)
    lazy = make_beat(make_app(EVERY), ledger, clock, lazy=True)
    assert "    . namespace -> unit" in lazy.info
    lazy.close()
    assert ledger.calls == []


def test_the_banner_has_no_password() -> None:
    url = "postgresql://u:geheim@db.example/x?password=geheim"
    shown = make_beat(make_app(EVERY, idem_database_url=url), lazy=True).info
    assert "geheim" not in shown
    assert "db.example" in shown


def test_a_schedule_file_is_ignored_with_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    app = make_app(EVERY)
    make_beat(app, schedule_filename="/nowhere/at/all", lazy=True)
    make_beat(app, schedule_filename="celerybeat-schedule")
    make_beat(app)
    assert "schedule_file_ignored" not in [getattr(r, "action", "") for r in caplog.records]
    make_beat(app, schedule_filename="/nowhere/at/all")
    assert [getattr(r, "action", "") for r in caplog.records].count("schedule_file_ignored") == 1


def test_max_interval_is_the_longest_sleep(clock: SettableClock) -> None:
    app = make_app({"e": {"task": "note", "schedule": 86_400}})
    assert make_beat(app, clock=clock).tick() == 1.0
    assert make_beat(app, clock=clock, max_interval=0.3).tick() == 0.3
    app.conf.beat_max_loop_interval = 0.2
    assert make_beat(app, clock=clock).tick() == 0.2


def test_the_entry_point_leads_here() -> None:
    app = make_app(EVERY)
    name: Any = "idem"
    service = beat.Service(app, scheduler_cls=name)
    assert type(service.get_scheduler(lazy=True)) is IdempotentScheduler


def test_unknown_settings_end_a_beat_at_once() -> None:
    with pytest.raises(ImproperlyConfigured, match="idem_catchup = 'sometimes'"):
        make_beat(make_app(EVERY, idem_catchup="sometimes"))


def test_catchup_may_stand_among_the_options() -> None:
    app = make_app({})
    app.add_periodic_task(10.0, app.tasks["note"].s(1), name="e", catchup="all", priority=2)
    made = make_beat(app).schedule["e"]
    assert (made.catchup, made.options) == ("all", {"priority": 2})
    assert next(made).catchup == "all"


def test_entries_differ_by_their_policy_too() -> None:
    app = make_app(EVERY)
    entry = make_beat(app).schedule["e"]
    other = type(entry)(**{**dict(entry), "catchup": "all"})
    assert entry == type(entry)(**dict(entry))
    assert entry != other
    entry.update(other)
    assert entry.catchup == "all"


@pytest.mark.parametrize("way", [copy.copy, lambda entry: pickle.loads(pickle.dumps(entry))])
def test_a_copy_of_an_entry_has_its_policy(way: Any) -> None:
    written = {**EVERY["e"], "catchup": "none", "options": {"jitter": 5, "priority": 3}}
    made = way(make_beat(make_app({"e": written})).schedule["e"])
    assert (made.catchup, made.jitter, made.options) == ("none", 5, {"priority": 3})


def test_switched_off_it_is_celerys_scheduler(
    clock: SettableClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "celery.beat")
    often = timedelta(microseconds=1)
    app = make_app({"e": {"task": "note", "schedule": often}}, idem_enabled=False)
    ledger = ShakyLedger(clock)
    off = make_beat(app, ledger, clock)
    started = SYSTEM.elapsed()
    off.tick()
    off.tick()
    assert SYSTEM.elapsed() - started < 60
    found = messages(app)
    assert found
    assert all("idem_run_key" not in message.headers for message in found)
    assert len({message.headers["id"] for message in found}) == len(found)
    assert "switched off" in off.info
    # In Celery's own words.
    assert "Scheduler: Sending due task e (note)" in caplog.messages
    off.close()
    assert ledger.calls == []


def test_switched_off_a_message_that_cannot_be_made_is_celerys_matter(
    caplog: pytest.LogCaptureFixture,
) -> None:
    broken = {"task": "note", "schedule": timedelta(microseconds=1), "args": (lambda: None,)}
    off = make_beat(make_app({"broken": broken}, idem_enabled=False))
    off.tick()
    off.tick()
    assert any(message.startswith("Message Error") for message in caplog.messages)
    off.close()


def test_switched_off_it_waits_for_its_broker_as_celerys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Scheduler, "_ensure_connected", lambda self: "waits")
    assert make_beat(make_app(EVERY, idem_enabled=False))._ensure_connected() == "waits"


def test_default_entries_are_kept() -> None:
    # No backend is one that does not clean up by itself.
    assert "celery.backend_cleanup" in make_beat(make_app(EVERY)).schedule
    app = make_app(EVERY, result_expires=None)
    assert list(make_beat(app).schedule) == ["e"]


def test_entries_of_celerys_own_class_are_followed(clock: SettableClock) -> None:
    app: Celery = make_app({})
    going = make_beat(app, clock=clock)
    going.schedule["e"] = ScheduleEntry(
        name="e", task="note", schedule=schedule(timedelta(seconds=10), app=app), app=app
    )
    run_for(going, 20)
    assert len(messages(app)) == 2
