"""The ledger's database goes away and comes back while workers have messages."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any
from uuid import uuid4

import pytest
from celery import chord

from celery_idem.keys import RunKey
from celery_idem.ledger import Ledger
from celery_idem.run import RunState
from tests.integration.conftest import NewStage
from tests.integration.stage import NAMESPACE, PATIENCE, Stage
from tests.processes import Worker, wait_for
from tests.proxy import Proxy


@pytest.fixture(scope="module")
def proxy(module_postgres: str) -> Iterator[Proxy]:
    """Between the workers and the ledger's database; effects go past it."""
    with Proxy.before(module_postgres) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def stage(new_stage: NewStage, module_postgres: str, proxy: Proxy) -> Stage:
    """The ledger of workers and test is behind the proxy."""
    return new_stage(ledger=proxy.url(module_postgres))


@pytest.fixture(scope="module")
def worker(stage: Stage) -> Worker:
    """Its children have used the ledger before it goes away."""
    worker = stage.worker("watched", "-c", "2")
    for task_id in [stage.send("note") for _ in range(4)]:
        assert stage.get(task_id) == ""
    return worker


@contextmanager
def away(stage: Stage, proxy: Proxy) -> Iterator[None]:
    """The database is gone, and at least one worker has noticed it at the end."""
    proxy.cut()
    try:
        yield
        stage.wait_for_fact(stage.send("note", task_id=str(uuid4())), "run_put_back")
    finally:
        proxy.mend()


def test_a_message_is_put_back_and_runs_once(stage: Stage, proxy: Proxy, worker: Worker) -> None:
    """Nothing runs unclaimed: messages come again, with retry number, links, chains and chords."""
    add, total = stage.app.signature("tests.add"), stage.app.signature("tests.total")
    link = stage.app.signature("tests.note", ("linked",), immutable=True).set(task_id="the-link")
    with away(stage, proxy):
        task_id = stage.send("note", "patient", retries=2)
        chain: Any = (add.clone((1, 2)) | add.clone((10,))).apply_async(link=link)
        group: Any = chord([add.clone((1,)), add.clone((2,))], app=stage.app)(total)
        first = [task_id, chain.parent.id, *(member.id for member in group.parent.children)]
        for one in first:
            stage.wait_for_fact(one, "run_put_back")
            assert stage.effects(one) == []
            assert stage.result(one).state == "PENDING"
    assert stage.get(task_id) == "patient"
    row = stage.wait_final("note", task_id)
    assert (row.state, row.fence, row.retries) == (RunState.SUCCEEDED, 1, 2)
    assert stage.sql("SELECT what, retries FROM effects WHERE task_id = %s", task_id) == [
        ("note", 2)
    ]
    stage.wait_for_fact(task_id, "task_success")
    assert stage.facts(task_id).keys() == {"task_success", "run_put_back"}
    assert stage.get(chain.id) == 13
    assert stage.get(group.id) == 3
    stage.wait_for_effect("the-link", "note")
    for one in (*first[1:], chain.id):
        assert stage.effects(one) == ["add"]
    assert stage.effects(group.id) == ["total"]
    # It is told in plain words, without a traceback.
    assert "does not answer" in worker.log
    assert "idem_database_url" in worker.log
    assert "Traceback" not in worker.log


def test_a_task_may_run_without_a_claim(stage: Stage, proxy: Proxy, worker: Worker) -> None:
    """on_database_error = "run" is an opt-out of the promise: each copy runs."""
    with away(stage, proxy):
        task_id = stage.send("unclaimed", copies=2)
        stage.wait_for_effect(task_id, "unclaimed", 2)
        stage.wait_for_fact(task_id, "task_success", 2)
    assert stage.row("unclaimed", task_id) is None


