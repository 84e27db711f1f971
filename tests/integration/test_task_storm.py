"""Thousands of copies and hundreds of retries: each is counted, and none is stuck."""

from __future__ import annotations

from collections import Counter
from datetime import datetime, timezone
from typing import Any
from uuid import uuid4

import pytest

from celery_idem.keys import RunKey
from celery_idem.run import RunState
from tests.integration.conftest import NewStage
from tests.integration.stage import NAMESPACE, Stage
from tests.processes import Worker, wait_for

COPIES = 1000
RETRIES = 100
#: Tasks in a chain.
LINKS = 25
SLOT = datetime(2026, 3, 29, 1, 30, tzinfo=timezone.utc)
PAIRS = [("redis", "postgres"), ("rabbitmq", "mariadb")]


class Storm:
    """A stage and its two workers of two children each."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.workers: list[Worker] = []
        for _ in range(2):
            self.workers.append(stage.new_worker("tasks", "-c", "2"))
            self.workers[-1].start()
        for worker in self.workers:
            worker.ready()

    def counts(self) -> dict[str, int]:
        return self.stage.ledger.counts()

    def wait_for_duplicates(self, before: dict[str, int]) -> None:
        """Until each copy but one is in the history."""
        wanted = before.get("duplicate", 0) + COPIES - 1
        wait_for(
            lambda: self.counts().get("duplicate", 0) >= wanted, 60, lambda: str(self.counts())
        )
        assert self.counts()["duplicate"] == wanted

    def assert_calm(self) -> None:
        """Nothing in any log looks like a fault."""
        for worker in self.workers:
            for word in ("Traceback", "ERROR", "CRITICAL"):
                assert word not in worker.log


@pytest.fixture(scope="module", params=PAIRS, ids="-".join)
def storm(new_stage: NewStage, request: pytest.FixtureRequest) -> Any:
    """On each pair of broker and ledger."""
    broker, ledger = request.param
    storm = Storm(new_stage(broker, ledger))
    yield storm
    for worker in storm.workers:
        worker.kill()


@pytest.mark.sample("redis-postgres")
def test_a_thousand_copies_of_a_message_run_once(storm: Storm) -> None:
    """One task id: 1 execution, 999 duplicates recorded."""
    stage, before = storm.stage, storm.counts()
    task_id = stage.send("note", "storm", copies=COPIES)
    storm.wait_for_duplicates(before)
    assert stage.effects(task_id) == ["note"]
    assert len(stage.history("note", task_id)) == COPIES - 1
    row = stage.wait_final("note", task_id)
    assert (row.state, row.fence) == (RunState.SUCCEEDED, 1)
    assert stage.get(task_id) == "storm"
    storm.assert_calm()


@pytest.mark.sample("rabbitmq-mariadb")
def test_a_thousand_copies_of_a_slot_run_once(storm: Storm) -> None:
    """One run key, stamped by beats: 1 execution, 999 duplicates recorded."""
    stage, before = storm.stage, storm.counts()
    key = RunKey.for_slot(NAMESPACE, f"storm {uuid4()}", SLOT)
    task_id = stage.send("note", "storm", copies=COPIES, **stage.stamped(key, "note"))
    storm.wait_for_duplicates(before)
    assert stage.effects(task_id) == ["note"]
    assert len(stage.ledger.history(key)) == COPIES - 1
    row = stage.ledger.read(key)
    assert row is not None
    assert (row.state, row.fence) == (RunState.SUCCEEDED, 1)
    storm.assert_calm()


@pytest.mark.sample("redis-postgres-retries", "rabbitmq-mariadb-autoretry")
@pytest.mark.parametrize("task", ["retries", "autoretry"])
def test_a_hundred_retries_with_idle_workers(storm: Storm, task: str) -> None:
    """countdown=0, and always a child that is free: three tries each, none is stuck."""
    stage = storm.stage
    ids = [str(uuid4()) for _ in range(RETRIES)]
    for start in range(0, RETRIES, 2 * LINKS):
        # Each link is published when the one before it has ended: two at a time for four children,
        # so that no retry waits in the queue.
        chains = ids[start : start + LINKS], ids[start + LINKS : start + 2 * LINKS]
        for links in chains:
            stage.chain(task, 2, ids=links)
        for links in chains:
            stage.wait_final(task, links[-1])
    for task_id in ids:
        row = stage.wait_final(task, task_id)
        assert (row.state, row.retries, row.fence) == (RunState.SUCCEEDED, 2, 3)
    tries = "SELECT task_id FROM effects WHERE what = 'try' AND task_id = ANY(%s)"
    assert Counter(task_id for (task_id,) in stage.sql(tries, ids)) == dict.fromkeys(ids, 3)
    storm.assert_calm()
