"""Bodies that write in the transaction of their run: no effect is doubled, and none is lost."""

from __future__ import annotations

import pytest

from celery_idem import NoCurrentRun, ResultLost, RunState
from celery_idem.run import RunRow
from tests.integration.conftest import NewStage
from tests.integration.stage import Stage
from tests.processes import Worker
from tests.proxy import Proxy

#: Seconds: the time for which a dead owner's run stays its own.
LEASE = 2.0
COPIES = 20


@pytest.fixture(scope="module")
def stage(new_stage: NewStage) -> Stage:
    """Redis and PostgreSQL, where ledger and effects are."""
    return new_stage(idem_lease=LEASE)


@pytest.fixture(scope="module", autouse=True)
def worker(stage: Stage) -> Worker:
    """Four children."""
    return stage.worker("transactions", "-c", "4")


def ended(stage: Stage, task: str, task_id: str, fence: int = 1) -> RunRow:
    """The run, which succeeded at this fence and has booked once."""
    row = stage.wait_final(task, task_id)
    assert (row.state, row.fence) == (RunState.SUCCEEDED, fence)
    assert stage.effects(task_id).count("booked") == 1
    return row


@pytest.mark.parametrize("task", ["books", "books_by_session", "tolerant"])
def test_copies_book_once(stage: Stage, task: str) -> None:
    task_id = stage.send(task, copies=COPIES)
    assert stage.get(task_id) == "booked"
    stage.wait_for_duplicates(task, task_id, COPIES - 1)
    ended(stage, task, task_id)
    stage.wait_for_fact(task_id, "task_success")
    # A copy is in the history before its signal is sent.
    stage.wait_for_fact(task_id, "run_duplicate", COPIES - 1)
    facts = stage.facts(task_id)
    assert (facts["task_success"], facts["run_duplicate"]) == (1, COPIES - 1)
    assert facts["run_refused"] == facts["task_failure"] == 0


def test_without_a_claim_there_is_no_transaction(new_stage: NewStage, module_postgres: str) -> None:
    """A task with on_database_error="run" cannot book what might be booked twice."""
    with Proxy.before(module_postgres) as proxy:
        stage = new_stage(ledger=proxy.url(module_postgres))
        worker = stage.worker("transactions", "-c", "1")
        proxy.cut()
        task_id = stage.send("tolerant")
        with pytest.raises(NoCurrentRun):
            stage.get(task_id)
        assert stage.effects(task_id) == []
        worker.kill()


def test_a_process_that_dies_before_the_commit_has_booked_nothing(stage: Stage) -> None:
    task_id = stage.send("dies_before", copies=2)
    assert stage.get(task_id) == "booked"
    row = ended(stage, "dies_before", task_id, fence=2)
    assert row.attempts == 2
    assert stage.effects(task_id).count("dies") == 1
    assert stage.sql(
        "SELECT attempt, fence FROM effects WHERE task_id = %s AND what = 'booked'", task_id
    ) == [(2, 2)]


def test_a_process_that_dies_after_the_commit_has_booked(stage: Stage) -> None:
    """Its message comes again and books nothing; the caller learns that the result is lost."""
    task_id = stage.send("dies_after", copies=2)
    with pytest.raises(ResultLost) as caught:
        stage.get(task_id)
    assert caught.value.key == stage.key("dies_after", task_id).text
    row = stage.wait_final("dies_after", task_id)
    assert (row.state, row.attempts) == (RunState.SUCCEEDED, 1)
    assert stage.effects(task_id) == ["booked", "dies"]


def test_a_worker_that_is_killed_after_the_commit_has_booked(new_stage: NewStage) -> None:
    """All of it, at once; RabbitMQ gives the message to another worker."""
    stage = new_stage("rabbitmq", idem_lease=LEASE)
    victim = stage.worker("transactions", "-c", "1")
    task_id = stage.send("stays_after", "never")
    stage.wait_for_effect(task_id, "committed")
    row = ended(stage, "stays_after", task_id)
    victim.kill()
    heir = stage.worker("transactions", "-c", "1")
    with pytest.raises(ResultLost):
        stage.get(task_id)
    assert stage.effects(task_id) == ["booked", "committed"]
    now = stage.wait_final("stays_after", task_id)
    assert (now.state, now.attempts, now.finished_at) == (row.state, 1, row.finished_at)
    heir.kill()


def test_the_run_has_ended_while_the_body_goes_on(stage: Stage) -> None:
    """A copy that comes then is one of an ended run."""
    task_id = stage.send("stays_after", "after")
    stage.wait_for_effect(task_id, "committed")
    ended(stage, "stays_after", task_id)
    stage.send("stays_after", "after", task_id=task_id)
    (copy,) = stage.wait_for_duplicates("stays_after", task_id)
    assert copy.detail == "its run has ended: succeeded"
    stage.open("after")
    assert stage.get(task_id) == "booked"
    assert stage.effects(task_id) == ["booked", "committed"]


def test_an_error_in_the_block_books_nothing(stage: Stage) -> None:
    task_id = stage.send("raises_in")
    with pytest.raises(ValueError, match="in the block"):
        stage.get(task_id)
    row = stage.wait_final("raises_in", task_id)
    assert (row.state, row.error) == (RunState.FAILED, "ValueError: in the block")
    assert stage.effects(task_id) == []


def test_an_error_after_the_block_changes_nothing(stage: Stage) -> None:
    """Celery has a failure; the ledger has what was committed, and no copy books again."""
    task_id = stage.send("raises_after", copies=2)
    with pytest.raises(ValueError, match="after the block"):
        stage.get(task_id)
    stage.wait_for_duplicates("raises_after", task_id)
    row = ended(stage, "raises_after", task_id)
    assert row.error is None
    stage.wait_for_fact(task_id, "task_failure")
    assert stage.facts(task_id)["run_refused"] == 0


def test_a_retry_after_the_block_is_refused(stage: Stage) -> None:
    """Its run has ended: nothing is published."""
    task_id = stage.send("retries_after")
    with pytest.raises(ResultLost):
        stage.get(task_id)
    row = ended(stage, "retries_after", task_id)
    assert (row.retries, row.message) == (0, None)
    stage.wait_for_fact(task_id, "task_failure")
    assert stage.facts(task_id).keys() == {"task_failure"}
    assert stage.history("retries_after", task_id) == []


def test_a_retry_in_the_block_books_in_the_end(stage: Stage) -> None:
    task_id = stage.send("retries_in")
    row = stage.wait_for_success("retries_in", task_id)
    assert (row.fence, row.retries) == (2, 1)
    assert stage.effects(task_id) == ["retrying", "booked"]
