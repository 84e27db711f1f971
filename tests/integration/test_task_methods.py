"""Classes with methods of their own, and bodies that hand on what they got."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any
from uuid import uuid4

import pytest
from celery import Task, chain

from celery_idem.errors import DuplicateRun
from celery_idem.keys import RunKey
from celery_idem.run import RunState
from tests.integration.stage import NAMESPACE, Stage
from tests.processes import Worker, wait_for

CLASSES = ("registered", "inheriting")
SLOT = datetime(2026, 3, 29, 1, 30, tzinfo=timezone.utc)


@pytest.fixture(scope="module", autouse=True)
def worker(stage: Stage) -> Worker:
    """Four children."""
    return stage.worker("methods", "-c", "4")


# -- methods that Celery calls ---------------------------------------------------------------------


@pytest.mark.parametrize("task", ["straight", "polite"])
def test_a_call_of_somebodys_own_is_made_under_the_claim(stage: Stage, task: str) -> None:
    """Whether it goes on to that of `IdempotentTask`, or to the body."""
    task_id = stage.send(task, 0, copies=2)
    stage.wait_for_duplicates(task, task_id)
    assert stage.get(task_id) == task_id
    assert stage.effects(task_id) == ["around", "body"]


def test_a_class_may_inherit_from_one_of_another_task(stage: Stage) -> None:
    registered, inheriting = (stage.send(f"{task}", 0, copies=2) for task in CLASSES)
    assert [stage.get(registered), stage.get(inheriting)] == [registered, inheriting]
    for task, task_id in zip(CLASSES, (registered, inheriting), strict=True):
        stage.wait_for_duplicates(task, task_id)
    assert stage.effects(registered) == ["before_start", "around all", "around", "body"]
    assert stage.effects(inheriting) == [
        *("first of all", "before_start"),
        *("around it", "around all", "around", "body"),
    ]


@pytest.mark.parametrize("task", ["straight", "polite"])
def test_a_body_may_call_its_task_as_a_function(stage: Stage, task: str) -> None:
    task_id = stage.send(task, 1)
    assert stage.get(task_id) == task_id
    assert stage.details(task_id)[:3] == [None, "1", None]
    assert (row := stage.wait_final(task, task_id)).state is RunState.SUCCEEDED
    assert row.fence == 1


def test_before_start_is_called_under_the_claim(stage: Stage) -> None:
    task_id = stage.send("prepared", "well", copies=2)
    assert stage.get(task_id) == "well"
    stage.wait_for_duplicates("prepared", task_id)
    assert stage.effects(task_id) == ["before_start", "body"]


def test_a_before_start_that_fails_is_an_end_of_its_run(stage: Stage) -> None:
    task_id = stage.send("prepared", "fails")
    assert str(stage.outcome(task_id)) == "not today"
    row = stage.wait_final("prepared", task_id)
    assert (row.state, row.error) == (RunState.FAILED, "ValueError: not today")
    assert stage.effects(task_id) == ["before_start"]


def test_a_body_that_is_cancelled_has_failed(stage: Stage) -> None:
    """asyncio's CancelledError is no `Exception`; the process and its run are not lost by it."""
    task_id = stage.send("cancelled")
    row = stage.wait_final("cancelled", task_id)
    assert row.state is RunState.FAILED
    assert str(row.error).startswith("CancelledError: ")
    wait_for(lambda: str(stage.result(task_id).state) == "FAILURE", 30, "what Celery says")
    stage.send("cancelled", task_id=task_id)
    stage.wait_for_duplicates("cancelled", task_id)
    assert stage.effects(task_id) == ["body"]


@pytest.mark.skipif(
    not hasattr(Task, "retry_on_worker_lost"), reason="Celery has it since version 5.7"
)
def test_a_lost_worker_without_retries_left_is_an_end(stage: Stage) -> None:
    task_id = stage.send("dies")
    stage.wait_for_effect(task_id, "body", 2)
    row = stage.wait_final("dies", task_id)
    assert row.state is RunState.FAILED
    assert "exited prematurely" in str(row.error)
    assert stage.effects(task_id) == ["body"] * 2


