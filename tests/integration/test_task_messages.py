"""What an arriving message gets, row by row, from a real worker."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any
from uuid import uuid4

import pytest

from celery_idem.errors import RunDead
from celery_idem.keys import RunKey
from celery_idem.ledger import NewSlot, Owner, Retry
from celery_idem.run import ClaimOutcome, ClaimRequest, RunState
from tests.integration.stage import NAMESPACE, PATIENCE, Stage
from tests.processes import Worker, wait_for

SLOT = datetime(2026, 3, 29, 1, 30, tzinfo=timezone.utc)


def slot_key(name: str) -> RunKey:
    return RunKey.for_slot(NAMESPACE, name, SLOT)


def assert_untouched(stage: Stage, worker: Worker, task_id: str, times: int = 1) -> None:
    """The copies left the result and Celery's signals alone, and one line in the log each."""
    stage.wait_for_fact(task_id, "run_duplicate", times)
    facts = stage.facts(task_id)
    assert facts["run_duplicate"] == times
    assert facts["task_success"] + facts["task_failure"] <= 1
    lines = [line for line in worker.log.splitlines() if task_id in line and "no-op" in line]
    assert len(lines) == times
    assert all("INFO" in line for line in lines)
    assert "Traceback" not in "\n".join(lines)


def test_a_message_of_an_unknown_run_is_claimed(stage: Stage, worker: Worker) -> None:
    """No row: the message claims its run, the body runs, the run has succeeded at fence 1."""
    task_id = stage.send("note", "hello")
    assert stage.get(task_id) == "hello"
    row = stage.wait_final("note", task_id)
    assert (row.state, row.fence, row.attempts, row.retries) == (RunState.SUCCEEDED, 1, 1, 0)
    assert row.task_id == task_id
    assert stage.effects(task_id) == ["note"]


def test_a_message_of_a_scheduled_run_is_claimed(stage: Stage, worker: Worker) -> None:
    """A beat has recorded the slot: the message turns it into a running run."""
    key = slot_key("scheduled")
    slot = NewSlot(key, NAMESPACE, "scheduled", "tests.note")
    assert stage.ledger.insert_slots([slot], uuid4().hex) == {key}
    task_id = stage.send("note", "slot", **stage.stamped(key, "note", "scheduled"))
    assert stage.get(task_id) == "slot"
    row = stage.ledger.read(key)
    assert row is not None
    assert (row.state, row.fence, row.entry) == (RunState.SUCCEEDED, 1, "scheduled")


def test_a_copy_of_a_running_run_is_a_no_op(stage: Stage, worker: Worker) -> None:
    """The owner's lease lives: the copy does nothing, and the owner ends as if alone."""
    task_id = stage.send("gated", "running")
    stage.wait_for_effect(task_id, "started")
    stage.send("gated", "running", task_id=task_id, copies=2)
    (first, second) = stage.wait_for_duplicates("gated", task_id, 2)
    assert first.detail == second.detail == "its run is being executed"
    assert stage.result(task_id).state == "PENDING"
    stage.open("running")
    assert stage.get(task_id) == "running"
    assert stage.effects(task_id) == ["started", "ended"]
    stage.wait_for_fact(task_id, "task_success")
    assert_untouched(stage, worker, task_id, 2)


def test_a_stale_copy_of_a_retrying_run_is_a_no_op(stage: Stage, worker: Worker) -> None:
    """The run waits for retry 1: message 0 never runs its body, message 1 does."""
    task_id = stage.send("retries", 1, 2)
    stage.wait_for_effect(task_id, "try")
    stage.wait_for_state("retries", task_id, RunState.RETRYING)
    stage.send("retries", 1, 2, task_id=task_id)
    (line,) = stage.wait_for_duplicates("retries", task_id)
    assert line.detail == "its run waits for retry 1"
    assert stage.get(task_id) == 1
    row = stage.wait_final("retries", task_id)
    assert (row.state, row.fence, row.retries, row.attempts) == (RunState.SUCCEEDED, 2, 1, 1)
    assert stage.effects(task_id) == ["try", "try"]
    assert_untouched(stage, worker, task_id)