@pytest.mark.parametrize(
    ("options", "is_shared"),
    [
        ({}, False),
        ({"on_crash": "abandon"}, False),
        ({"max_attempts": 1}, False),
        ({"on_crash": "abandon"}, True),
    ],
)
def test_a_claim_whose_answer_is_lost_is_taken_back(
    new_stage: NewStage,
    module_postgres: str,
    proxy: Proxy,
    options: dict[str, Any],
    is_shared: bool,
) -> None:
    """As soon as the database answers: the claim's lease would hold the run for ten minutes.

    No body has begun, so that it is no attempt, and nothing that must not be repeated.
    """
    settings: Any = {f"idem_{name}": value for name, value in options.items()}
    stage = new_stage(ledger=proxy.url(module_postgres), idem_lease=600, **settings)
    stage.worker("watched", "-c", "1")
    assert stage.get(stage.send("note")) == ""
    task_id = str(uuid4())
    proxy.cut_when(lambda _, message: task_id.encode() in message, forwarded=True)
    headers = {"idem_key": task_id} if is_shared else {}
    key = RunKey(f"{NAMESPACE}:tests.note" + (f"={task_id}" if is_shared else f"[{task_id}]"))
    stage.send("note", task_id=task_id, headers=headers)
    assert proxy.struck.wait(PATIENCE), "no claim"
    proxy.cut()
    try:
        stage.wait_for_fact(task_id, "run_put_back")
        with closing(Ledger.from_url(module_postgres)) as ledger:
            row = ledger.read(key)
        # Its worker does not know it.
        assert row is not None and row.state is RunState.RUNNING
        assert (row.lease_seconds or 0.0) > 500
    finally:
        proxy.mend()
    assert stage.get(task_id) == ""
    row = stage.ledger.read(key)
    assert row is not None
    assert (row.state, row.fence, row.attempts) == (RunState.SUCCEEDED, 2, 1)
    assert stage.effects(task_id) == ["note"]


def test_a_database_that_goes_away_before_a_lock_is_taken_fails_nothing(
    new_stage: NewStage, module_postgres: str, proxy: Proxy
) -> None:
    """The run is claimed, and its body has not begun: the message comes again."""
    stage = new_stage(ledger=proxy.url(module_postgres))
    worker = stage.worker("locked", "-c", "1")
    stage.open("locked")
    assert stage.get(stage.send("comes_again", "locked")) == "done"
    proxy.cut_when(lambda _, message: b"desk:77" in message, forwarded=False)
    task_id = stage.send("comes_again", "locked", 77)
    assert proxy.struck.wait(PATIENCE), "nobody asks for the lock"
    proxy.cut()
    try:
        wait_for(lambda: "is not recorded yet" in worker.log, PATIENCE, worker.tail)
    finally:
        proxy.mend()
    assert stage.get(task_id) == "done"
    row = stage.wait_final("comes_again", task_id)
    assert (row.state, row.attempts) == (RunState.SUCCEEDED, 1)


def test_a_body_outlives_its_database(stage: Stage, proxy: Proxy, worker: Worker) -> None:
    """A database that is away when the body ends is waited for: the body does not run again."""
    task_id = stage.send("gated", "outlives")
    stage.wait_for_effect(task_id, "started")
    with away(stage, proxy):
        stage.open("outlives")
        stage.wait_for_effect(task_id, "ended")
        # Not before the ledger knows the end.
        assert stage.result(task_id).state == "PENDING"
    assert stage.get(task_id) == "outlives"
    row = stage.wait_final("gated", task_id)
    assert (row.state, row.fence) == (RunState.SUCCEEDED, 1)
    assert stage.effects(task_id) == ["started", "ended"]


def test_a_retry_waits_for_the_database(stage: Stage, proxy: Proxy, worker: Worker) -> None:
    """retry() publishes nothing before the ledger awaits it."""
    task_id = stage.send("gated_retry", "retry")
    stage.wait_for_effect(task_id, "try")
    with away(stage, proxy):
        stage.open("retry")
        stage.wait_for_effect(task_id, "retrying")
    assert stage.wait_for_success("gated_retry", task_id).fence == 2
    assert stage.effects(task_id) == ["try", "retrying", "try"]
    assert stage.facts(task_id)["run_put_back"] == 0
