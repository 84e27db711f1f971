"""Messages that come too late, or whose task was revoked: only a run that nobody has begun ends."""

from __future__ import annotations

import os
import signal
from datetime import datetime, timedelta, timezone
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from celery.exceptions import TaskRevokedError
from sqlalchemy.engine import make_url

from celery_idem.errors import RunDead
from celery_idem.keys import RunKey
from celery_idem.ledger import NewSlot
from celery_idem.ledger.rows import entry_name
from celery_idem.ledger.schema import leases
from celery_idem.run import TOO_LATE, ClaimRequest, RunState
from tests.integration.conftest import NewStage
from tests.integration.stage import NAMESPACE, PATIENCE, Stage
from tests.processes import Worker, wait_for

#: Seconds.
LEASE = 2.0
#: Seconds within which a message that is sent has been started.
SOON = 4.0
LONG_AGO = datetime(2026, 3, 29, 1, 30, tzinfo=timezone.utc)
EXPIRED = "it was not started before it expired"


@pytest.fixture(scope="module")
def stage(new_stage: NewStage) -> Stage:
    """Redis and PostgreSQL."""
    return new_stage(idem_lease=LEASE)


def revoke(stage: Stage, worker: Worker, task_id: str, **options: Any) -> None:
    """Returns when the worker knows it."""
    node = [worker.node]
    answers = stage.app.control.revoke(
        task_id, destination=node, reply=True, timeout=PATIENCE, limit=1, **options
    )
    assert answers


def kill_owner(stage: Stage, task_id: str) -> None:
    """SIGKILL to the child that executes the body."""
    ((pid,),) = stage.sql("SELECT pid FROM effects WHERE task_id = %s", task_id)
    os.kill(pid, signal.SIGKILL)


def is_skipped(stage: Stage, key: RunKey, task_id: str, reason: str) -> None:
    """The row says so, and the caller is told as by Celery."""
    with pytest.raises(TaskRevokedError):
        stage.get(task_id)
    stage.wait_for_fact(task_id, "task_revoked")
    row = stage.ledger.read(key)
    assert row is not None
    assert (row.state, row.error, row.task_id) == (RunState.SKIPPED, reason, task_id)
    facts = stage.facts(task_id)
    assert (facts["task_revoked"], facts["task_success"], facts["task_failure"]) == (1, 0, 0)


def is_untouched(stage: Stage, task: str, task_id: str) -> None:
    """A copy was a no-op, and the run ends as if it were alone."""
    stage.wait_for_duplicates(task, task_id)
    stage.wait_for_fact(task_id, "run_duplicate")
    assert stage.result(task_id).state == "PENDING"
    stage.open(task_id)
    assert stage.get(task_id) == task_id
    assert stage.wait_for_success(task, task_id).fence == 1
    assert stage.facts(task_id)["task_revoked"] == 0


def test_an_expired_message_skips_its_run(stage: Stage, worker: Worker) -> None:
    task_id = stage.send("note", expires=LONG_AGO)
    is_skipped(stage, stage.key("note", task_id), task_id, EXPIRED)
    assert stage.effects(task_id) == []


@pytest.mark.parametrize("pool", ["solo", "threads", "gevent"])
def test_so_it_does_in_each_pool(stage: Stage, pool: str) -> None:
    worker = stage.worker("watched", "-P", pool, "-Q", pool)
    task_id = stage.send("note", expires=LONG_AGO, queue=pool)
    is_skipped(stage, stage.key("note", task_id), task_id, EXPIRED)
    worker.kill()


def test_an_expired_message_skips_its_slot(stage: Stage, worker: Worker) -> None:
    """The reconciler, which does so at the deadline, has nothing left to do."""
    key = RunKey.for_slot(NAMESPACE, "late", LONG_AGO)
    slot = NewSlot(key, NAMESPACE, "late", "tests.note", deadline=LONG_AGO + timedelta(seconds=1))
    assert stage.ledger.insert_slots([slot], uuid4().hex) == {key}
    task_id = stage.send("note", expires=slot.deadline, **stage.stamped(key, "note", "late"))
    is_skipped(stage, key, task_id, EXPIRED)
    assert stage.effects(task_id) == []


