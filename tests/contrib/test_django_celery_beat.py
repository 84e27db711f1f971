"""Three beats with django-celery-beat's schedule: each slot is executed once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.contrib.project import ContribStage, Project, all_publish
from tests.integration.beat_stage import PATIENCE, grid, now
from tests.processes import wait_for
from tests.services import Broker

pytest.importorskip("django_celery_beat")

OURS = "celery_idem.contrib.django_celery_beat:DatabaseScheduler"
STOCK = "django_celery_beat.schedulers:DatabaseScheduler"

#: What the scripts below begin with.
MODELS = """
import json, sys
from datetime import datetime, timedelta, timezone
from django_celery_beat.models import *
from django.core.management import call_command
given = json.loads(sys.argv[1])
call_command("migrate", verbosity=0)
second, _ = IntervalSchedule.objects.get_or_create(every=1, period="seconds")
hour, _ = CrontabSchedule.objects.get_or_create(
    minute=given.get("minute", "0"), hour="*", timezone="Asia/Kolkata"
)
def task(name, **more):
    PeriodicTask.objects.create(name=name, task="contrib.note", **more)
"""


@pytest.fixture
def project(tmp_path: Path, postgres_url: str) -> Project:
    """A Django project on the database of the ledger."""
    return Project(tmp_path, postgres_url)


@pytest.fixture
def stage(tmp_path: Path, redis_url: str, postgres_url: str) -> Iterator[ContribStage]:
    """A Redis, and the database of the project."""
    with ContribStage(tmp_path, Broker("redis", redis_url), postgres_url) as made:
        yield made


def script(project: Project, text: str, **given: Any) -> str:
    return project.run(MODELS + text, json.dumps(given))


def later(seconds: float) -> datetime:
    return (now() + timedelta(seconds=seconds)).replace(microsecond=0)


def count(stage: ContribStage, entry: str) -> int:
    return len(stage.effects(entry))


SLOTS = """
task("each second", interval=second, args='["first"]')
task("off", interval=second, enabled=False)
task("once", interval=second, one_off=True)
missed = datetime.now(timezone.utc) - timedelta(hours=5)
task("missed", crontab=hour, last_run_at=missed)
clock = ClockedSchedule.objects.create(clocked_time=datetime.fromisoformat(given["at"]))
task("clocked", clocked=clock, one_off=True)
"""


def test_three_beats_execute_each_slot_once(stage: ContribStage, project: Project) -> None:
    at = later(8)
    # Half an hour off UTC, and not to come while the test runs.
    minute = (now().minute - 20) % 60
    script(project, SLOTS, at=at.isoformat(), minute=str((minute + 30) % 60))
    stage.workers(1, "-P", "solo")
    beats = stage.django_beats(3, project, {"beat_scheduler": OURS})
    since = now()
    stage.wait_for_executions(1, "clocked")
    stage.wait_for_executions(6, "each second")
    # An edit of the admin: other arguments.
    script(
        project,
        """
changed = PeriodicTask.objects.get(name="each second")
changed.args = '["second"]'
changed.save()
""",
    )
    wait_for(
        lambda: any("second" in row.detail for row in stage.effects("each second")),
        PATIENCE,
        "the change is executed",
    )
    # A beat dies; the others go on. Then the entry is switched off.
    beats.pop().kill()
    stage.wait_for_executions(count(stage, "each second") + 3, "each second")
    script(
        project,
        """
