"""Owners that die, stand still or lose their database in the middle of a body."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from celery_idem.errors import RunDead
from celery_idem.ledger import Ledger
from celery_idem.run import RunRow, RunState
from tests.integration.conftest import NewStage
from tests.integration.stage import PATIENCE, Stage
from tests.processes import Worker, wait_for
from tests.proxy import Proxy

#: Seconds: the time for which a dead owner's run stays its own.
LEASE = 2.0
#: Seconds after which Redis gives a message again that nobody has acknowledged.
VISIBILITY = 5


@pytest.fixture(scope="module")
def stage(new_stage: NewStage) -> Stage:
    """Redis and PostgreSQL."""
    return new_stage(idem_lease=LEASE)


@pytest.fixture(scope="module")
def worker(stage: Stage) -> Worker:
    """Four children, which will be replaced."""
    return stage.worker("watched", "-c", "4")


@pytest.fixture(scope="module")
def killers(stage: Stage, worker: Worker) -> dict[str, str]:
    """Messages whose bodies kill their process, sent at once to share the waiting."""
    sent = {"dies": stage.send("dies", 1)}
    return sent | {task: stage.send(task) for task in ("dies_always", "dies_once")}


def claims(stage: Stage, task_id: str, what: str) -> list[tuple[Any, ...]]:
    """(attempt, fence) of each body."""
    return stage.sql(
        "SELECT attempt, fence FROM effects WHERE task_id = %s AND what = %s ORDER BY id",
        *(task_id, what),
    )


def test_a_run_whose_process_was_killed_is_taken_over(
    stage: Stage, killers: dict[str, str]
) -> None:
    """The parent returns the message, and whoever gets it after the lease's end goes on."""
    task_id = killers["dies"]
    row = stage.wait_for_success("dies", task_id)
    assert (row.fence, row.attempts, row.retries) == (2, 2, 0)
    assert claims(stage, task_id, "dies") == [(1, 1), (2, 2)]
    assert stage.get(task_id) == "survived"
    facts = stage.facts(task_id)
    assert (facts["run_taken_over"], facts["task_success"], facts["run_duplicate"]) == (1, 1, 0)
    assert [line.kind for line in stage.ledger.history(row.key)] == ["takeover"]


def test_a_run_whose_owners_keep_dying_is_given_up(stage: Stage, killers: dict[str, str]) -> None:
    """max_attempts=2: two processes died, a third is not risked."""
    task_id = killers["dies_always"]
    row = stage.wait_final("dies_always", task_id)
    assert row.state is RunState.DEAD
    assert row.error == "its owners are gone after 2 attempts"
    assert claims(stage, task_id, "dies") == [(1, 1), (2, 2)]
    is_told_of_its_death(stage, task_id, row)


def test_a_run_may_be_abandoned_with_its_owner(stage: Stage, killers: dict[str, str]) -> None:
    """on_crash="abandon": at most once."""
    task_id = killers["dies_once"]
    row = stage.wait_final("dies_once", task_id)
    assert row.state is RunState.DEAD
    assert row.error == "its owner is gone, and on_crash is 'abandon'"
    assert claims(stage, task_id, "dies") == [(1, 1)]
    is_told_of_its_death(stage, task_id, row)


def is_told_of_its_death(stage: Stage, task_id: str, row: RunRow) -> None:
    """Whoever waits for the result learns of it, once; so do errbacks and metrics."""
    with pytest.raises(RunDead) as caught:
        stage.get(task_id)
    assert (caught.value.key, caught.value.reason) == (row.key.text, row.error)
    stage.wait_for_fact(task_id, "run_dead")
    stage.wait_for_fact(task_id, "task_failure")
    facts = stage.facts(task_id)
    assert (facts["run_dead"], facts["task_failure"], facts["run_duplicate"]) == (1, 1, 0)


def hand_over(stage: Stage) -> str:
    """SIGKILL to the worker that executes a body; another one goes on. Returns the task id."""
    victim = stage.worker("watched", "-c", "1", "-Q", "inheritance")
    heir = stage.worker("watched", "-c", "1")
    task_id = stage.send("gated", "killed", queue="inheritance")
    stage.wait_for_effect(task_id, "started")
    victim.kill()
    stage.consume(heir, "inheritance")
    stage.wait_for_effect(task_id, "started", 2)
    stage.open("killed")
    row = stage.wait_for_success("gated", task_id)
    assert (row.fence, row.attempts) == (2, 2)
    assert stage.effects(task_id) == ["started", "started", "ended"]
    assert stage.get(task_id) == "killed"
    facts = stage.facts(task_id)
    assert (facts["run_taken_over"], facts["task_success"], facts["run_duplicate"]) == (1, 1, 0)
    assert "Traceback" not in heir.log
    heir.kill()
    return task_id


def test_rabbitmq_gives_a_dead_workers_message_again_at_once(new_stage: NewStage) -> None:
    """Its owner could be alive: the message is put back until the lease's end."""
    stage = new_stage("rabbitmq", idem_lease=2 * LEASE)
    task_id = hand_over(stage)
    # For a second at least, then for two.
    assert 1 <= stage.facts(task_id)["run_put_back"] <= 3


