"""What was missed while no beat ran: by policy, within the window, once."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.integration.beat_stage import PATIENCE, BeatStage, grid, now
from tests.processes import wait_for
from tests.services import Broker

HOUR = 3600
OPTIONS: dict[str, dict[str, Any]] = {
    "latest": {"catchup": "latest"},
    "setting": {},
    "all": {"catchup": "all"},
    "window": {"catchup": "all", "catchup_window": 4 * HOUR},
    "none": {"catchup": "none"},
    "short": {"catchup": "latest", "catchup_window": 0},
}


@pytest.fixture
def stage(tmp_path: Path, redis_url: str, postgres_url: str) -> Iterator[BeatStage]:
    """A Redis, a PostgreSQL, entries that are due each hour, but for half an hour not now."""
    hourly = {"minute": str(opposite(now()))}
    schedule = {
        # Tells that beats have looked at everything.
        "beacon": {"task": "beats.note", "schedule": 1},
        **{
            name: {"task": "beats.note", "schedule": hourly, **options}
            for name, options in OPTIONS.items()
        },
    }
    if find_spec("ephem"):
        schedule["sun"] = {
            "task": "beats.note",
            "schedule": ["solar_noon", 52.5, 13.4],
            "catchup": "all",
            "catchup_window": 2.9 * 24 * HOUR,
        }
    with BeatStage(tmp_path, Broker("redis", redis_url), postgres_url, schedule) as made:
        yield made


def opposite(moment: datetime) -> int:
    """The minute that is half an hour away from a moment."""
    return (moment.minute + 30) % 60


def missed(stage: BeatStage, hours: int) -> list[datetime]:
    """The slots of the hourly entries that lie at most so many hours in the past."""
    past = timedelta(minutes=int(stage.schedule["all"]["schedule"]["minute"]))
    begin = now() - timedelta(hours=hours)
    return [slot + past for slot in grid(HOUR, begin - past, now() - past)]


def wait_for_beacon(stage: BeatStage) -> None:
    """Waits until a slot was executed that has come after this moment."""
    moment = now() + timedelta(seconds=1)
    wait_for(
        lambda: any(slot > moment for slot in stage.slots("beacon")),
        PATIENCE,
        lambda: f"a slot after {moment}: {stage.slots('beacon')[-3:]}",
    )


def test_missed_slots_are_caught_up_by_policy(stage: BeatStage) -> None:
    stage.worker("-P", "solo")
    first = stage.beats(3)
    wait_for_beacon(stage)
    for beat in first:
        beat.kill()
    # A first deploy: nothing from before it.
    assert {run.entry for run in stage.runs()} == {"beacon"}

    # As if they had stood still for days; now all of them start at once.
    stage.set_active_since(now() - timedelta(days=3))
    started = now()
    stage.beats(3, settings={"idem_catchup_window": 10 * HOUR})
    stage.wait_for_executions(10, "all")
    wait_for_beacon(stage)
    assert len(missed(stage, 10)) == 10
    assert [run.key.slot for run in stage.runs("all")] == missed(stage, 10)
    assert [run.key.slot for run in stage.runs("window")] == missed(stage, 4)
    assert [run.key.slot for run in stage.runs("latest")] == missed(stage, 1)
    assert [run.key.slot for run in stage.runs("setting")] == missed(stage, 1)
    assert stage.runs("none") == stage.runs("short") == []
    # The slots of the last minute are due in any case, and nothing before them.
    beacons = stage.slots("beacon")
    late = grid(1, started - timedelta(seconds=55), started)
    assert set(late) < set(beacons)
    assert min(beacons) > started - timedelta(seconds=60)
    sun = [run.key.slot for run in stage.runs("sun")]
    days = [round((after - before) / timedelta(hours=24), 2) for before, after in pairwise(sun)]
    assert set(days) <= {1.0}
    assert len(sun) in ({2, 3} if find_spec("ephem") else {0})
    expected = [*missed(stage, 10), *missed(stage, 4), *missed(stage, 1), *missed(stage, 1), *sun]
    wait_for(lambda: len(stage.effects()) >= len(expected) + len(beacons), PATIENCE, "all executed")
    hourly = [slot for entry, slot in stage.executions().elements() if entry != "beacon"]
    assert sorted(hourly) == sorted(expected)
    assert set(stage.executions().values()) == {1}
    assert "Traceback" not in stage.logs