changed = PeriodicTask.objects.get(name="each second")
changed.enabled = False
changed.save()
clock = ClockedSchedule.objects.create(clocked_time=datetime.fromisoformat(given["at"]))
task("last", clocked=clock, one_off=True)
""",
        at=later(3).isoformat(),
    )
    all_publish(beats, "last")
    wait_for(stage.is_drained, PATIENCE, "the messages are taken")
    stage.wait_until_quiet()
    assert set(stage.executions().values()) == {1}, stage.executions()
    slots = stage.slots("each second")
    assert slots == grid(1, slots[0] - timedelta(seconds=1), slots[-1])
    counted = {name: count(stage, name) for name in ("off", "once", "missed", "clocked")}
    assert counted == {"off": 0, "once": 1, "missed": 1, "clocked": 1}
    # The slot is the one that the schedule names, not the time at which a beat looked.
    assert stage.slots("clocked") == [at]
    ((missed, times),) = stage.executions("missed").items()
    assert (missed[1].minute, missed[1].second, times) == (minute, 0, 1)
    assert since - timedelta(hours=1) < missed[1] < now()
    # There were copies: each beat publishes all.
    assert stage.ledger.counts()["duplicate"] > len(slots)
    told = script(project, "print([t.enabled for t in PeriodicTask.objects.filter(name='once')])")
    assert told == "[False]\n"


ROWS = """
from celery import Celery
from celery_idem.contrib.django_celery_beat import DatabaseScheduler, ModelEntry
app = Celery("shop")
app.conf.idem_database_url = "sqlite:///unused.sqlite3"
scheduler = DatabaseScheduler(app, lazy=True)

def load(name):
    return ModelEntry(PeriodicTask.objects.get(name=name), app=app)

def edit(name, **values):
    row = PeriodicTask.objects.get(name=name)
    for field, value in values.items():
        setattr(row, field, value)
    row.save()

def show(name):
    row = PeriodicTask.objects.get(name=name)
    print(name, row.enabled, row.total_run_count, row.last_run_at is None, row.args)

task("often", interval=second)
task("once", interval=second, one_off=True)
task("again", interval=second, one_off=True)
task("off", interval=second)
"""


def test_what_beats_write_undoes_no_edit(sqlite_url: str, tmp_path: Path) -> None:
    """Entries that were loaded before somebody saved the row."""
    said = script(
        Project(tmp_path, sqlite_url),
        ROWS
        + """
for name, values in (
    ("often", {"args": "[2]"}),
    ("off", {"enabled": False}),
    ("once", {}),
    ("again", {"args": "[2]"}),
):
    beats = [load(name), load(name)]
    following = [next(beat) for beat in beats]
    if values:
        edit(name, **values)
    for beat in following:
        beat.save()
    for beat in following:
        beat.is_due()
        beat.save()
    show(name)
""",
    )
    assert said.splitlines() == [
        # The edit is there, and when it has run last.
        "often True 1 False [2]",
        # Not said to have run: switched on again, it would be due for a slot of the time between.
        "off False 0 True []",
        # Nor this, which would be switched off again before it has run once more.
        "once False 0 True []",
        # Saved after it was loaded: that is another once, and the beats load it anew.
        "again True 0 True [2]",
    ]


def test_all_beats_find_the_one_slot_of_what_runs_once(sqlite_url: str, tmp_path: Path) -> None:
    said = script(
        Project(tmp_path, sqlite_url),
        ROWS
        + """
day = timedelta(days=1)
saved = PeriodicTask.objects.get(name="once").date_changed
for start, ran in ((None, None), (saved + day, None), (saved - day, None), (None, saved - day)):
    PeriodicTask.objects.filter(name="once").update(start_time=start, last_run_at=ran)
    slots = {scheduler.slot_of(load("once"), saved + n * day) for n in (2, 3)}
    (slot,) = slots
    since = ran or saved
    whole = since.replace(microsecond=0) + timedelta(seconds=1)
    print(slot == (max(start, since) if start else whole))
""",
    )
    assert said.splitlines() == ["True"] * 4


def test_with_the_scheduler_as_it_is_each_beat_counts(
    stage: ContribStage, project: Project
) -> None:
    """What the test above would see without run keys."""
    script(project, "")
    beats = stage.django_beats(3, project, {"beat_scheduler": STOCK, "beat_max_loop_interval": 1})
    script(
        project,
        """
clock = ClockedSchedule.objects.create(clocked_time=datetime.fromisoformat(given["at"]))
task("clocked", clocked=clock, one_off=True)
""",
        at=later(5).isoformat(),
    )
    all_publish(beats, "clocked")
    stage.workers(1, "-P", "solo")
    stage.wait_for_executions(3)
    assert [row.slot for row in stage.effects()] == [None] * 3
