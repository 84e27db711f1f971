"""Messages whose key is not their slot: one run for each key, and no caller that waits for ever."""

from __future__ import annotations

import os
import signal
from typing import Any
from uuid import uuid4

import pytest
from celery import chain

from celery_idem import DuplicateRun, IdempotentTask, KeyReused, RunKey
from celery_idem.ledger import Owner
from celery_idem.run import ClaimRequest, RunState
from tests.integration.stage import NAMESPACE, Stage
from tests.processes import Worker, wait_for

pytestmark = pytest.mark.usefixtures("worker")

PATIENCE = 60


def bodies(stage: Stage, detail: str) -> list[str]:
    """The task ids of the bodies that have written this."""
    rows = stage.sql("SELECT task_id FROM effects WHERE detail = %s ORDER BY id", detail)
    return [task_id for (task_id,) in rows]


def key(customer: int, month: str = "may") -> RunKey:
    return RunKey(f'{NAMESPACE}:tests.keyed={{"customer":{customer},"month":"{month}"}}')


def test_of_many_messages_with_one_key_one_is_executed(stage: Stage, worker: Worker) -> None:
    """However their arguments were passed, by a sender that does not know the task."""
    ids = [stage.send("keyed", 1) for _ in range(10)]
    ids += [stage.send("keyed", 1, "may") for _ in range(10)]
    ids += [stage.send("keyed", kwargs={"month": "may", "customer": 1}) for _ in range(10)]
    found = [stage.outcome(task_id) for task_id in ids]
    (ran,) = bodies(stage, "1 may")
    assert found[ids.index(ran)] == "1 may"
    others = [found[at] for at in range(30) if ids[at] != ran]
    assert {type(other) for other in others} == {DuplicateRun}
    assert all(key(1).text in str(other) for other in others)
    assert {other.task_id for other in others} == {ran}
    row = stage.ledger.read(key(1))
    assert row is not None
    assert (row.state, row.task_id, row.fence) == (RunState.SUCCEEDED, ran, 1)
    assert len(stage.ledger.history(key(1))) == 29
    assert "Traceback" not in worker.log


def test_keys_that_differ_are_two_runs(stage: Stage) -> None:
    ids = [stage.send("keyed", 2, "may"), stage.send("keyed", 2, "june"), stage.send("keyed", 3)]
    assert [stage.get(task_id) for task_id in ids] == ["2 may", "2 june", "3 may"]


def test_the_senders_own_key_is_in_a_header(stage: Stage) -> None:
    options: Any = {"headers": {"idem_key": "order-42"}}
    ids = [stage.send("note", "order-42", **options) for _ in range(3)]
    found = [stage.outcome(task_id) for task_id in ids]
    assert sorted(type(each).__name__ for each in found) == ["DuplicateRun", "DuplicateRun", "str"]
    row = stage.ledger.read(RunKey(f"{NAMESPACE}:tests.note=order-42"))
    assert row is not None and row.state is RunState.SUCCEEDED


def test_a_duplicate_of_what_is_being_executed_does_not_wait_for_it(stage: Stage) -> None:
    gate = str(uuid4())
    first = stage.send("keyed", 4, "may", gate)
    wait_for(lambda: bodies(stage, "4 may"), PATIENCE, "the body")
    second = stage.send("keyed", 4)
    assert "its run is being executed" in str(stage.outcome(second))
    stage.open(gate)
    assert stage.get(first) == "4 may"


def test_a_chain_does_not_wait_for_a_duplicate(stage: Stage) -> None:
    stage.get(stage.send("keyed", 5))
    link = stage.app.signature("tests.note", ("after a duplicate",), immutable=True)
    told = stage.app.signature("tests.note", ("told of a duplicate",), immutable=True)
    begin = stage.app.signature("tests.keyed", (5,)).on_error(told)
    result = chain(begin, link).apply_async()
    with pytest.raises(DuplicateRun):
        result.get(timeout=PATIENCE)
    wait_for(lambda: bodies(stage, "told of a duplicate"), PATIENCE, "the errback")
    assert bodies(stage, "after a duplicate") == []


def test_nobody_is_told_who_has_not_asked(stage: Stage) -> None:
    stage.get(stage.send("keyed", 6))
    unheard = stage.send("keyed", 6, ignore_result=True)
    wait_for(lambda: stage.ledger.history(key(6)), PATIENCE, "the duplicate")
    assert stage.result(unheard).state == "PENDING"


def test_a_copy_of_the_same_message_is_as_quiet_as_ever(stage: Stage) -> None:
    """Its task id is that of the run: it must not overwrite the result."""
    task_id = stage.send("keyed", 7, copies=5)
    wait_for(lambda: len(stage.ledger.history(key(7))) == 4, PATIENCE, "four duplicates")
    assert stage.get(task_id) == "7 may"
    assert bodies(stage, "7 may") == [task_id]


def test_a_key_holds_within_its_period(stage: Stage) -> None:
    declare: Any = stage.app.task(
        name="tests.monthly",
        base=IdempotentTask,
        idem_key="{customer}",
        idem_grain="month",
        shared=False,
    )

    def monthly(customer: int) -> None: ...

    task = declare(monthly)
    found = [stage.outcome(task.delay(1).id) for _ in range(5)]
    rows = stage.sql("SELECT slot FROM celery_idem_runs WHERE task = 'tests.monthly'")
    # Two, should a month have begun meanwhile.
    assert 1 <= len(set(rows)) == len(rows) <= 2
    assert stage.sql("SELECT count(*) FROM effects WHERE what = 'monthly'") == [(len(rows),)]
    assert sum(isinstance(each, DuplicateRun) for each in found) == 5 - len(rows)


