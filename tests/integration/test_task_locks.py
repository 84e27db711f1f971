"""Critical sections in real workers: one at a time, whatever dies, stops or is flushed."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import pytest
from celery.exceptions import TaskRevokedError
from redis import Redis

from celery_idem.errors import LockNotAcquired
from celery_idem.run import RunState
from tests.integration.conftest import NewStage
from tests.integration.stage import PATIENCE, Stage
from tests.processes import Worker, wait_for

#: Seconds: the time for which a stopped owner's locks stay its own.
LEASE = 2.0

_desks = itertools.count(1)


@pytest.fixture(scope="module", params=["with Redis", "without Redis"])
def stage(request: pytest.FixtureRequest, new_stage: NewStage, module_redis: str) -> Stage:
    """Redis and PostgreSQL; locks with a Redis in front, and by rows alone."""
    url = module_redis if request.param == "with Redis" else None
    return new_stage(idem_lease=LEASE, idem_redis_url=url)


@pytest.fixture(scope="module", autouse=True)
def worker(stage: Stage) -> Worker:
    """Four children."""
    return stage.worker("locked", "-c", "4")


@pytest.fixture
def desk() -> int:
    """A lock of the test's own."""
    return next(_desks)


def hold(stage: Stage, task: str, desk: int) -> str:
    """A body that is in its critical section, and stays until its gate, its task id, is opened."""
    task_id = str(uuid4())
    stage.send(task, task_id, desk, task_id=task_id)
    stage.wait_for_effect(task_id, "in")
    return task_id