def wait_for_retry(stage: Stage, task_id: str, message: str | None = None) -> RunKey:
    """A run that asked for retry 1 and whose message of the retry was lost."""
    key = stage.key("note", task_id)
    lease = uuid4().hex
    stage.ledger.register(lease, Owner("test", "here", 1, "test"), 60)
    request = ClaimRequest(
        key, "tests.note", NAMESPACE, None, task_id, 0, lease_id=lease, claim_id=uuid4().hex
    )
    claim = stage.ledger.claim(request)
    assert claim.outcome is ClaimOutcome.CLAIMED
    stage.ledger.retry(key, claim.fence, Retry(1, 0.0, message))
    stage.ledger.release([lease])
    return key


def test_a_redelivered_message_becomes_the_retry(stage: Stage, worker: Worker) -> None:
    """The publish of retry 1 was lost: message 0, not acknowledged, comes again and is retry 1."""
    task_id = str(uuid4())
    wait_for_retry(stage, task_id)
    stage.send_redelivered(worker, "note", "again", task_id=task_id)
    assert stage.get(task_id) == "again"
    row = stage.wait_final("note", task_id)
    assert (row.state, row.fence, row.retries) == (RunState.SUCCEEDED, 2, 1)
    assert stage.sql("SELECT what, retries FROM effects WHERE task_id = %s", task_id) == [
        ("note", 1)
    ]
    assert stage.facts(task_id)["run_put_back"] == 1
    assert not stage.history("note", task_id)


def test_a_redelivered_message_and_its_retry_run_once(stage: Stage, worker: Worker) -> None:
    """Both the retry and the redelivered message 0 arrive: one of them runs the body."""
    task_id = stage.send("retries", 1, 2)
    stage.wait_for_effect(task_id, "try")
    stage.wait_for_state("retries", task_id, RunState.RETRYING)
    stage.send_redelivered(worker, "retries", 1, 2, task_id=task_id)

    def has_been_declined() -> bool:
        # A copy if it finds the run ended; put back once more if it finds it at work.
        return bool(stage.history("retries", task_id)) or stage.facts(task_id)["run_put_back"] > 1

    wait_for(has_been_declined, PATIENCE, "the arrival of the second message")
    row = stage.wait_for_success("retries", task_id)
    assert (row.fence, row.retries, row.attempts) == (2, 1, 1)
    assert stage.effects(task_id) == ["try", "try"]


def test_a_retry_whose_message_is_early_claims_at_once(stage: Stage, worker: Worker) -> None:
    """The message of the awaited retry claims, also before the due time in the ledger."""
    task_id = str(uuid4())
    wait_for_retry(stage, task_id)
    stage.send("note", "retry", task_id=task_id, retries=1)
    assert stage.get(task_id) == "retry"
    assert stage.effects(task_id) == ["note"]


def test_a_copy_of_a_run_that_succeeded_is_a_no_op(stage: Stage, worker: Worker) -> None:
    """Neither the body nor the result is touched again."""
    task_id = stage.send("add", 1, 2)
    assert stage.get(task_id) == 3
    before = stage.result(task_id).date_done
    stage.send("add", 1, 2, task_id=task_id)
    (line,) = stage.wait_for_duplicates("add", task_id)
    assert line.detail == "its run has ended: succeeded"
    assert (line.task, line.task_id) == ("tests.add", task_id)
    assert stage.effects(task_id) == ["add"]
    assert stage.result(task_id).date_done == before
    assert_untouched(stage, worker, task_id)


def test_a_copy_of_a_run_that_failed_is_a_no_op(stage: Stage, worker: Worker) -> None:
    """FAILURE stays, and the error handlers of the message are not called again."""
    options: Any = {"link_error": stage.app.signature("tests.note", ("errback",), immutable=True)}
    task_id = stage.send("fails", **options)
    with pytest.raises(ValueError, match="as asked"):
        stage.get(task_id)
    (errback,) = wait_for(lambda: notes(stage, "errback"), 10, "the errback")
    before = stage.result(task_id).date_done
    stage.send("fails", task_id=task_id, **options)
    (line,) = stage.wait_for_duplicates("fails", task_id)
    assert line.detail == "its run has ended: failed"
    assert stage.effects(task_id) == ["fails"]
    assert stage.result(task_id).state == "FAILURE"
    assert stage.result(task_id).date_done == before
    row = stage.row("fails", task_id)
    assert row is not None
    assert (row.state, row.error) == (RunState.FAILED, "ValueError: as asked")
    assert_untouched(stage, worker, task_id)
    # Whatever a second errback would be, it would have been sent before this message.
    assert stage.get(stage.send("note")) == ""
    assert notes(stage, "errback") == [errback]


