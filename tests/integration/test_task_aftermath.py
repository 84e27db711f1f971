"""Workers that die after the end of a run was recorded, and before all that follows was done.

The ledger has the end: the body must not run again. But callers wait for a result, and links,
chains and chords for being sent.
"""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest
from celery import chord

from celery_idem.errors import ResultLost
from celery_idem.run import RunState
from tests.integration.conftest import NewStage
from tests.integration.stage import Stage
from tests.processes import Worker, wait_for

#: Seconds: the time for which nobody else may do what a dead worker has left undone.
LEASE = 2.0


@pytest.fixture(scope="module")
def stage(new_stage: NewStage) -> Stage:
    """Redis and PostgreSQL."""
    return new_stage(idem_lease=LEASE)


@pytest.fixture(scope="module", autouse=True)
def worker(stage: Stage) -> Worker:
    """Children that die and are replaced."""
    return stage.worker("aftermath", "-c", "4")


def test_a_result_that_was_not_stored_is_lost_and_says_so(stage: Stage) -> None:
    """`get()` ends: the run has succeeded, and nobody knows with what."""
    task_id = stage.send("fragile", 1, "run_succeeded")
    with pytest.raises(ResultLost) as caught:
        stage.get(task_id)
    assert caught.value.ending == "succeeded"
    assert (row := stage.row("fragile", task_id)) and row.state is RunState.SUCCEEDED
    assert stage.effects(task_id) == ["fragile"]
    assert [line.kind for line in stage.ledger.history(row.key)] == ["repair"]


def test_a_failure_that_was_not_stored_is_told(stage: Stage) -> None:
    task_id = stage.send("fragile", 2, "run_failed")
    with pytest.raises(ResultLost) as caught:
        stage.get(task_id)
    assert caught.value.ending == "failed ValueError: not 2"
    assert stage.effects(task_id) == ["fragile"]


def test_a_result_that_nobody_wants_is_not_missed(stage: Stage) -> None:
    """Of a task with ignore_result nothing is stored, and nothing is told."""
    task_id = stage.send("fragile_unheard", "run_succeeded")
    stage.wait_for_duplicates("fragile_unheard", task_id)
    assert stage.facts(task_id)["task_failure"] == 0
    assert stage.effects(task_id) == ["fragile"]


def test_what_was_told_is_told_once(stage: Stage) -> None:
    """A copy that comes later finds that the caller knows."""
    task_id = stage.send("fragile", 3, "run_succeeded")
    with pytest.raises(ResultLost):
        stage.get(task_id)
    stage.wait_for_fact(task_id, "task_failure")
    stage.send("fragile", 3, "run_succeeded", task_id=task_id)
    stage.wait_for_duplicates("fragile", task_id)
    assert stage.facts(task_id)["task_failure"] == 1


@pytest.mark.parametrize("fact", ["run_succeeded", "task_success"])
def test_links_and_chains_are_sent_by_a_copy(stage: Stage, fact: str) -> None:
    """With the result that the ledger has kept; a link that was sent twice runs once."""
    linked, last, first = (str(uuid4()) for _ in range(3))
    fragile: Any = stage.app.signature("tests.fragile", (5, fact), task_id=first)
    add = stage.app.signature("tests.add", (10,), task_id=last)
    fragile.link(stage.app.signature("tests.add", (20,), task_id=linked))
    (fragile | add).apply_async()
    assert stage.get(last) == 15
    assert stage.get(linked) == 25
    assert stage.get(first) == 5
    for task_id in (first, last, linked):
        assert len(stage.effects(task_id)) == 1
    row = stage.row("fragile", first)
    assert row and row.state is RunState.SUCCEEDED


def test_the_result_of_a_transaction_that_nobody_knows_fails_the_chain(stage: Stage) -> None:
    """The worker dies after the COMMIT, in the body: the run is not repeated, the chain ends."""
    first, last = str(uuid4()), str(uuid4())
    fragile: Any = stage.app.signature("tests.fragile_transaction", (5,), task_id=first)
    (fragile | stage.app.signature("tests.add", (10,), task_id=last)).apply_async()
    with pytest.raises(ResultLost):
        stage.get(first)
    assert stage.effects(first) == ["fragile"]
    assert stage.effects(last) == []


def test_the_callbacks_of_a_transaction_are_sent_by_a_copy(stage: Stage) -> None:
    first, last = str(uuid4()), str(uuid4())
    fragile: Any = stage.app.signature("tests.fragile_sender", (5,), task_id=first)
    (fragile | stage.app.signature("tests.add", (10,), task_id=last)).apply_async()
    assert stage.get(last) == 15
    assert stage.effects(first) == ["fragile"]
    assert stage.effects(last) == ["add"]


def test_a_chord_is_neither_stalled_nor_fired_twice(stage: Stage) -> None:
    header = [stage.app.signature("tests.fragile", (n, "run_succeeded")) for n in (1, 2)]
    body = stage.app.signature("tests.total", task_id=str(uuid4()))
    result: Any = chord([*header, stage.app.signature("tests.add", (4,))], app=stage.app)(body)
    assert result.get(timeout=30) == 7
    assert stage.effects(result.id) == ["total"]
    for part in result.parent.children:
        assert len(stage.effects(part.id)) == 1


def test_callbacks_of_a_worker_that_lives_are_pending_for_moments(stage: Stage) -> None:
    task_id = str(uuid4())
    first: Any = stage.app.signature("tests.add", (1, 2))
    (first.set(task_id=task_id) | stage.app.signature("tests.add", (3,))).apply_async().get()
    stage.wait_for_success("add", task_id)

    def is_told() -> bool:
        row = stage.row("add", task_id)
        return row is not None and not row.callbacks_pending and row.result is None

    wait_for(is_told, 30, lambda: f"an end of {stage.row('add', task_id)}")