def test_redis_gives_a_dead_workers_message_again_later(new_stage: NewStage) -> None:
    """After the visibility timeout."""
    options = {"unacked_restore_interval": 1, "unacked_restore_throttle": 1}
    options["visibility_timeout"] = VISIBILITY
    stage = new_stage(transport_options=options, idem_lease=LEASE)
    hand_over(stage)


def test_the_end_of_a_late_owner_is_refused(stage: Stage, worker: Worker) -> None:
    """A worker stands still for longer than its lease, and goes on when the run has ended."""
    sleeper = stage.worker("watched", "-c", "1", "-Q", "sleeper")
    task_id = stage.send("gated", "late", queue="sleeper")
    stage.wait_for_effect(task_id, "started")
    row = stage.row("gated", task_id)
    assert row is not None
    sleeper.pause()
    wait_for(lambda: lease_seconds(stage, task_id) < 0, 10, "the end of the lease")
    stage.send_redelivered(worker, "gated", "late", task_id=task_id)
    stage.wait_for_effect(task_id, "started", 2)
    stage.open("late")
    stage.wait_for_success("gated", task_id)
    sleeper.resume()
    stage.wait_for_effect(task_id, "ended", 2)
    stage.wait_for_fact(task_id, "run_refused")
    (refused,) = stage.history("gated", task_id, "refused")
    assert refused.detail is not None
    assert "the ledger has it succeeded at fence 2" in refused.detail
    # Its message comes again, and finds the run ended.
    stage.wait_for_duplicates("gated", task_id)
    row = stage.wait_final("gated", task_id)
    assert (row.state, row.fence) == (RunState.SUCCEEDED, 2)
    assert claims(stage, task_id, "ended") == [(2, 2), (1, 1)]
    assert stage.facts(task_id)["task_success"] == 1
    assert stage.result(task_id).state == "SUCCESS"


def lease_seconds(stage: Stage, task_id: str) -> float:
    row = stage.row("gated", task_id)
    assert row is not None
    assert row.lease_seconds is not None
    return row.lease_seconds


def test_a_redelivered_message_comes_back_as_long_as_its_run_goes_on(
    stage: Stage, worker: Worker
) -> None:
    """It was with the owner: dropped, it would leave nobody to notice that the owner is dead."""
    task_id = stage.send("gated", "long")
    stage.wait_for_effect(task_id, "started")
    stage.send_redelivered(worker, "gated", "long", task_id=task_id)
    stage.wait_for_fact(task_id, "run_put_back", 2)
    assert stage.history("gated", task_id) == []
    stage.open("long")
    assert stage.get(task_id) == "long"
    (copy,) = stage.wait_for_duplicates("gated", task_id)
    assert copy.detail == "its run has ended: succeeded"
    assert stage.effects(task_id) == ["started", "ended"]


@pytest.fixture(scope="module")
def proxy(module_postgres: str) -> Iterator[Proxy]:
    """Between a worker and its ledger."""
    with Proxy.before(module_postgres) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def behind(new_stage: NewStage, module_postgres: str, proxy: Proxy) -> Stage:
    """A stage with one child, whose ledger is behind the proxy."""
    stage = new_stage(ledger=proxy.url(module_postgres), idem_lease=LEASE)
    stage.worker("watched", "-c", "1")
    return stage


def test_a_body_outlives_its_lease_and_its_database(
    behind: Stage, proxy: Proxy, module_postgres: str
) -> None:
    """A database that is away for longer than a lease: the end is written when it is back."""
    task_id = behind.send("gated", "trust")
    behind.wait_for_effect(task_id, "started")
    past_the_proxy = Ledger.from_url(module_postgres)

    def lease_has_ended() -> bool:
        row = past_the_proxy.read(behind.key("gated", task_id))
        return row is not None and (row.lease_seconds or 0.0) <= 0

    assert not lease_has_ended()
    proxy.cut()
    behind.open("trust")
    behind.wait_for_effect(task_id, "ended")
    wait_for(lease_has_ended, PATIENCE, "the end of the lease")
    past_the_proxy.close()
    assert behind.result(task_id).state == "PENDING"
    proxy.mend()
    row = behind.wait_for_success("gated", task_id)
    assert (row.fence, row.attempts) == (1, 1)
    assert behind.effects(task_id) == ["started", "ended"]
    facts = behind.facts(task_id)
    assert (facts["task_success"], facts["run_put_back"], facts["run_refused"]) == (1, 0, 0)


@pytest.mark.parametrize("when", ["first", "later"])
def test_a_time_limit_before_the_body_loses_nothing(behind: Stage, proxy: Proxy, when: str) -> None:
    """The database stands still until the soft time limit: the message comes again.

    The first message of a child registers task and lease, later ones only claim.
    """
    if when == "later":
        behind.wait_for_success("brief", behind.send("brief"))
    proxy.freeze()
    try:
        task_id = behind.send("brief")
        behind.wait_for_fact(task_id, "run_put_back")
        assert behind.effects(task_id) == []
    finally:
        proxy.mend()
    behind.wait_for_success("brief", task_id)
    assert behind.effects(task_id) == ["brief"]
    assert behind.facts(task_id)["task_failure"] == 0
