"""The same promises in each of Celery's pools."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest

from celery_idem.run import RunState
from tests.integration.conftest import NewStage
from tests.integration.stage import PATIENCE, Stage
from tests.processes import Worker, wait_for

#: Seconds; short, so that a heartbeat that stops is seen soon.
LEASE = 2.0
POOLS = {
    "prefork": ("-P", "prefork", "-c", "2"),
    "threads": ("-P", "threads", "-c", "8"),
    "gevent": ("-P", "gevent", "-c", "20"),
    "solo": ("-P", "solo"),
}


@pytest.fixture(scope="module")
def stage(new_stage: NewStage) -> Stage:
    """Redis and PostgreSQL."""
    return new_stage(idem_lease=LEASE)


@pytest.fixture(scope="module", params=POOLS)
def worker(stage: Stage, request: pytest.FixtureRequest) -> Any:
    """A worker with this pool; the one before it is gone."""
    worker = stage.worker("watched", *POOLS[request.param])
    yield worker
    worker.kill()


def test_concurrent_tasks_and_their_copies_run_once_each(stage: Stage, worker: Worker) -> None:
    """Forty messages, three copies each, mixed: forty executions, eighty copies recorded."""
    ids = [str(uuid4()) for _ in range(40)]
    for _ in range(3):
        for task_id in ids:
            stage.send("note", "copy", task_id=task_id)
    for task_id in ids:
        stage.wait_for_duplicates("note", task_id, 2)
        assert stage.get(task_id) == "copy"
        assert stage.effects(task_id) == ["note"]
        row = stage.wait_final("note", task_id)
        assert (row.state, row.fence) == (RunState.SUCCEEDED, 1)


def test_failures_and_retries_end_as_usual(stage: Stage, worker: Worker) -> None:
    """A body that fails and one that asks for two retries, several at once."""
    failing = [stage.send("fails") for _ in range(5)]
    retrying = [stage.send("autoretry", 2) for _ in range(5)]
    for task_id in failing:
        with pytest.raises(ValueError, match="as asked"):
            stage.get(task_id)
        assert stage.wait_final("fails", task_id).state is RunState.FAILED
    for task_id in retrying:
        assert stage.wait_for_success("autoretry", task_id).fence == 3
        assert stage.effects(task_id) == ["try"] * 3


def test_each_concurrent_body_has_a_lease_of_its_own(stage: Stage, worker: Worker) -> None:
    """Bodies that wait side by side do not share a lease, nor see each other's run."""
    at_once = 1 if "solo" in worker.log.partition("ready.")[0] else 2
    gate = str(uuid4())
    ids = [stage.send("gated_bound", gate) for _ in range(at_once)]
    for task_id in ids:
        stage.wait_for_effect(task_id, "started")
    leases = {row.lease_id for row in (stage.row("gated_bound", one) for one in ids) if row}
    assert len(leases) == at_once
    stage.open(gate)
    for task_id in ids:
        assert stage.get(task_id) == stage.key("gated_bound", task_id).text


@pytest.mark.sample("prefork", "threads")
def test_leases_are_renewed_while_a_body_computes(stage: Stage, worker: Worker) -> None:
    """A body that never pauses, for longer than a lease, stays the owner of its run."""
    file = stage.directory / str(uuid4())
    task_id = stage.send("spins", str(file))
    stage.wait_for_effect(task_id, "started")
    row = stage.row("spins", task_id)
    assert row is not None
    assert row.lease_id is not None
    lease_id = row.lease_id
    ends = [end_of(stage, lease_id)]

    def renewed_twice() -> bool:
        ends.append(end_of(stage, lease_id))
        return ends[-1] > ends[0] + timedelta(seconds=1.5 * LEASE)

    wait_for(renewed_twice, PATIENCE, lambda: f"renewals of {lease_id}: {ends}")
    assert stage.effects(task_id) == ["started"]
    file.touch()
    stage.wait_for_effect(task_id, "ended")
    row = stage.wait_final("spins", task_id)
    assert (row.state, row.fence, row.lease_id) == (RunState.SUCCEEDED, 1, lease_id)


def end_of(stage: Stage, lease_id: str) -> datetime:
    """When the lease expires if it is not renewed."""
    rows = stage.sql("SELECT expires_at FROM celery_idem_leases WHERE id = %s", lease_id)
    assert rows, f"lease {lease_id} is gone"
    end: datetime = rows[0][0]
    return end


def test_a_warm_shutdown_deletes_all_leases(stage: Stage, worker: Worker) -> None:
    """What the worker owned is free at once, and its log has no traceback but a body's."""
    stage.get(stage.send("note"))
    assert stage.sql("SELECT 1 FROM celery_idem_leases LIMIT 1") == [(1,)]
    assert worker.stop() == 0
    assert stage.sql("SELECT kind, pid FROM celery_idem_leases") == []
    blocks = worker.log.split("Traceback (most recent call last):")[1:]
    assert [b for b in blocks if "as asked" not in b and "failure " not in b] == []
