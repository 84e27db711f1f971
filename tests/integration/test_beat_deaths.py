"""Beats that die or stand still in the middle of something, and messages that get lost."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from celery_idem import RunState
from celery_idem.ledger import LeaseCount, Owner
from tests.integration.beat_apps.base import GATE, NAMESPACE
from tests.integration.beat_apps.special import STOP
from tests.integration.beat_stage import APPS, PATIENCE, BeatStage, grid, now
from tests.processes import wait_for
from tests.services import Broker

EVERY = {"task": "beats.note", "schedule": 1}
HASTY = {"beat_scheduler": f"{APPS}.special:Hasty"}


@pytest.fixture
def stage(tmp_path: Path, redis_url: str, postgres_url: str) -> Iterator[BeatStage]:
    """A Redis, a PostgreSQL."""
    with BeatStage(tmp_path, Broker("redis", redis_url), postgres_url, {"e": EVERY}) as made:
        yield made


def wait_for_slots_until(stage: BeatStage, until: datetime, entry: str = "e") -> None:
    """Waits until a slot was executed that is not before `until`."""
    wait_for(
        lambda: any(slot >= until for slot in stage.slots(entry)),
        PATIENCE,
        lambda: f"a slot of {entry} from {until} on: {stage.slots(entry)[-3:]}",
    )


def check(stage: BeatStage, entry: str = "e") -> None:
    """Every slot between the first and the last one, once."""
    slots = stage.slots(entry)
    assert slots == grid(1, slots[0] - timedelta(seconds=1), slots[-1])


def test_a_beat_that_dies_before_the_publish_is_made_up_for(
    stage: BeatStage, tmp_path: Path
) -> None:
    stop = tmp_path / "stop"
    stage.worker("-P", "solo")
    stopping = {"beat_scheduler": f"{APPS}.special:Stopping"}
    victim = stage.beat(settings=stopping, env={STOP: str(stop)})
    stage.wait_for_executions(1)
    stop.touch()
    note = stop.with_suffix(f".{victim.pid}")
    wait_for(note.exists, PATIENCE, "a beat that has recorded a slot and not published it")
    assert stage.states("e")[RunState.SCHEDULED] >= 1
    victim.kill()
    # Nobody was there when it died: those that come make it up, within seconds of their start.
    stage.beats(2)
    left = note.read_text()
    wait_for(
        lambda: left in [run.key.text for run in stage.runs("e") if run.state.final],
        PATIENCE,
        f"the end of {left}, which it left behind",
    )
    wait_for_slots_until(stage, now())
    check(stage)


def test_a_beat_that_stands_still_loses_and_doubles_nothing(
    stage: BeatStage, tmp_path: Path
) -> None:
    stop = tmp_path / "stop"
    stage.worker("-P", "solo")
    stopping = {"beat_scheduler": f"{APPS}.special:Stopping"}
    beats = [stage.beat(settings=stopping, env={STOP: str(stop)}) for _ in range(3)]
    stage.wait_for_executions(2)
    # In whatever it is doing, for longer than the handover.
    for beat in beats[:2]:
        beat.pause()
    wait_for_slots_until(stage, now() + timedelta(seconds=2))
    for beat in beats[:2]:
        beat.resume()
    # Between insert and publish, which another does for it meanwhile.
    stop.touch()
    wait_for(lambda: list(tmp_path.glob("stop.*")), PATIENCE, "one that stands still")
    stop.unlink()
    wait_for_slots_until(stage, now() + timedelta(seconds=2))
    check(stage)


def test_beats_recover_the_runs_of_a_dead_worker(stage: BeatStage, tmp_path: Path) -> None:
    """Without the broker's redelivery, which takes an hour: the lease, and one round of a beat."""
    gate = tmp_path / "gate"
    stage.settings |= {"idem_lease": 3.0}
    env = {GATE: str(gate)}
    victim = stage.worker("-c", "2", module="gated", env=env)
    stage.beats(2)
    wait_for(lambda: len(list(tmp_path.glob("gate.*"))) == 2, PATIENCE, "two bodies")
    begun = {path.read_text() for path in tmp_path.glob("gate.*")}
    victim.kill()
    assert stage.effects() == []
    gate.touch()
    stage.worker("-c", "2", module="gated", env=env)
    wait_for(
        lambda: begun <= {run.key.text for run in stage.runs("e") if run.state.final},
        PATIENCE,
        lambda: f"an end of {begun}: {stage.runs('e')[:3]}",
    )
    check(stage)
    for run in stage.runs("e"):
        if run.key.text in begun:
            assert (run.state, run.fence, run.attempts) == (RunState.SUCCEEDED, 2, 2)
    assert "is in nobody's hands" in stage.logs


def test_lost_messages_are_published_again(stage: BeatStage) -> None:
    """But not those of plain tasks, nor of tasks of which nobody knows that they claim."""
    stage.schedule["p"] = {"task": "beats.plain", "schedule": 1}
    stage.ledger.record_tasks(NAMESPACE, ["beats.note"])
    stage.schedule["u"] = {"task": "beats.unknown", "schedule": 1}
    beats = stage.beats(2, settings=HASTY)
    wait_for(lambda: len(stage.runs("e")) >= 3, PATIENCE, "three slots")
    for beat in beats:
        beat.kill()
    lost = len(stage.runs("e"))
    stage.purge()
    assert stage.is_drained()

    # Beats that know the entries, and have no slots to add; and one that does not know them.
    seldom = {name: {**entry, "schedule": 10**9} for name, entry in stage.schedule.items()}
    stage.beat(settings=HASTY, schedule={})
    stage.beats(2, settings=HASTY, schedule=seldom)
    wait_for(
        lambda: min((run.emit_count for run in stage.runs("e")), default=0) >= 2,
        PATIENCE,
        lambda: f"two publishes of each: {stage.runs('e')}",
    )
    stage.worker("-P", "solo")
    stage.wait_for_executions(lost, "e")
    stage.wait_until_quiet()
    check(stage)
    assert len(stage.effects("e")) == lost
    assert stage.effects("p") == []
    assert set(stage.states("p")) == set(stage.states("u")) == {RunState.EMITTED}
    counts = [run.emit_count for run in stage.runs("e")]
    assert max(counts) <= 6, "ever later, and not once a second"


def test_leases_of_a_killed_worker_are_buried(stage: BeatStage) -> None:
    """By a beat, though no message of what it owned comes again."""
    lasts = {"idem_lease": 2}
    worker = stage.worker("-P", "solo", settings=lasts)
    beat = stage.beat(settings=lasts)
    stage.wait_for_executions(1)
    worker.kill()
    stage.ledger.register("live", Owner("other", "host", 1, "parent"), 600.0)
    wait_for(
        lambda: "worker" not in stage.ledger.lease_counts(),
        PATIENCE,
        lambda: f"no lease of the worker: {stage.ledger.lease_counts()}",
    )
    assert stage.ledger.lease_counts()["other"] == LeaseCount(1, 0)
    assert beat.running
