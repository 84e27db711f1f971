"""What processes share, and what they must not: connections, leases, ends."""

from __future__ import annotations

from typing import Any

import pytest

from celery_idem.run import RunState
from tests.integration.conftest import NewStage
from tests.integration.stage import PATIENCE, Stage
from tests.processes import wait_for

LEASE = 2.0


@pytest.fixture(scope="module")
def stage(new_stage: NewStage) -> Stage:
    """Redis and PostgreSQL."""
    return new_stage(idem_lease=LEASE)


def leases(stage: Stage) -> dict[int, set[str]]:
    """The ids of leases in the ledger by the process that registered them."""
    found: dict[int, set[str]] = {}
    for pid, lease_id in stage.sql("SELECT pid, id FROM celery_idem_leases"):
        found.setdefault(pid, set()).add(lease_id)
    return found


def test_children_inherit_nothing(stage: Stage) -> None:
    """A parent that used the ledger before the fork: each child has its own of everything."""
    worker = stage.worker("forked", "-c", "2")
    before = stage.get(stage.send("parent"))
    assert before["pid"] == worker.pid
    assert stage.state("whoami", f"parent-{worker.pid}") is RunState.SUCCEEDED
    ids = [stage.send("whoami", "fork") for _ in range(2)]
    for task_id in ids:
        stage.wait_for_effect(task_id, "started")
    stage.open("fork")
    children = [stage.get(task_id) for task_id in ids]
    everybody = [before, *children]
    for what in ("pid", "backend", "lease"):
        assert len({one[what] for one in everybody}) == 3, f"{what} is shared: {everybody}"
    for child in children:
        assert leases(stage)[child["pid"]] == {child["lease"]}
    # The parent's connection still works: its heartbeat renews its lease.
    wait_for_renewal(stage, before["lease"])
    assert worker.stop() == 0
    assert leases(stage) == {}
    assert "Traceback" not in worker.log


def wait_for_renewal(stage: Stage, lease_id: str) -> None:
    statement = "SELECT expires_at FROM celery_idem_leases WHERE id = %s"
    (start,) = stage.sql(statement, lease_id)
    wait_for(lambda: stage.sql(statement, lease_id) > [start], PATIENCE, "a renewal")


def test_the_run_of_a_killed_child_goes_on_long_before_its_lease_ends(new_stage: NewStage) -> None:
    """The parent has seen it die. Also where another worker gets the message that it returns."""
    stage = new_stage(idem_lease=10 * PATIENCE)
    for _ in range(2):
        stage.worker("watched", "-c", "1")
    task_id = stage.send("dies", 1)
    row = stage.wait_for_success("dies", task_id)
    assert (row.fence, row.attempts) == (2, 2)
    facts = stage.facts(task_id)
    assert (facts["run_taken_over"], facts["run_put_back"], facts["task_success"]) == (1, 0, 1)


def test_a_child_that_is_replaced_deletes_its_lease(stage: Stage) -> None:
    """max_tasks_per_child: no lease of an ended child is left to expire."""
    worker = stage.worker("forked", "-c", "1", "--max-tasks-per-child", "1")
    told: list[Any] = [stage.get(stage.send("whoami")) for _ in range(2)]
    assert len({one["pid"] for one in told}) == 2
    assert len({one["backend"] for one in told}) == 2
    old = {one["lease"] for one in told}
    statement = "SELECT id FROM celery_idem_leases WHERE id = ANY(%s)"
    # Renewed by nobody, they would still be in the table: only a takeover buries them.
    wait_for(lambda: not stage.sql(statement, list(old)), PATIENCE, lambda: str(leases(stage)))
    assert worker.stop() == 0
    assert leases(stage) == {}
    assert "Traceback" not in worker.log


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_warm_shutdown_lets_a_body_end(stage: Stage, pool: str) -> None:
    """Its lease is renewed until it has ended, longer than a lease after the request to stop."""
    worker = stage.worker("watched", "-P", pool, "-c", "2")
    gate = f"shutdown {pool}"
    task_id = stage.send("gated", gate)
    stage.wait_for_effect(task_id, "started")
    worker.terminate()
    wait_for(lambda: "Warm shutdown" in worker.log, PATIENCE, "the request to stop")
    row = stage.row("gated", task_id)
    assert row is not None
    assert row.lease_id is not None
    for _ in range(4):
        wait_for_renewal(stage, row.lease_id)
    stage.open(gate)
    assert stage.get(task_id) == gate
    assert worker.stop() == 0
    row = stage.wait_final("gated", task_id)
    assert (row.state, row.fence) == (RunState.SUCCEEDED, 1)
    assert leases(stage) == {}
