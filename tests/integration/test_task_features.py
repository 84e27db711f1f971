"""What Celery's users do with tasks, done with idempotent ones."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
from celery import chain, chord, group
from celery.exceptions import SoftTimeLimitExceeded, TimeLimitExceeded

from celery_idem.run import RunState
from tests.integration.stage import Stage
from tests.processes import wait_for

pytestmark = pytest.mark.usefixtures("worker")


def tries(stage: Stage, task_id: str) -> list[tuple[Any, ...]]:
    """(what, retry number, claims of it, fence) of each body."""
    return stage.sql(
        "SELECT what, retries, attempt, fence FROM effects WHERE task_id = %s ORDER BY id", task_id
    )


# -- the body and its run ------------------------------------------------------------------------


def test_a_bound_task_sees_its_run(stage: Stage) -> None:
    """bind=True gives self; current_run() tells key, attempt and fence."""
    task_id = stage.send("bound", "text")
    assert stage.get(task_id) == [task_id, stage.key("bound", task_id).text, 1, 1]


def test_another_task_called_as_a_function_makes_no_run(stage: Stage) -> None:
    """A plain call inside a body, of another task or of its own, is just a call."""
    stage.ledger.now()  # Makes the tables, if this test comes first.
    runs = stage.sql("SELECT count(*) FROM celery_idem_runs")[0][0]
    task_id = stage.send("calls", 2)
    assert stage.get(task_id) == 3
    assert stage.details(task_id) == ["2", "1", "0"]
    called = stage.sql("SELECT task_id, fence FROM effects WHERE detail = 'called as a function'")
    assert len(called) == 3
    assert {task_id for task_id, _ in called} == {None}, "a plain call has no request"
    assert stage.sql("SELECT count(*) FROM celery_idem_runs") == [(runs + 1,)]
    row = stage.wait_final("calls", task_id)
    assert (row.state, row.fence) == (RunState.SUCCEEDED, 1)
    assert not stage.history("calls", task_id)


def test_without_a_result_the_run_ends_all_the_same(stage: Stage) -> None:
    """ignore_result=True: the ledger knows the end, the backend nothing."""
    task_id = stage.send("silent")
    assert stage.wait_final("silent", task_id).state is RunState.SUCCEEDED
    stage.wait_for_fact(task_id, "task_success")
    assert stage.result(task_id).state == "PENDING"
    stage.send("silent", task_id=task_id)
    stage.wait_for_duplicates("silent", task_id)
    assert stage.effects(task_id) == ["silent"]


def test_an_exception_that_cannot_be_shown_is_an_end(stage: Stage) -> None:
    """Whatever a body raises: the ledger knows that it has failed."""
    task_id = stage.send("odd")
    row = stage.wait_final("odd", task_id)
    assert row.state is RunState.FAILED
    assert row.error is not None and row.error.startswith("Odd: ")
    assert stage.effects(task_id) == ["odd"]


# -- retries -------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["retries", "autoretry"])
def test_each_retry_is_a_claim_of_the_same_run(stage: Stage, task: str) -> None:
    """retry() and autoretry_for: one row, one more fence per try, the usual result."""
    task_id = stage.send(task, 2)
    row = stage.wait_for_success(task, task_id)
    assert (row.retries, row.fence) == (2, 3)
    assert tries(stage, task_id) == [("try", 0, 1, 1), ("try", 1, 1, 2), ("try", 2, 1, 3)]
    assert stage.facts(task_id)["task_retry"] == 2


@pytest.mark.parametrize("task", ["retries", "autoretry"])
def test_after_the_last_retry_the_run_has_failed(stage: Stage, task: str) -> None:
    """max_retries=3: four tries, then the exception of the body, in the result and the ledger."""
    task_id = stage.send(task, 99)
    stage.wait_for_fact(task_id, "task_failure")
    row = stage.wait_final(task, task_id)
    assert row.state is RunState.FAILED
    assert row.error in ("OSError: not yet", "OSError: failure 3")
    assert stage.effects(task_id) == ["try"] * 4


def test_a_body_may_go_on_after_its_retry(stage: Stage) -> None:
    """retry(throw=False) ends the claim; whatever the body returns, the retry runs."""
    task_id = stage.send("retries_and_goes_on")
    stage.wait_for_effect(task_id, "try", 2)
    row = stage.wait_final("retries_and_goes_on", task_id)
    assert (row.state, row.retries, row.fence) == (RunState.SUCCEEDED, 1, 2)
    assert sorted(stage.effects(task_id)) == ["after", "try", "try"]


def test_a_retry_that_nobody_published_is_an_end(stage: Stage) -> None:
    """A body that raises Retry by itself has published nothing: its run has failed."""
    task_id = stage.send("raises_retry")
    assert stage.wait_final("raises_retry", task_id).state is RunState.FAILED
    wait_for(lambda: stage.result(task_id).state == "RETRY", 10, "what Celery says")
    assert stage.effects(task_id) == ["raises_retry"]


# -- a body that decides about its message -------------------------------------------------------


def test_a_body_may_ignore_its_own_end(stage: Stage) -> None:
    """Ignore keeps the state that the body has set; the run has ended well."""
    task_id = stage.send("ignores")
    row = stage.wait_final("ignores", task_id)
    assert row.state is RunState.SUCCEEDED
    assert row.error is not None and "Ignore" in row.error
    state: str = stage.result(task_id).state
    assert state == "CUSTOM"


def test_a_body_may_reject_its_message_for_good(stage: Stage) -> None:
    """Reject(requeue=False): the run has failed, and the message is gone."""
    task_id = stage.send("rejects", False)
    row = stage.wait_final("rejects", task_id)
    assert row.state is RunState.FAILED
    assert row.error is not None and "Reject" in row.error
    assert stage.effects(task_id) == ["rejects"]


def test_a_body_may_have_its_message_again(stage: Stage) -> None:
    """Reject(requeue=True): the broker delivers it again, and it claims again."""
    task_id = stage.send("rejects", True)
    assert stage.get(task_id) == "came again"
    assert stage.details(task_id) == ["redelivered False", "redelivered True"]
    assert tries(stage, task_id) == [("rejects", 0, 1, 1), ("rejects", 0, 1, 2)]
    assert stage.wait_final("rejects", task_id).state is RunState.SUCCEEDED
    assert not stage.history("rejects", task_id)


def test_a_task_may_replace_itself(stage: Stage) -> None:
    """replace() keeps the task id: each replacement is a run of its own, and none is a copy."""
    task_id = stage.send("replaces", 2)
    assert stage.get(task_id) == "replaced"
    assert stage.effects(task_id) == ["replaces", "replaces", "replaces", "note"]
    for nesting in range(3):
        row = stage.ledger.read(stage.key("replaces", task_id, nesting))
        assert row is not None and row.state is RunState.SUCCEEDED
    row = stage.ledger.read(stage.key("note", task_id, 3))
    assert row is not None and row.state is RunState.SUCCEEDED


# -- time limits ---------------------------------------------------------------------------------


def test_a_soft_time_limit_ends_the_run(stage: Stage) -> None:
    """The body is interrupted: its run has failed."""
    task_id = stage.send("too_slow")
    with pytest.raises(SoftTimeLimitExceeded):
        stage.get(task_id)
    row = stage.wait_final("too_slow", task_id)
    assert row.state is RunState.FAILED
    assert row.error is not None and row.error.startswith("SoftTimeLimitExceeded")


def test_a_body_may_catch_its_soft_time_limit(stage: Stage) -> None:
    """What it returns then is its result."""
    task_id = stage.send("cleans_up")
    assert stage.get(task_id) == "cleaned up"
    assert stage.wait_final("cleans_up", task_id).state is RunState.SUCCEEDED


def test_a_hard_time_limit_ends_the_run(stage: Stage) -> None:
    """The child is killed, its message acknowledged: the parent tells the ledger."""
    task_id = stage.send("hangs")
    with pytest.raises(TimeLimitExceeded):
        stage.get(task_id)
    row = stage.wait_final("hangs", task_id)
    assert row.state is RunState.FAILED
    assert row.error == "the hard time limit of 1 seconds was exceeded"
    stage.send("hangs", task_id=task_id)
    stage.wait_for_duplicates("hangs", task_id)
    assert stage.effects(task_id) == ["hangs"]


# -- what Celery stores --------------------------------------------------------------------------


def test_started_is_stored_after_the_claim(stage: Stage) -> None:
    """track_started: the owner's STARTED is seen, a copy's does not overwrite a FAILURE."""
    task_id = stage.send("started", "track")
    stage.wait_for_effect(task_id, "started")
    result = stage.result(task_id)
    assert result.state == "STARTED"
    assert set(result.info) == {"pid", "hostname"}
    stage.open("track")
    with pytest.raises(ValueError, match="after it has started"):
        stage.get(task_id)
    stage.send("started", "track", task_id=task_id)
    stage.wait_for_fact(task_id, "run_duplicate")
    assert stage.result(task_id).state == "FAILURE"
    assert stage.effects(task_id) == ["started"]


# -- canvas --------------------------------------------------------------------------------------


def signature(stage: Stage, task: str, *args: Any, **options: Any) -> Any:
    return stage.app.signature(f"tests.{task}", args, **options)


def test_links_are_called_once(stage: Stage) -> None:
    """A copy of a finished message does not send its links again."""
    options: Any = {"link": signature(stage, "note", "once", immutable=True)}
    task_id = stage.send("add", 1, **options)
    statement = "SELECT 1 FROM effects WHERE what = 'note' AND detail = 'once'"
    wait_for(lambda: stage.sql(statement), 10, "the link")
    stage.send("add", 1, task_id=task_id, **options)
    stage.wait_for_duplicates("add", task_id)
    # A second link would have been sent before this message.
    assert stage.get(stage.send("note", "after")) == "after"
    assert len(stage.sql(statement)) == 1


def test_chains_run_each_link_once(stage: Stage) -> None:
    """Each link is a run; a copy of the first does not start the chain again."""
    links = chain(*(signature(stage, "add", n) for n in (1, 2, 3)))
    result: Any = links.apply_async()
    assert stage.get(result.id) == 6
    first = result.parent.parent.id
    copies: Any = {"chain": [signature(stage, "add", 99)]}
    stage.send("add", 1, task_id=first, **copies)
    stage.wait_for_duplicates("add", first)
    for one in (result, result.parent, result.parent.parent):
        assert stage.effects(one.id) == ["add"]


def test_groups_and_chords_count_each_part_once(stage: Stage) -> None:
    """Copies of a chord's parts, while it goes on and after, do not count as parts."""
    gates = [signature(stage, "gated", f"part {n}") for n in range(3)]
    body = signature(stage, "size").set(task_id="the-body")
    result: Any = chord(group(gates), app=stage.app)(body)
    parts = [one.id for one in result.parent.children]
    for n, part in enumerate(parts):
        stage.wait_for_effect(part, "started")
        stage.open(f"part {n}")
        stage.get(part)
        stage.send("gated", f"part {n}", task_id=part, copies=3, group_id=result.parent.id)
        stage.wait_for_duplicates("gated", part, 3)
    assert stage.get(result.id) == 3
    assert stage.effects(result.id) == ["size"]
    for part in parts:
        assert stage.effects(part) == ["started", "ended"]


@pytest.mark.skipif(not importlib.util.find_spec("pydantic"), reason="pydantic is not installed")
def test_pydantic_tasks_get_models(stage: Stage) -> None:
    """pydantic=True: the body sees models, also in a retry; copies are recognised."""
    order = {"customer": "ada", "amount": 3}
    task_id = stage.send("buy", order)
    stage.wait_for_success("buy", task_id)
    stage.send("buy", order, task_id=task_id)
    stage.wait_for_duplicates("buy", task_id)
    assert stage.details(task_id) == ["Order", "Order"]