# -- what is handed on -----------------------------------------------------------------------------


def test_a_retry_with_headers_of_its_own_stays_within_its_run(stage: Stage) -> None:
    key = RunKey.for_slot(NAMESPACE, "headed", SLOT)
    options = stage.stamped(key, "headed", "headed")
    task_id = stage.send("headed", **options)
    stage.wait_for_effect(task_id, "body", 2)
    wait_for(lambda: (row := stage.ledger.read(key)) and row.state.final, 30, "its end")
    row = stage.ledger.read(key)
    assert row is not None
    assert (row.state, row.retries, row.fence) == (RunState.SUCCEEDED, 1, 2)
    stage.send("headed", **options)
    wait_for(lambda: stage.ledger.history(key), 30, "the duplicate")
    assert stage.details(task_id) == [None, "1"]


def test_headers_that_are_passed_on_name_no_run_of_others(stage: Stage) -> None:
    key = RunKey.for_slot(NAMESPACE, "passes-on", SLOT)
    task_id = stage.send("passes_on", **stage.stamped(key, "passes_on", "passes-on"))
    child = stage.get(task_id)
    assert stage.get(child) == "child"


def test_a_key_in_a_header_is_not_passed_on_either(stage: Stage) -> None:
    """To another message of the same task, which would be taken for a copy with other arguments."""
    stage.send("walks", 2, headers={"idem_key": "job-1"})
    done = "SELECT detail FROM effects WHERE what = 'walks' ORDER BY id"
    wait_for(lambda: stage.sql(done) == [("2",), ("1",), ("0",)], 30, lambda: str(stage.sql(done)))


def test_a_message_that_comes_again_is_what_it_was(stage: Stage) -> None:
    """Whatever the body has done to its arguments before."""
    gate = str(uuid4())
    holder = stage.send("holds", gate)
    stage.wait_for_effect(holder, "in")
    task_id = stage.send("collects", ["x"])
    stage.wait_for_effect(task_id, "body", 2)
    stage.open(gate)
    assert stage.get(task_id) == ["x", "header"]
    assert set(stage.details(task_id)) == {"x,header"}


# -- what takes the place of a task ----------------------------------------------------------------


def test_the_last_of_those_that_replace_a_task_may_be_itself(stage: Stage) -> None:
    """Celery counts the replacement of a chord's body in no message."""
    task_id = stage.send("crawl")
    assert stage.get(task_id) == 3
    assert stage.details(task_id) == [None, "3"]


def test_a_task_may_take_the_place_of_a_plain_one_that_has_taken_its_own(stage: Stage) -> None:
    task_id = stage.send("returns_to_itself", 1)
    assert stage.get(task_id) == "done"
    assert stage.details(task_id) == ["False", "True"]


def test_what_follows_a_replaced_task_has_its_key(stage: Stage) -> None:
    """Two chains bill one customer: once, though a task before it was replaced."""
    outcomes = []
    for _ in range(2):
        turns = stage.app.signature("tests.turns", (1,), immutable=True)
        bill = stage.app.signature("tests.bill", (7,), immutable=True)
        result: Any = chain(turns, bill, app=stage.app).apply_async()
        outcomes.append(result.get(timeout=30, propagate=False))
    assert outcomes[0] == 7
    assert isinstance(outcomes[1], DuplicateRun)
    assert stage.sql("SELECT count(*) FROM effects WHERE what = 'bill'") == [(1,)]


def test_a_copy_of_a_replaced_task_is_no_failure(stage: Stage, worker: Worker) -> None:
    """There is no result yet, as that of its replacement is the one: nothing is missing."""
    task_id = stage.send("ignored")
    row = stage.wait_final("ignored", task_id)
    assert row.state is RunState.SUCCEEDED
    stage.send_redelivered(worker, "ignored", task_id=task_id)
    stage.wait_for_duplicates("ignored", task_id)
    assert str(stage.result(task_id).state) == "PENDING"
    assert stage.effects(task_id) == ["body"]
