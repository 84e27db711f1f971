"""Slots whose entry's earlier run goes on, with real beats and workers."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from celery_idem import RunState
from celery_idem.run import RunRow
from tests.integration.beat_apps.base import GATE
from tests.integration.beat_stage import PATIENCE, BeatStage, grid
from tests.processes import wait_for
from tests.services import Broker

GOES_ON = "an earlier run of entry 'e' goes on"


@pytest.fixture
def stage(tmp_path: Path, redis_url: str, postgres_url: str) -> Iterator[BeatStage]:
    with BeatStage(tmp_path, Broker("redis", redis_url), postgres_url, idem_lease=2) as made:
        yield made


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    """The file at which bodies wait; each leaves one beside it when it has begun."""
    return tmp_path / "gate"


def begin(stage: BeatStage, gate: Path, overlap: str, concurrency: int = 4) -> None:
    """Two beats, and workers whose bodies wait."""
    stage.schedule["e"] = {"task": "beats.note", "schedule": 1, "overlap": overlap}
    stage.worker("-c", str(concurrency), module="gated", env={GATE: str(gate)})
    stage.beats(2)
    wait_for(lambda: begun(gate), PATIENCE, "a body that has begun")


def begun(gate: Path) -> dict[int, str]:
    """Which process has begun the body of which run."""
    return {
        int(path.suffix[1:]): path.read_text()
        for path in gate.parent.glob("gate.*")
        if path.read_text()
    }


def of_holder(stage: BeatStage, gate: Path) -> tuple[list[RunRow], list[RunRow]]:
    """The one run whose body has begun, and the others, by their slots.

    It need not be the earliest: of two slots that are claimed at one instant either may be first.
    """
    runs = stage.runs("e")
    found = [run for run in runs if run.key.text in begun(gate).values()]
    assert len(found) == len(begun(gate)) == 1, begun(gate)
    return found, [run for run in runs if run not in found]


def skipped(stage: BeatStage) -> int:
    return stage.states("e")[RunState.SKIPPED]


def test_by_default_both_run(stage: BeatStage, gate: Path) -> None:
    begin(stage, gate, "allow")
    wait_for(lambda: len(begun(gate)) == 4, PATIENCE, lambda: f"four at once: {begun(gate)}")
    gate.touch()
    stage.wait_for_executions(4, "e")
    assert skipped(stage) == 0


def test_a_slot_is_skipped_while_an_earlier_run_goes_on(stage: BeatStage, gate: Path) -> None:
    begin(stage, gate, "skip")
    wait_for(lambda: skipped(stage) >= 3, PATIENCE, "skipped slots")
    (first, *_), others = of_holder(stage, gate)
    assert {run.error for run in others if run.state is RunState.SKIPPED} == {GOES_ON}
    gate.touch()
    stage.wait_for_executions(3, "e")
    slots = stage.slots("e")
    assert slots[0] == first.key.slot
    assert len(slots) == len(set(slots))
    of_all = [run.key.slot for run in stage.runs("e")]
    assert of_all == grid(1, of_all[0] - (of_all[1] - of_all[0]), of_all[-1])


def test_one_slot_waits_and_the_others_are_skipped(stage: BeatStage, gate: Path) -> None:
    begin(stage, gate, "buffer_one")
    wait_for(lambda: skipped(stage) >= 4, PATIENCE, "skipped slots")
    (first, *_), (second, *_) = of_holder(stage, gate)
    assert first.state is RunState.RUNNING
    assert not second.state.final, "the earliest of the others waits"
    reasons = {run.error for run in stage.runs("e") if run.state is RunState.SKIPPED}
    assert reasons == {f"{GOES_ON}, and one waits for it"}
    gate.touch()
    stage.wait_for_executions(3, "e")
    # In the order in which they were executed, which need not be that of their slots.
    executed = [row.slot for row in stage.effects("e")]
    assert executed[:2] == [run.key.slot.isoformat() for run in (first, second)]
    row = next(run for run in stage.runs("e") if run.key == second.key)
    assert (row.state, row.retries, row.attempts) == (RunState.SUCCEEDED, 0, 1)


def test_the_one_that_waits_begins_when_the_one_before_is_dead(
    stage: BeatStage, gate: Path
) -> None:
    """Its process is killed; whichever of the two comes first then, they are never both at it."""
    begin(stage, gate, "buffer_one")
    wait_for(lambda: skipped(stage) >= 1, PATIENCE, "a skipped slot")
    (first, *_), (second, *_) = of_holder(stage, gate)
    ((pid, _),) = begun(gate).items()
    gate.with_suffix(f".{pid}").unlink()
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: begun(gate), PATIENCE, "another body that has begun")
    assert set(begun(gate).values()) <= {first.key.text, second.key.text}
    assert len(begun(gate)) == 1
    gate.touch()
    stage.wait_for_executions(2, "e")
    wait_for(
        lambda: stage.slots("e").count(first.key.slot) == 1, PATIENCE, lambda: str(stage.slots("e"))
    )
    assert len(stage.slots("e")) == len(set(stage.slots("e")))