def test_a_skip_that_nobody_announced_is_announced(stage: Stage, worker: Worker) -> None:
    """The child died between the two, and its message is delivered again."""
    task_id = str(uuid4())
    key = stage.key("note", task_id)
    request = ClaimRequest(
        *(key, "tests.note", NAMESPACE, None, task_id, 0, "", uuid4().hex), expired=True
    )
    assert stage.ledger.try_skip(request, EXPIRED)
    stage.send_redelivered(worker, "note", task_id=task_id, expires=LONG_AGO)
    is_skipped(stage, key, task_id, EXPIRED)


def test_an_expired_copy_of_a_run_at_work_is_a_no_op(stage: Stage, worker: Worker) -> None:
    task_id = str(uuid4())
    stage.send("gated", task_id, task_id=task_id)
    stage.wait_for_effect(task_id, "started")
    stage.send("gated", task_id, task_id=task_id, expires=LONG_AGO)
    is_untouched(stage, "gated", task_id)


def test_an_expired_copy_of_a_run_that_has_ended_is_a_no_op(stage: Stage, worker: Worker) -> None:
    task_id = stage.send("fails")
    with pytest.raises(ValueError, match="as asked"):
        stage.get(task_id)
    stage.send("fails", task_id=task_id, expires=LONG_AGO)
    stage.wait_for_duplicates("fails", task_id)
    stage.wait_for_fact(task_id, "run_duplicate")
    assert stage.result(task_id).state == "FAILURE"
    assert stage.facts(task_id)["task_revoked"] == 0
    assert stage.wait_final("fails", task_id).state is RunState.FAILED


def test_a_retry_that_comes_too_late_is_skipped(stage: Stage, worker: Worker) -> None:
    task_id = stage.send("retries", 1, SOON + 1, expires=SOON)
    stage.wait_for_effect(task_id, "try")
    is_skipped(stage, stage.key("retries", task_id), task_id, EXPIRED)
    assert stage.effects(task_id) == ["try"]


def slot() -> RunKey:
    """Of an entry that no other test uses."""
    return RunKey.for_slot(NAMESPACE, f"entry {uuid4()}", LONG_AGO)


def test_a_slot_whose_message_comes_after_its_deadline_is_skipped(
    stage: Stage, worker: Worker
) -> None:
    key = slot()
    task_id = stage.send("note", **stage.stamped(key, "note", start_by=LONG_AGO))
    is_skipped(stage, key, task_id, TOO_LATE)
    assert stage.effects(task_id) == []


def test_a_retry_of_a_slot_that_was_started_in_time_has_no_deadline(
    stage: Stage, worker: Worker
) -> None:
    key = slot()
    start_by = datetime.now(timezone.utc) + timedelta(seconds=SOON)
    stamped = stage.stamped(key, "retries", start_by=start_by)
    task_id = stage.send("retries", 1, SOON + 1, **stamped)
    assert stage.get(task_id) == 1
    row = stage.ledger.read(key)
    assert row is not None
    assert (row.state, row.retries, row.deadline) == (RunState.SUCCEEDED, 1, None)
    assert stage.effects(task_id) == ["try", "try"]


def test_a_hard_time_limit_pauses_the_entry_too(stage: Stage, worker: Worker) -> None:
    """As any failure does: the parent tells of this one."""
    key = slot()
    stamped = stage.stamped(key, "hangs", "limited", pause_on_failure=True)
    stage.send("hangs", **stamped, time_limit=1)
    name = entry_name(NAMESPACE, "limited")
    wait_for(lambda: name in stage.ledger.pauses(NAMESPACE), PATIENCE, lambda: "a pause")
    pause = stage.ledger.pauses(NAMESPACE)[name]
    assert pause.paused_by == f"run {key}"
    assert pause.note == "the hard time limit of 1 seconds was exceeded"


def test_a_run_that_began_in_time_survives_its_owner(stage: Stage, worker: Worker) -> None:
    """The message comes again after it has expired, and is all that is left of the run."""
    task_id = str(uuid4())
    expires = datetime.now(timezone.utc) + timedelta(seconds=SOON)
    stage.send("gated", task_id, task_id=task_id, expires=expires)
    stage.wait_for_effect(task_id, "started")
    wait_for(lambda: datetime.now(timezone.utc) > expires, PATIENCE, "the expiry")
    kill_owner(stage, task_id)
    stage.wait_for_effect(task_id, "started", 2)
    stage.open(task_id)
    assert stage.get(task_id) == task_id
    row = stage.wait_for_success("gated", task_id)
    assert (row.fence, stage.facts(task_id)["task_revoked"]) == (2, 0)


