"""Results that the ledger keeps, and gives to whoever asks for the same again."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest
from celery import chain

from celery_idem import DuplicateRun, RunKey
from celery_idem.run import RunState
from tests.integration.stage import NAMESPACE, Stage
from tests.processes import Worker, wait_for

pytestmark = pytest.mark.usefixtures("worker")

PATIENCE = 60


def key(name: str, task: str = "replayed") -> RunKey:
    return RunKey(f"{NAMESPACE}:tests.{task}={name}")


def bodies(stage: Stage, name: str) -> int:
    return len(stage.sql("SELECT 1 FROM effects WHERE what = 'replayed' AND detail = %s", name))


def test_a_duplicate_gets_the_result_of_the_first(stage: Stage, worker: Worker) -> None:
    ids = [stage.send("replayed", "a", {"n": [1, None]}) for _ in range(10)]
    results = [stage.get(task_id) for task_id in ids]
    assert results == [{"name": "a", "value": {"n": [1, None]}}] * 10
    assert bodies(stage, "a") == 1
    assert len(stage.ledger.history(key("a"))) == 9
    assert "Traceback" not in worker.log


def test_a_duplicate_of_what_goes_on_waits_for_its_result(stage: Stage) -> None:
    gate = str(uuid4())
    first = stage.send("replayed", "b", 1, gate)
    wait_for(lambda: bodies(stage, "b"), PATIENCE, "the body")
    second = stage.send("replayed", "b")
    stage.wait_for_fact(second, "run_put_back")
    stage.open(gate)
    assert stage.get(second) == stage.get(first) == {"name": "b", "value": 1}
    assert bodies(stage, "b") == 1


def test_a_chain_goes_on_with_the_result_of_the_first(stage: Stage) -> None:
    stage.get(stage.send("replayed", "c", 7))
    begin = stage.app.signature("tests.replayed", ("c",))
    result = chain(begin, stage.app.signature("tests.size", ())).apply_async()
    assert result.get(timeout=PATIENCE) == 2
    assert bodies(stage, "c") == 1


def test_a_result_is_kept_although_it_was_sent_on(stage: Stage) -> None:
    """Its callbacks have been sent, for which the ledger keeps results for a while anyway."""
    begin = stage.app.signature("tests.replayed", ("d", 1))
    result = chain(begin, stage.app.signature("tests.size", ())).apply_async()
    assert result.get(timeout=PATIENCE) == 2
    wait_for(lambda: not row(stage, "d").callbacks_pending, PATIENCE, "callbacks")
    assert stage.get(stage.send("replayed", "d")) == {"name": "d", "value": 1}


def row(stage: Stage, name: str) -> Any:
    found = stage.ledger.read(key(name))
    assert found is not None
    return found


def test_a_result_of_a_run_that_has_ended_itself_is_kept(stage: Stage) -> None:
    """By a transaction, before the body returned."""
    first = stage.send("replayed", "e", "transaction")
    assert stage.get(first) == stage.get(stage.send("replayed", "e"))
    assert row(stage, "e").state is RunState.SUCCEEDED


@pytest.mark.parametrize("size", ["large", "large, in a transaction", "object"])
def test_what_is_not_stored_is_an_error_that_says_so(
    stage: Stage, worker: Worker, size: str
) -> None:
    """The first one has its result, by a serializer that knows more than JSON."""
    first = stage.send("replayed", size, size)
    stage.result(first).get(timeout=PATIENCE, propagate=False)
    wait_for(lambda: row(stage, size).state.final, PATIENCE, "an end")
    found = stage.outcome(stage.send("replayed", size))
    assert isinstance(found, DuplicateRun)
    assert "its result was not stored" in str(found)
    assert f"{key(size)}: the result of tests.replayed is not stored" in worker.log


def test_a_failure_is_told_and_not_repeated(stage: Stage) -> None:
    first = stage.send("replayed", "f", "error")
    assert isinstance(stage.outcome(first), ValueError)
    found = stage.outcome(stage.send("replayed", "f"))
    assert isinstance(found, DuplicateRun)
    assert "ValueError: f" in str(found)
    assert bodies(stage, "f") == 1


def test_nobody_is_told_if_that_is_asked_for(stage: Stage) -> None:
    stage.get(stage.send("ignored", "g"))
    second = stage.send("ignored", "g")
    wait_for(lambda: stage.ledger.history(key("g", "ignored")), PATIENCE, "the duplicate")
    assert stage.result(second).state == "PENDING"
