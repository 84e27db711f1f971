"""What is decided about slots, with real beats and workers: pauses, deadlines, jitter, catch-up."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from celery.schedules import schedule
from sqlalchemy import update

from celery_idem import RunState
from celery_idem.keys import RunKey, iso
from celery_idem.ledger.rows import entry_name
from celery_idem.ledger.schema import entries
from celery_idem.run import TOO_LATE
from celery_idem.slots import fingerprint as print_of
from tests.integration.beat_apps.base import NAMESPACE
from tests.integration.beat_apps.special import OFF
from tests.integration.beat_stage import APPS, PATIENCE, BeatStage, grid, now
from tests.processes import python_path, wait_for
from tests.services import Broker

EVERY = {"task": "beats.note", "schedule": 1}
#: Seconds within which all beats have seen a pause: one, and what a loaded machine takes.
SEEN = 3.0


@pytest.fixture
def stage(tmp_path: Path, redis_url: str, postgres_url: str) -> Iterator[BeatStage]:
    """A Redis, a PostgreSQL, an entry of each second, and one that tells what beats have seen."""
    schedule = {"e": EVERY, "beacon": EVERY}
    with BeatStage(tmp_path, Broker("redis", redis_url), postgres_url, schedule) as made:
        yield made


def wait_for_beacon(stage: BeatStage, seconds: float = 1.0) -> None:
    """Waits until a slot was executed that has come so many seconds after this moment."""
    moment = now() + timedelta(seconds=seconds)
    wait_for(
        lambda: any(slot > moment for slot in stage.slots("beacon")),
        PATIENCE,
        lambda: f"a slot after {moment}: {stage.slots('beacon')[-3:]}",
    )


def test_a_paused_entry_stands_still(stage: BeatStage) -> None:
    stage.worker("-P", "solo")
    stage.beats(2)
    stage.wait_for_executions(2, "e")
    paused = stage.ledger.pause(NAMESPACE, "e").paused_at
    wait_for_beacon(stage, 5.0)
    # One that starts in between knows it at once.
    stage.beats(1)
    wait_for_beacon(stage, 2.0)
    ended = stage.ledger.resume(NAMESPACE, "e")
    assert ended is not None
    assert ended.resumed_at is not None
    resumed = ended.resumed_at
    wait_for(lambda: [s for s in stage.slots("e") if s > resumed], PATIENCE, "a slot after it")
    wait_for_beacon(stage)
    stage.wait_until_quiet()
    seen = paused + timedelta(seconds=SEEN)
    assert [slot for slot in stage.slots("e") if seen < slot <= resumed] == []
    after = [slot for slot in stage.slots("e") if slot > resumed]
    assert after == grid(1, resumed, after[-1])
    beacons = stage.slots("beacon")
    assert beacons == grid(1, beacons[0] - timedelta(seconds=1), beacons[-1])


def test_a_failed_run_pauses_its_entry(stage: BeatStage) -> None:
    stage.schedule["bad"] = {"task": "beats.fail", "schedule": 1, "pause_on_failure": True}
    stage.worker("-P", "solo")
    stage.beats(2)
    name = entry_name(NAMESPACE, "bad")
    wait_for(lambda: name in stage.ledger.pauses(NAMESPACE), PATIENCE, "a pause")
    pause = stage.ledger.pauses(NAMESPACE)[name]
    assert pause.note == "ValueError: the bank is closed"
    wait_for_beacon(stage, 5.0)
    runs = stage.runs("bad")
    assert runs[0].state is RunState.FAILED
    assert pause.paused_by == f"run {runs[0].key}"
    assert max(run.key.slot for run in runs) < pause.paused_at + timedelta(seconds=SEEN)
    assert stage.ledger.pauses(NAMESPACE).keys() == {name}
    assert "is paused by run" in stage.logs


def test_a_slot_is_not_started_after_its_deadline(stage: BeatStage) -> None:
    """Its message waits for a worker, and no beat is there that could decide."""
    stage.schedule["short"] = {"task": "beats.note", "schedule": 1, "start_deadline": 2}
    beats = stage.beats(2)
    wait_for(lambda: len(stage.runs("short")) >= 3, PATIENCE, "slots")
    for beat in beats:
        beat.kill()
    last = stage.runs("short")[-1].deadline
    assert last is not None
    wait_for(lambda: now() > last, PATIENCE, "the last deadline")
    stage.worker("-P", "solo")
    published = len(stage.runs("beacon"))
    stage.wait_for_executions(published - 1, "beacon")
    wait_for(stage.is_drained, PATIENCE, "the end of all messages")
    # A last one may have been recorded, and not published.
    wait_for(lambda: stage.states("short")[RunState.SCHEDULED] <= 1, PATIENCE, "an end of each")
    stage.beats(1)
    stage.wait_until_quiet()
    # Those of the seconds after the beats' death may still be in time.
    skipped = [run for run in stage.runs("short") if run.deadline and run.deadline <= last]
    assert {(run.state, run.error) for run in skipped} == {(RunState.SKIPPED, TOO_LATE)}
    assert {run.key.slot for run in skipped}.isdisjoint(stage.slots("short"))


def test_a_slot_that_is_started_in_time_runs(stage: BeatStage) -> None:
    stage.schedule["short"] = {"task": "beats.note", "schedule": 1, "start_deadline": 30}
    stage.worker("-P", "solo")
    stage.beats(2)
    stage.wait_for_executions(3, "short")
    slots = stage.slots("short")
    assert slots == grid(1, slots[0] - timedelta(seconds=1), slots[-1])
    assert stage.states("short")[RunState.SKIPPED] == 0


def test_starts_are_spread_and_slots_are_not(stage: BeatStage) -> None:
    """Whichever beat publishes, and although one of them dies."""
    stage.schedule["spread"] = {"task": "beats.note", "schedule": 1, "jitter": 4}
    stage.worker("-c", "2")
    first, *_ = stage.beats(3)
    stage.wait_for_executions(2, "spread")
    first.kill()
    stage.wait_for_executions(8, "spread")
    wait_for(lambda: all(run.state.final for run in stage.runs("spread")[:6]), PATIENCE, "six ends")
    slots = stage.slots("spread")
    assert len(slots) == len(set(slots))
    runs = stage.runs("spread")[:6]
    assert [run.key.slot for run in runs] == grid(
        1, runs[0].key.slot - timedelta(seconds=1), runs[-1].key.slot
    )
    for run in runs:
        assert run.started_at is not None
        # A start that is less than a second away is now.
        assert run.started_at - run.key.slot >= timedelta(seconds=4 * run.key.part() - 1)


ASTRAY = {"beat_scheduler": f"{APPS}.special:Astray"}


def idem(stage: BeatStage, *words: str) -> subprocess.Popen[str]:
    """``celery idem ...``, which was started."""
    command = [sys.executable, "-m", "celery", "-A", f"{APPS}.app", "idem", *words]
    env = {**os.environ, **stage.env(), "PYTHONPATH": python_path()}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=env, text=True, stdout=pipe, stderr=pipe)


def health(stage: BeatStage, *options: str) -> int:
    """The exit status of ``celery idem health``."""
    with idem(stage, "health", *options) as command:
        command.communicate(timeout=PATIENCE)
        return int(command.returncode)


@pytest.mark.sample("300")
@pytest.mark.parametrize("ahead", [300, -300])
def test_a_beat_whose_clock_is_off_emits_nothing(
    stage: BeatStage, tmp_path: Path, ahead: int
) -> None:
    off = tmp_path / "off"
    off.write_text(str(ahead))
    stage.worker("-P", "solo")
    beat = stage.beat(settings=ASTRAY, env={OFF: str(off)})
    wait_for(lambda: "nothing is emitted from here until they agree" in beat.log, PATIENCE, "that")
    # Another one, which does not mind, does the work meanwhile.
    (other,) = stage.beats(1)
    wait_for_beacon(stage, 3.0)
    assert "Sending due task" not in beat.log
    assert [live.pid for live in stage.ledger.live_beats(NAMESPACE)] == [other.pid]
    other.kill()
    off.write_text("0")
    wait_for_beacon(stage)
    assert "its clock agrees with the database's" in beat.log
    # Wrong again: noticed before anything is emitted.
    off.write_text(str(ahead))
    wait_for(lambda: beat.log.count("nothing is emitted from here") == 2, PATIENCE, "that again")
    assert max(run.key.slot for run in stage.runs("e")) <= now()
    assert "Traceback" not in beat.log


def test_a_beat_that_hangs_is_not_healthy(stage: BeatStage, tmp_path: Path) -> None:
    env = {OFF: str(tmp_path / "off")}
    beats = [stage.beat(settings=ASTRAY, env=env) for _ in range(2)]
    wait_for(lambda: health(stage, "--beats", "2", "--here") == 0, PATIENCE, "both")
    beats[0].pause()
    wait_for(lambda: health(stage, "--beats", "2") == 1, PATIENCE, "one is missed")
    wait_for(lambda: health(stage) == 0, PATIENCE, "the other one")
    beats[0].resume()
    wait_for(lambda: health(stage, "--beats", "2") == 0, PATIENCE, "both")
    for beat in beats:
        beat.stop()
    # They have told so when they ended.
    assert stage.ledger.live_beats(NAMESPACE) == []
    assert health(stage) == 1


def test_backfills_and_beats_run_each_slot_once(stage: BeatStage) -> None:
    """Two backfills of one period at a time, while beats catch up a part of it."""
    stage.schedule["hourly"] = {"task": "beats.note", "schedule": 3600, "catchup": "all"}
    stage.worker("-P", "solo")
    (first,) = stage.beats(1)
    wait_for_beacon(stage)
    first.kill()
    stage.set_active_since(now() - timedelta(days=3))
    begin = now() - timedelta(hours=60, minutes=1)
    period = ("--from", begin.isoformat(), "--to", (now() - timedelta(minutes=2)).isoformat())
    commands = [idem(stage, "backfill", "hourly", *period) for _ in range(2)]
    stage.beats(2)
    for command in commands:
        said, trouble = command.communicate(timeout=PATIENCE)
        assert command.returncode == 0, trouble
        assert "of 60 slots emitted" in said or "of 61 slots emitted" in said
    wait_for_beacon(stage)
    expected = grid(3600, begin, now())
    wait_for(
        lambda: set(stage.slots("hourly")) >= set(expected), PATIENCE, lambda: f"{len(expected)}"
    )
    stage.wait_until_quiet()
    assert stage.slots("hourly") == expected


def seen_last(stage: BeatStage, at: datetime, *names: str) -> None:
    """As if no beat had followed these entries since then."""
    stored = [entry_name(NAMESPACE, name) for name in names]
    stage.sql(update(entries).where(entries.c.entry.in_(stored)).values(last_seen_at=at))


def missed(stage: BeatStage, name: str) -> list[str]:
    """What the history says of slots that were left out."""
    found = stage.ledger.history(RunKey.for_entry(NAMESPACE, name))
    return [str(line.detail) for line in found if line.kind == "missed"]


def test_what_an_outage_has_cost_is_told_in_one_line(stage: BeatStage) -> None:
    """Of each entry, by three beats that come back at once; and nothing else is emitted."""
    hourly = {"task": "beats.note", "schedule": 3600}
    stage.schedule |= {
        "latest": hourly,
        "none": {**hourly, "catchup": "none"},
        "all": {**hourly, "catchup": "all"},
        "short": {**hourly, "catchup": "all", "start_deadline": 4 * 3600},
    }
    stage.worker("-P", "solo")
    (first,) = stage.beats(1)
    wait_for_beacon(stage)
    first.kill()
    # It has emitted one of these if the full hour has just passed.
    assert set(stage.executions(entry="latest").values()) <= {1}
    down = now() - timedelta(hours=10, minutes=1)
    stage.set_active_since(down - timedelta(days=3))
    seen_last(stage, down, *stage.schedule)
    began = now()
    stage.beats(3)
    hours = grid(3600, down, began - timedelta(seconds=65))
    wait_for(lambda: set(stage.slots("all")) >= set(hours), PATIENCE, "all that was missed")
    wait_for_beacon(stage, 2.0)
    stage.wait_until_quiet()
    assert set(stage.executions().values()) == {1}
    for name, left_out in (("latest", hours[:-1]), ("none", hours), ("short", hours[:-4])):
        wait_for(lambda name=name: missed(stage, name), PATIENCE, f"a line of {name}")  # type: ignore[misc]
        (line,) = missed(stage, name)
        assert line.startswith(f"slots {iso(left_out[0])} to {iso(left_out[-1])} are left out: ")
        assert not set(stage.slots(name)) & set(left_out)
    assert missed(stage, "all") == []


def test_a_schedule_that_was_put_back_fires_nothing_from_between(stage: BeatStage) -> None:
    """A rolling deploy changes the entry, and another one puts it back."""
    old = {**stage.schedule, "e": {"task": "beats.note", "schedule": 60, "catchup": "all"}}
    new = {**stage.schedule, "e": {"task": "beats.note", "schedule": 7200, "catchup": "all"}}
    stage.worker("-P", "solo")
    first = stage.beats(1, schedule=old) + stage.beats(1, schedule=new)
    wait_for_beacon(stage)
    for beat in first:
        beat.kill()
    # As if the old definition had been followed until five hours ago, and the new one since.
    stage.sql(
        update(entries)
        .where(entries.c.fingerprint == print_of(schedule(timedelta(seconds=60))))
        .values(active_since=now() - timedelta(days=3), last_seen_at=now() - timedelta(hours=5))
    )
    began = now()
    stage.beats(2, schedule=old)
    stage.beats(1, schedule=new)
    wait_for_beacon(stage, 3.0)
    wait_for(lambda: missed(stage, "e"), PATIENCE, "a line about it")
    (line,) = missed(stage, "e")
    assert "are left out: it counts as new since then" in line
    between = [slot for slot in stage.slots("e") if slot < began - timedelta(seconds=60)]
    assert between == []
    assert set(stage.executions().values()) == {1}