def test_a_revoked_message_skips_its_run(stage: Stage, worker: Worker) -> None:
    task_id = str(uuid4())
    revoke(stage, worker, task_id)
    stage.send("note", task_id=task_id)
    is_skipped(stage, stage.key("note", task_id), task_id, "it was revoked")
    assert stage.effects(task_id) == []


def test_a_revoked_copy_of_a_run_at_work_is_a_no_op(stage: Stage, worker: Worker) -> None:
    task_id = str(uuid4())
    stage.send("gated", task_id, task_id=task_id)
    stage.wait_for_effect(task_id, "started")
    revoke(stage, worker, task_id)
    stage.send("gated", task_id, task_id=task_id)
    is_untouched(stage, "gated", task_id)


def test_a_revoked_run_does_not_survive_its_owner(stage: Stage, worker: Worker) -> None:
    task_id = str(uuid4())
    stage.send("gated", task_id, task_id=task_id)
    stage.wait_for_effect(task_id, "started")
    revoke(stage, worker, task_id)
    kill_owner(stage, task_id)
    row = stage.wait_final("gated", task_id)
    assert (row.state, row.error) == (RunState.DEAD, "its owner is gone, and it was revoked")
    with pytest.raises(RunDead):
        stage.get(task_id)
    assert stage.effects(task_id) == ["started"]


def test_no_process_is_killed_for_a_task_that_waits(stage: Stage, worker: Worker) -> None:
    task_id = stage.send("note", countdown=2)
    wait_for(lambda: task_id in worker.log, PATIENCE, lambda: "the message's arrival")
    revoke(stage, worker, task_id, terminate=True)
    stage.wait_for_fact(task_id, "task_revoked")
    is_skipped(stage, stage.key("note", task_id), task_id, "it was revoked")


def test_a_task_that_is_terminated_before_its_claim_is_skipped(stage: Stage) -> None:
    """Its message is gone: nobody else would end the run."""
    worker = stage.worker("watched", "-c", "1", "-Q", "locked")
    url = make_url(stage.settings["idem_database_url"]).set(drivername="postgresql")
    with psycopg.connect(url.render_as_string(hide_password=False)) as connection:
        connection.execute(f"LOCK TABLE {leases.name} IN ACCESS EXCLUSIVE MODE".encode())
        task_id = stage.send("note", queue="locked")
        inspect = stage.app.control.inspect(destination=[worker.node], limit=1)
        wait_for(lambda: task_id in str(inspect.active()), PATIENCE, lambda: "a child that has it")
        revoke(stage, worker, task_id, terminate=True, signal="KILL")
        with pytest.raises(TaskRevokedError):
            stage.get(task_id)
    row = stage.wait_final("note", task_id)
    assert (row.state, row.error) == (RunState.SKIPPED, "it was revoked and terminated")
    assert stage.effects(task_id) == []
    worker.kill()


def test_what_runs_without_a_claim_is_left_to_celery(new_stage: NewStage) -> None:
    stage = new_stage(idem_unstamped="run")
    worker = stage.worker("watched", "-c", "1")
    task_id = stage.send("note", expires=LONG_AGO)
    with pytest.raises(TaskRevokedError):
        stage.get(task_id)
    assert (stage.effects(task_id), stage.row("note", task_id)) == ([], None)
    worker.kill()


def test_what_may_run_without_a_claim_expires_too(new_stage: NewStage) -> None:
    """Nobody can tell whether it has begun: as in plain Celery."""
    stage = new_stage(ledger="postgresql://nobody@127.0.0.1:1/nowhere")
    worker = stage.worker("watched", "-c", "1")
    task_id = stage.send("unclaimed", expires=LONG_AGO)
    with pytest.raises(TaskRevokedError):
        stage.get(task_id)
    assert stage.effects(task_id) == []
    worker.kill()
