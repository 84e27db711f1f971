"""Schedules of every kind, broken ones, changed ones, and plain tasks beside the others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from itertools import pairwise
from pathlib import Path

import pytest

from celery_idem import RunState
from tests.integration.beat_apps.base import CHANGE
from tests.integration.beat_stage import PATIENCE, BeatStage, grid, now
from tests.processes import wait_for
from tests.services import Broker

NOTE = {"task": "beats.note", "schedule": 1}
PLAIN = {"task": "beats.plain", "schedule": 1}


@pytest.fixture
def stage(tmp_path: Path, redis_url: str, postgres_url: str) -> Iterator[BeatStage]:
    """A Redis, a PostgreSQL."""
    with BeatStage(tmp_path, Broker("redis", redis_url), postgres_url) as made:
        yield made


def test_custom_schedules_and_broken_entries(stage: BeatStage) -> None:
    names = ["fine", "x" * 300, "\u202e\U0001f98a\n"]
    stage.worker("-P", "solo", module="schedules")
    beats = stage.beats(3, module="schedules")
    since = now()
    stage.wait_for_executions(4, "custom")
    for name in names:
        stage.wait_for_executions(3, name)
    # A beat that dies takes no slot of a custom schedule with it.
    beats[0].kill()
    stage.wait_for_executions(len(stage.effects("custom")) + 3, "custom")
    assert set(stage.executions().values()) == {1}
    # The beats agree: a pause is at least what the schedule wants, and no slot is there twice.
    slots = stage.slots("custom")
    pauses = [(after - before).total_seconds() for before, after in pairwise(slots)]
    assert min(pauses) >= 0.7
    assert len({row.pid for row in stage.effects()}) == 1
    for name in names:
        executed = stage.slots(name)
        assert set(grid(1, max(since, executed[0]), executed[-1])) <= set(executed)
    for beat in beats:
        for told in (
            "Entry odd argument is left out: ",
            "Entry zero is left out: ",
            "Entry grim is left out: grim",
            "Entry  is left out: ",
            "Entry NUL \0 is left out: ",
            "surrogates not allowed",
        ):
            assert beat.log.count(told) >= 1, told
        assert "a round has failed" not in beat.log
        assert "does not answer" not in beat.log
    # Whoever has recorded such a slot tells that its message cannot be made.
    told = "".join(beat.log for beat in beats)
    assert "Entry object: the message of beats:object@" in told
    assert "Entry clock: the message of beats:clock@" in told
    assert stage.states("object").keys() == {RunState.SCHEDULED}


def test_the_schedule_of_a_running_beat_is_changed(stage: BeatStage, tmp_path: Path) -> None:
    stage.schedule = {name: {**NOTE, "args": ["before"]} for name in ("goes", "argues", "stays")}
    stage.schedule["hurries"] = {**NOTE, "schedule": 2}
    change = tmp_path / "change"
    stage.worker("-P", "solo", module="changing")
    stage.beats(3, module="changing", env={CHANGE: str(change)})
    for entry in stage.schedule:
        stage.wait_for_executions(2, entry)
    change.touch()
    changed = now()
    for entry in ("comes", "argues", "stays", "hurries"):
        wait_for(
            lambda entry=entry: stage.slots(entry)[-1:] > [changed + timedelta(seconds=4)],  # type: ignore[misc]
            PATIENCE,
            lambda entry=entry: f"{entry} after the change",  # type: ignore[misc]
        )
    assert set(stage.executions().values()) == {1}
    # A change is seen within a second, and no slot of those that did not change is missed.
    seen = changed + timedelta(seconds=2)
    for entry in ("argues", "stays"):
        slots = stage.slots(entry)
        assert slots == grid(1, slots[0] - timedelta(seconds=1), slots[-1])
    details = {row.slot: row.detail for row in stage.effects("argues")}
    assert {"after" in text for slot, text in details.items() if slot > seen.isoformat()} == {True}
    assert stage.slots("goes")[-1] < seen
    assert set(grid(0.5, seen, changed + timedelta(seconds=4))) <= set(stage.slots("hurries"))
    assert "Traceback" not in stage.logs


def test_plain_tasks_are_sent_once_and_switched_off_all_are(stage: BeatStage) -> None:
    stage.schedule = {"plain": PLAIN, "note": NOTE}
    worker = stage.worker("-P", "solo")
    beats = stage.beats(3)
    stage.wait_for_executions(4, "plain")
    stage.wait_for_executions(4, "note")
    assert set(stage.executions().values()) == {1}
    assert set(stage.states("plain")) == {RunState.EMITTED}
    slots = stage.slots("plain")
    assert slots == grid(1, slots[0] - timedelta(seconds=1), slots[-1])
    for process in (worker, *beats):
        process.kill()
    recorded = len(stage.runs())

    # As in plain Celery, each beat sends everything, and the ledger has nothing of it.
    off = {"idem_enabled": False}
    beats = stage.beats(2, settings=off, schedule={"plain": PLAIN})
    sent = Counter({beat.name: 0 for beat in beats})

    def both_send() -> bool:
        for beat in beats:
            sent[beat.name] = beat.log.count("Sending due task plain (beats.plain)")
        return min(sent.values()) >= 2

    wait_for(both_send, PATIENCE, lambda: f"two tasks by each beat: {sent}")
    assert len(stage.runs()) == recorded
    assert "switched off" in beats[0].log