def notes(stage: Stage, text: str) -> list[tuple[str]]:
    return stage.sql("SELECT task_id FROM effects WHERE what = 'note' AND detail = %s", text)


def test_a_copy_of_a_dead_run_is_a_no_op(stage: Stage, worker: Worker) -> None:
    """Its owners died too often: a further copy does not run it."""
    task_id = str(uuid4())
    key = stage.key("note", task_id)
    lease = uuid4().hex
    stage.ledger.register(lease, Owner("test", "here", 1, "test"), 60)

    def request(abandon: bool) -> ClaimRequest:
        return ClaimRequest(
            *(key, "tests.note", NAMESPACE, None, task_id, 0, lease, uuid4().hex),
            abandon_on_crash=abandon,
        )

    assert stage.ledger.claim(request(False)).outcome is ClaimOutcome.CLAIMED
    stage.ledger.release([lease])
    assert stage.ledger.claim(request(True)).outcome is ClaimOutcome.KILLED
    # Whoever has killed it died before it could tell; its message does when it comes again.
    stage.send_redelivered(worker, "note", "dead", task_id=task_id)
    with pytest.raises(RunDead, match="on_crash is 'abandon'"):
        stage.get(task_id)
    stage.wait_for_fact(task_id, "task_failure")
    stage.send("note", "dead", task_id=task_id)
    (line,) = stage.wait_for_duplicates("note", task_id)
    assert line.detail == "its run has ended: dead"
    stage.wait_for_fact(task_id, "run_duplicate")
    assert stage.facts(task_id) == {"task_failure": 1, "run_duplicate": 1}
    assert stage.effects(task_id) == []


def test_a_copy_of_a_skipped_run_is_a_no_op(stage: Stage, worker: Worker) -> None:
    """The slot's deadline has passed: its late message does not run it."""
    key, batch = slot_key("skipped"), uuid4().hex
    stage.ledger.insert_slots([NewSlot(key, NAMESPACE, "skipped", "tests.note")], batch)
    stage.ledger.close_unclaimed([key], batch, RunState.SKIPPED, "too late")
    task_id = stage.send("note", "late", **stage.stamped(key, "note", "skipped"))
    stage.wait_for_fact(task_id, "run_duplicate")
    assert stage.effects(task_id) == []
    assert [line.kind for line in stage.ledger.history(key)] == ["duplicate"]
    assert_untouched(stage, worker, task_id)


def test_two_tasks_with_one_task_id_are_two_runs(stage: Stage, worker: Worker) -> None:
    """The task's name is part of the key of a message without a stamp."""
    task_id = stage.send("note", "one")
    stage.wait_for_effect(task_id, "note")
    stage.send("add", 1, task_id=task_id)
    stage.wait_for_effect(task_id, "add")
    assert stage.wait_final("note", task_id).state is RunState.SUCCEEDED
    assert stage.wait_final("add", task_id).state is RunState.SUCCEEDED


def test_copies_of_a_slot_by_many_beats_run_once(stage: Stage, worker: Worker) -> None:
    """Each beat publishes the slot: one execution, the others are recorded."""
    key = slot_key("beats")
    task_id = stage.send("note", "beats", copies=7, **stage.stamped(key, "note"))
    stage.wait_for_fact(task_id, "run_duplicate", 6)
    assert stage.effects(task_id) == ["note"]
    assert [line.kind for line in stage.ledger.history(key)] == ["duplicate"] * 6


def test_a_plain_task_beside_runs_as_often_as_it_is_sent(stage: Stage, worker: Worker) -> None:
    """Plain tasks of the same app know no ledger."""
    task_id = stage.send("plain", "each time", copies=2)
    stage.wait_for_effect(task_id, "plain", 2)
    assert stage.row("plain", task_id) is None


def test_no_log_has_a_traceback_of_a_copy(worker: Worker) -> None:
    """The only tracebacks of this module are those of bodies that raised, and of the dead run."""
    blocks = worker.log.split("Traceback (most recent call last):")[1:]
    assert all("as asked" in block or "RunDead" in block for block in blocks)
