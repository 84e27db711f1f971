"""Three beats with RedBeat's schedule, and no lock: each slot is executed once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path

import pytest
import redis

from tests.contrib.project import ContribStage
from tests.integration.beat_stage import PATIENCE, grid, now
from tests.processes import Beat, wait_for
from tests.services import Broker

pytest.importorskip("redbeat")

OURS = "celery_idem.contrib.redbeat:RedBeatScheduler"


@pytest.fixture
def stage(tmp_path: Path, redis_url: str, postgres_url: str) -> Iterator[ContribStage]:
    """A Redis for messages and schedule, and a database."""
    # Not to come while the test runs.
    minute = (now().minute - 20) % 60
    with ContribStage(
        tmp_path,
        Broker("redis", redis_url),
        postgres_url,
        {
            "each second": {"task": "contrib.note", "schedule": 1, "args": ["first"]},
            "each hour": {"task": "contrib.note", "schedule": {"minute": str(minute)}},
        },
        beat_scheduler=OURS,
        redbeat_redis_url=redis_url,
        redbeat_redis_options={},
        beat_max_loop_interval=1,
    ) as made:
        yield made


def set_last_run(client: redis.Redis, name: str, moment: datetime) -> None:
    """As whoever edits the schedule in Redis may do."""
    fields = ("year", "month", "day", "hour", "minute", "second", "microsecond")
    value = {"__type__": "datetime", "timezone": "UTC"}
    meta = {"last_run_at": {**value, **{field: getattr(moment, field) for field in fields}}}
    client.hset(f"redbeat:{name}", "meta", json.dumps(meta))
    client.zadd("redbeat::schedule", {f"redbeat:{name}": 0})


def is_published(beats: list[Beat], times: int) -> bool:
    """Whether the entry was published so often, by whichever beat."""
    return (
        sum(beat.log.count("Sending due task each hour (contrib.note) as") for beat in beats)
        >= times
    )


def test_three_beats_execute_each_slot_once(stage: ContribStage, redis_url: str) -> None:
    client = redis.Redis.from_url(redis_url, decode_responses=True)
    stage.workers(1, "-P", "solo")
    beats = stage.beats(3)
    stage.wait_for_executions(4, "each second")
    assert stage.effects("each hour") == []
    # As long as they are due again and again, every beat publishes the same slot.
    for times in range(1, 4):
        set_last_run(client, "each hour", now() - timedelta(hours=3))
        wait_for(partial(is_published, beats, times), PATIENCE, f"published {times} times")
    # RedBeat's standby would wait for its lock; here nobody waits.
    beats.pop().kill()
    stage.wait_for_executions(len(stage.effects("each second")) + 3, "each second")
    # A definition that is edited in Redis.
    definition = json.loads(client.hget("redbeat:each second", "definition") or "{}")
    assert definition["schedule"] == {"__type__": "interval", "every": 1.0, "relative": False}
    assert definition["options"] == {}
    definition["args"] = ["second"]
    client.hset("redbeat:each second", "definition", json.dumps(definition))
    wait_for(
        lambda: any("second" in row.detail for row in stage.effects("each second")),
        PATIENCE,
        "the change is executed",
    )
    for beat in beats:
        beat.stop()
    wait_for(stage.is_drained, PATIENCE, "the messages are taken")
    stage.wait_until_quiet()
    assert set(stage.executions().values()) == {1}, stage.executions()
    slots = stage.slots("each second")
    assert slots == grid(1, slots[0] - timedelta(seconds=1), slots[-1])
    ((_, hour),) = stage.executions("each hour")
    assert hour.second == 0
    assert timedelta(0) < now() - hour < timedelta(hours=1)
    assert stage.ledger.counts()["duplicate"] >= 2
    client.close()


def test_a_lock_that_is_asked_for_is_kept(stage: ContribStage) -> None:
    first = stage.beats(1, settings={"redbeat_lock_key": "mine"})[0]
    wait_for(lambda: "Sending due task" in first.log, PATIENCE, "the first beat works")
    second = stage.beat(settings={"redbeat_lock_key": "mine"})
    wait_for(lambda: "beat: Starting" in second.log, PATIENCE, "the second beat waits")
    first.stop()
    wait_for(lambda: "Sending due task" in second.log, PATIENCE, "the second beat takes over")
    assert "beat: Acquired lock" in second.log