def test_arguments_that_make_no_key_fail_their_message(stage: Stage, worker: Worker) -> None:
    task_id = stage.send("keyed", kwargs={"month": "may"})
    assert isinstance(stage.outcome(task_id), TypeError)
    (line,) = stage.history("keyed", task_id, "refused")
    assert "customer" in str(line.detail)


def test_a_run_whose_worker_dies_goes_on_by_its_own_message(stage: Stage) -> None:
    """And the callers of other messages are told, whoever is the owner meanwhile."""
    gate = str(uuid4())
    first = stage.send("keyed", 8, "may", gate)
    wait_for(lambda: bodies(stage, "8 may"), PATIENCE, "the body")
    ((pid,),) = stage.sql("SELECT pid FROM effects WHERE task_id = %s", first)
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: len(bodies(stage, "8 may")) == 2, PATIENCE, "the body once more")
    assert isinstance(stage.outcome(stage.send("keyed", 8)), DuplicateRun)
    stage.open(gate)
    assert stage.get(first) == "8 may"
    assert bodies(stage, "8 may") == [first, first]


# -- one key, other arguments ----------------------------------------------------------------------


def order(number: int) -> Any:
    return {"headers": {"idem_key": f"order-{number}"}}


def test_a_key_with_other_arguments_is_a_mistake_that_is_told(stage: Stage) -> None:
    first = stage.send("note", "one", **order(1))
    assert stage.get(first) == "one"
    found = stage.outcome(stage.send("note", "another", **order(1)))
    assert isinstance(found, KeyReused)
    assert "order-1" in str(found)
    assert found.task_id == first
    same = stage.send("note", kwargs={"text": "one"}, **order(1))
    assert type(stage.outcome(same)) is DuplicateRun
    row = stage.ledger.read(RunKey(f"{NAMESPACE}:tests.note=order-1"))
    assert row is not None
    details = [line.detail for line in stage.ledger.history(row.key)]
    assert sorted("other arguments" in str(detail) for detail in details) == [False, True]


def test_the_run_of_a_dead_worker_is_not_executed_with_other_arguments(stage: Stage) -> None:
    gate = str(uuid4())
    first = stage.send("gated", gate, **order(2))
    stage.wait_for_effect(first, "started")
    move = (
        "UPDATE celery_idem_leases SET expires_at = now() + %s * interval '1 s'"
        " WHERE id = (SELECT lease_id FROM celery_idem_runs WHERE task_id = %s)"
    )
    stage.sql(move, -1, first)
    found = stage.outcome(stage.send("gated", str(uuid4()), **order(2)))
    assert isinstance(found, KeyReused)
    # Its process lives, and goes on to use the lease, of which it knows nothing.
    stage.sql(move, 60, first)
    stage.open(gate)


def test_arguments_are_not_compared_where_the_task_says_so(stage: Stage) -> None:
    ids = [stage.send("careless", text, **order(3)) for text in ("one", "another")]
    found = sorted(type(stage.outcome(task_id)).__name__ for task_id in ids)
    assert found == ["DuplicateRun", "str"]


def test_arguments_that_are_no_part_of_a_tasks_own_key_do_not_count(stage: Stage) -> None:
    ids = [stage.send("keyed", 20, "may", gate) for gate in (None, "")]
    found = sorted(type(stage.outcome(task_id)).__name__ for task_id in ids)
    assert found == ["DuplicateRun", "str"]


def test_an_expired_message_does_not_skip_the_run_of_another(stage: Stage) -> None:
    """Of one that was put back, and is to be executed when it comes again."""
    key_ = RunKey(f"{NAMESPACE}:tests.note=order-4")
    claimed = stage.ledger.claim(a_claim(stage, key_))
    stage.ledger.give_back(key_, claimed.fence, "it was put back", 3600.0)
    late = stage.send("note", "late", expires=0.001, **order(4))
    wait_for(lambda: stage.ledger.history(key_), PATIENCE, "the duplicate")
    row = stage.ledger.read(key_)
    assert row is not None
    assert (row.state, row.task_id) == (RunState.SCHEDULED, "first")
    assert late != "first"


def a_claim(stage: Stage, key_: RunKey) -> ClaimRequest:
    lease = uuid4().hex
    stage.ledger.register(lease, Owner("worker", "here", 1, "parent"), 3600.0)
    return ClaimRequest(key_, "tests.note", NAMESPACE, None, "first", 0, lease, uuid4().hex)


# -- the same message, once more -------------------------------------------------------------------


def test_a_retry_has_the_key_of_its_run(stage: Stage) -> None:
    """Though it has other arguments, and its sender did not know the task."""
    task_id = stage.send("rekeyed", 1)
    assert stage.get(task_id) == [2, "rekeyed=1"]
    other = stage.send("rekeyed", 1)
    assert isinstance(stage.outcome(other), DuplicateRun)


def test_what_replaces_a_task_is_executed(stage: Stage) -> None:
    task_id = stage.send("replaces_itself", 1, 0)
    assert stage.get(task_id) == 3


def test_an_expired_message_leaves_its_key_free(stage: Stage) -> None:
    expired = stage.send("keyed", 30, expires=-5)
    wait_for(lambda: str(stage.result(expired).state) == "REVOKED", PATIENCE, "its end")
    assert stage.get(stage.send("keyed", 30)) == "30 may"
