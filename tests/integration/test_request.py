"""The parent's verdicts: a run whose pool process is killed on purpose ends in the ledger."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from celery.exceptions import TaskRevokedError, TimeLimitExceeded

from celery_idem import Ledger, RunKey, RunState
from celery_idem.ledger import LockRow
from celery_idem.run import RunRow
from tests.processes import Worker, wait_for

APP = "tests.integration.verdict_app"


@pytest.fixture
def ledger(postgres_url: str) -> Iterator[Ledger]:
    ledger = Ledger.from_url(postgres_url)
    ledger.now()  # Makes the tables, which would take the better part of a short time limit.
    yield ledger
    ledger.close()


@pytest.fixture
def client(redis_url: str) -> Iterator[Celery]:
    client = Celery("client", broker=redis_url, backend=redis_url)
    yield client
    client.close()


@pytest.fixture
def worker(tmp_path: Path, postgres_url: str, redis_url: str) -> Iterator[Worker]:
    env = {"BROKER": redis_url, "BACKEND": redis_url, "LEDGER": postgres_url}
    with Worker(APP, tmp_path, "--concurrency", "2", env=env) as worker:
        yield worker


def send(client: Celery, name: str) -> tuple[Any, RunKey]:
    """The result of a message without a run key, and the key that the worker gives it."""
    task = f"{APP}.{name}"
    result = client.send_task(task)
    return result, RunKey.for_message("verdicts", task, result.id)


def in_state(ledger: Ledger, key: RunKey, state: RunState) -> RunRow:
    def read() -> RunRow | None:
        row = ledger.read(key)
        return row if row is not None and row.state is state else None

    row = wait_for(read, 30, lambda: f"{key} {state.label}; it is {ledger.read(key)}")
    assert row is not None
    return row


def test_a_hard_time_limit_ends_the_run_as_failed(
    ledger: Ledger, client: Celery, worker: Worker
) -> None:
    """Celery stores the failure and acknowledges; the ledger must not wait for a lease."""
    result, key = send(client, "limited")
    with pytest.raises(TimeLimitExceeded):
        result.get(timeout=30)
    row = in_state(ledger, key, RunState.FAILED)
    assert row.error == "the hard time limit of 1 seconds was exceeded"
    assert send(client, "short")[0].get(timeout=30) == "done"
    assert in_state(ledger, key, RunState.FAILED).fence == row.fence
    # The lease would last for a minute.
    wait_for(lambda: not held(ledger), 30, lambda: str(ledger.held_locks()))


def held(ledger: Ledger) -> list[LockRow]:
    """Locks whose holders have a lease."""
    return [row for _, row in ledger.held_locks() if row.lease_seconds is not None]


def test_a_terminated_task_ends_as_failed(ledger: Ledger, client: Celery, worker: Worker) -> None:
    result, key = send(client, "endless")
    in_state(ledger, key, RunState.RUNNING)
    result.revoke(terminate=True, signal="KILL")
    with pytest.raises(TaskRevokedError):
        result.get(timeout=30)
    row = in_state(ledger, key, RunState.FAILED)
    assert row.error == "it was revoked and terminated"
    assert send(client, "short")[0].get(timeout=30) == "done"


def test_a_verdict_never_touches_the_run_of_another_owner(
    ledger: Ledger, client: Celery, worker: Worker
) -> None:
    """It names the lease of the parent's own child: another parent's pid may be the same."""
    result, key = send(client, "endless")
    row = in_state(ledger, key, RunState.RUNNING)
    assert not ledger.fail_of_child(key, "another parent", worker.pid, "wrong")
    assert row.lease_id is not None
    assert in_state(ledger, key, RunState.RUNNING).fence == row.fence
    result.revoke(terminate=True, signal="KILL")
    in_state(ledger, key, RunState.FAILED)
