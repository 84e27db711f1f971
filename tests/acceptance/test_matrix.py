"""The main promise: three beats and two workers, one execution per slot, none missed.

On each database and each broker, while a beat is killed and started again. The slots that must have
been executed are computed from the grid alone.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from tests.integration.beat_stage import PATIENCE, BeatStage, Slot, grid, now
from tests.processes import CeleryProcess, wait_for
from tests.services import Broker

#: Seconds between two slots of each entry; many of them are due in one moment.
EVERY = {"often": 0.5, "seconds": 1.0, "odd": 1.7, **{f"many{n}": 5.0 for n in range(40)}}
SCHEDULE = {name: {"task": "beats.note", "schedule": every} for name, every in EVERY.items()}

#: Seconds of what is no sample any more.
LONG = 60.0


def due(after: datetime, until: datetime) -> set[Slot]:
    """The slots of all entries in that time."""
    return {(name, slot) for name, every in EVERY.items() for slot in grid(every, after, until)}


@pytest.mark.timeout(300)
def test_each_slot_is_executed_once(
    database_url: str, broker: Broker, tmp_path: Path, acceptance_seconds: float
) -> None:
    # A short sample forks its processes from one that has imported the libraries.
    warm = acceptance_seconds < LONG
    with BeatStage(tmp_path, broker, database_url, SCHEDULE, warm=warm) as stage:
        workers = [stage.worker("--concurrency", "2") for _ in range(2)]
        beats = stage.beats(3)
        for worker in workers:
            worker.ready()
        wait_for(stage.effects, PATIENCE, "a first execution")
        began = now()
        until = began + timedelta(seconds=acceptance_seconds)
        sleep_until(began + timedelta(seconds=acceptance_seconds / 3))
        beats[0].kill()
        sleep_until(began + timedelta(seconds=2 * acceptance_seconds / 3))
        beats[0].start()
        sleep_until(until)
        expected = due(began, until)
        # The beat that was killed may have taken slots with it, which another publishes again.
        wait_for(
            lambda: expected <= stage.executions().keys(),
            PATIENCE,
            lambda: f"{sorted(expected - stage.executions().keys())}",
        )
        beats[0].ready()
        end(beats)
        wait_for(stage.is_drained, PATIENCE, "an empty queue")
        end(workers)
        check(stage.executions(), until)
        assert "Traceback" not in stage.logs


def check(executions: Counter[Slot], until: datetime) -> None:
    """Each slot from the first one on exactly once, and nothing else."""
    first = min(slot for _, slot in executions)
    last = max(slot for _, slot in executions)
    just_before = first - timedelta(microseconds=1)
    assert set(executions.values()) == {1}, executions
    assert due(just_before, until) <= executions.keys() <= due(just_before, last)


def end(processes: Sequence[CeleryProcess]) -> None:
    """Stops beats or workers, all at the same time."""
    for process in processes:
        process.terminate()
    wait_for(lambda: not any(process.running for process in processes), PATIENCE, "their end")
    assert [process.returncode for process in processes] == [0] * len(processes)


def sleep_until(moment: datetime) -> None:
    """The sample lasts as long as it lasts."""
    time.sleep(max(0.0, (moment - now()).total_seconds()))