def details(stage: Stage, task_id: str, what: str) -> list[Any]:
    statement = "SELECT detail FROM effects WHERE task_id = %s AND what = %s ORDER BY id"
    return [detail for (detail,) in stage.sql(statement, task_id, what)]


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """A process that stands still meanwhile."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("comes_again", "comes_again"),
        ("enters", "autoretries"),
        ("comes_again", "enters"),
        ("enters", "waits"),
    ],
)
def test_two_are_never_inside_at_once(stage: Stage, desk: int, first: str, second: str) -> None:
    """The second one gets in after the first, at the cost of no retry and no attempt."""
    holder = hold(stage, first, desk)
    task_id = str(uuid4())
    stage.open(task_id)
    stage.send(second, task_id, desk, task_id=task_id)
    if second == "waits":
        stage.wait_for_effect(task_id, "before")
    else:
        stage.wait_for_fact(task_id, "run_put_back")
    assert "in" not in stage.effects(task_id)
    stage.open(holder)
    row = stage.wait_for_success(second, task_id)
    assert (row.attempts, row.retries) == (1, 0)
    order = stage.sql(
        "SELECT task_id, what FROM effects WHERE task_id IN (%s, %s) AND what IN ('in', 'out') "
        "ORDER BY id",
        *(holder, task_id),
    )
    assert order == [(holder, "in"), (holder, "out"), (task_id, "in"), (task_id, "out")]
    assert stage.facts(task_id)["task_retry"] == 0


def test_different_locks_do_not_meet(stage: Stage, desk: int) -> None:
    holder = hold(stage, "comes_again", desk)
    other = hold(stage, "comes_again", next(_desks))
    for task_id in (holder, other):
        stage.open(task_id)
        assert stage.get(task_id) == "done"


def test_a_run_may_be_skipped_over_it(stage: Stage, desk: int) -> None:
    """Its row tells why, and whoever waits for its result is told so."""
    holder = hold(stage, "comes_again", desk)
    task_id = stage.send("is_skipped", "unused", desk)
    row = stage.wait_final("is_skipped", task_id)
    assert (row.state, row.error) == (RunState.SKIPPED, f"lock 'desk:{desk}' is not free")
    with pytest.raises(TaskRevokedError, match="is not free"):
        stage.get(task_id)
    assert not stage.effects(task_id)
    stage.open(holder)


def test_a_run_may_fail_over_it(stage: Stage, desk: int) -> None:
    holder = hold(stage, "comes_again", desk)
    task_id = stage.send("fails", "unused", desk)
    with pytest.raises(LockNotAcquired, match=f"'desk:{desk}' is not free"):
        stage.get(task_id)
    assert stage.wait_final("fails", task_id).state is RunState.FAILED
    stage.open(holder)


def test_plain_tasks_take_locks_too(stage: Stage, desk: int) -> None:
    assert stage.get(stage.send("plain", desk)) == "in True"
    holder = hold(stage, "enters", desk)
    assert stage.get(stage.send("plain", desk)) == f"lock 'desk:{desk}' is not free"
    stage.open(holder)
    assert stage.get(holder) == "done"
    assert stage.get(stage.send("plain", desk)) == "in True"


def test_a_lock_ends_with_the_body_that_forgot_it(stage: Stage, desk: int) -> None:
    task_id = stage.send("forgets", desk)
    stage.get(task_id)
    stage.wait_final("forgets", task_id)
    assert stage.get(stage.send("plain", desk)) == "in True"


def test_the_lock_of_a_killed_process_is_free_in_moments(stage: Stage, desk: int) -> None:
    """Its parent sees it die, and deletes its leases."""
    task_id = stage.send("dies_inside", desk)
    stage.wait_for_success("dies_inside", task_id)
    first, second = map(int, details(stage, task_id, "in"))
    assert second > first
    assert stage.row("dies_inside", task_id).attempts == 2  # type: ignore[union-attr]


def test_a_stopped_holder_learns_that_its_lock_was_lost(stage: Stage, desk: int) -> None:
    """SIGSTOP for longer than the lease: another one gets in, with a larger fence."""
    task_id = hold(stage, "notices", desk)
    ((pid,),) = stage.sql("SELECT pid FROM effects WHERE task_id = %s", task_id)
    with stopped(pid):
        other = hold(stage, "waits", desk)
        ((old,), (new,)) = (details(stage, it, "in") for it in (task_id, other))
        assert int(new) > int(old)
    stage.open(task_id)
    stage.wait_for_effect(task_id, "lost")
    assert details(stage, task_id, "lost") == [old]
    assert stage.get(stage.send("plain", desk)) == f"lock 'desk:{desk}' is not free"
    stage.open(other)
    assert stage.get(other) == "done"


def test_a_run_whose_lock_was_lost_with_its_lease_comes_again(stage: Stage, desk: int) -> None:
    """`check` raises before the work is done: that is no failure of the body."""
    task_id = hold(stage, "insists", desk)
    ((pid,),) = stage.sql("SELECT pid FROM effects WHERE task_id = %s", task_id)
    with stopped(pid):
        other = hold(stage, "waits", desk)
    stage.open(other)
    assert stage.get(other) == "done"
    stage.open(task_id)
    row = stage.wait_for_success("insists", task_id)
    assert (row.fence, row.attempts) == (2, 2)
    assert len(details(stage, task_id, "worked")) == 1


def test_a_flushed_redis_lets_nobody_in(stage: Stage, desk: int) -> None:
    holder = hold(stage, "enters", desk)
    if url := stage.settings["idem_redis_url"]:
        with Redis.from_url(url) as redis:
            (key,) = redis.keys(f"*:desk:{desk}}}")
            redis.delete(key)
    assert stage.get(stage.send("plain", desk)) == f"lock 'desk:{desk}' is not free"
    stage.open(holder)
    assert stage.get(holder) == "done"


def test_max_hold_lets_others_in(stage: Stage, desk: int) -> None:
    task_id = hold(stage, "uses_up_its_time", desk)
    other = hold(stage, "waits", desk)
    stage.open(task_id)
    assert stage.get(task_id) == "done"
    assert details(stage, task_id, "out") == ["True"]
    stage.open(other)
    assert stage.get(other) == "done"


def test_nothing_is_held_in_the_end(stage: Stage) -> None:
    wait_for(
        lambda: not stage.ledger.held_locks(), PATIENCE, lambda: str(stage.ledger.held_locks())
    )
