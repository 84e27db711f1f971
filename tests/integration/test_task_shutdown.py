"""Workers that are stopped in mid-body: what becomes of row, result and message.

Warm (TERM), cold (QUIT), and cold after `worker_soft_shutdown_timeout`, in each pool that differs.
"""

from __future__ import annotations

import os
import signal
from typing import Any
from uuid import uuid4

import pytest

from celery_idem.run import RunState
from tests.integration.conftest import NewStage
from tests.integration.stage import PATIENCE, Stage
from tests.processes import GONE, Worker, wait_for

#: Seconds: nobody waits for the end of a lease here.
LEASE = 10 * PATIENCE
#: Seconds of a soft shutdown in which a body that is let go ends, and in which one that is not does
#: not. Celery sleeps that long in any case.
LONG, SHORT = 8, 1
#: The processes that have begun a body.
OWNERS = "SELECT pid FROM effects WHERE task_id = %s AND what = 'started'"
Heirs = dict[str, tuple[Stage, Worker]]


@pytest.fixture(scope="module")
def heirs(new_stage: NewStage) -> Heirs:
    """For each broker a worker with one process that takes what those leave which are stopped."""
    stages = {broker: new_stage(broker, idem_lease=LEASE) for broker in ("redis", "rabbitmq")}
    return {
        broker: (stage, stage.worker("watched", "-c", "1", "-Q", "heirs"))
        for broker, stage in stages.items()
    }


class Stopped:
    """A worker with a queue of its own, stopped while its body waits at a gate.

    Arguments:
        settings: further ones of that worker.
    """

    def __init__(self, heir: tuple[Stage, Worker], pool: str, **settings: Any) -> None:
        self.stage, self.heir = heir
        self.name = str(uuid4())
        options = ("-P", pool, "-c", "1", "-Q", self.name)
        self.worker = self.stage.worker("watched", *options, settings=settings)
        self.task_id = self.stage.send("gated", self.name, queue=self.name)
        self.stage.wait_for_effect(self.task_id, "started")

    def signal(self, number: signal.Signals, says: str) -> None:
        """Returns when the worker has said what it makes of the signal."""
        os.kill(self.worker.pid, number)
        wait_for(lambda: says in self.worker.log, PATIENCE, lambda: f"{says}: {self.worker.tail()}")

    def let_go(self) -> None:
        """The body goes on."""
        self.stage.open(self.name)

    def has_ended(self) -> None:
        """The worker, as it should."""
        wait_for(lambda: not self.worker.running, GONE, lambda: f"its end: {self.worker.tail()}")
        assert self.worker.returncode == 0
        assert "Traceback" not in self.worker.log
        # All others are the heir's, which is there.
        pids = [pid for (pid,) in self.stage.sql(OWNERS, self.task_id)]
        assert self.stage.sql("SELECT id FROM celery_idem_leases WHERE pid = ANY(%s)", pids) == []

    def leave(self) -> None:
        """Returns when the heir has had all messages that were left in the queue."""
        self.stage.consume(self.heir, self.name)
        # What was returned stands before it.
        self.stage.get(self.stage.send("note", queue=self.name))

    def ends_as_if_nothing_were(self) -> None:
        """One body, one result; no message is left."""
        stage, task_id = self.stage, self.task_id
        row = stage.wait_for_success("gated", task_id)
        assert (row.fence, row.attempts) == (1, 1)
        self.has_ended()
        self.leave()
        assert stage.effects(task_id) == ["started", "ended"]
        assert stage.get(task_id) == self.name
        assert stage.facts(task_id) == {"task_success": 1}

    def goes_on_elsewhere(self) -> None:
        """The run stays open, belongs to nobody, and its message is with the broker."""
        stage, task_id = self.stage, self.task_id
        self.has_ended()
        row = stage.row("gated", task_id)
        assert row is not None
        assert (row.state, row.lease_seconds) == (RunState.RUNNING, None)
        assert stage.result(task_id).state == "PENDING"
        self.let_go()
        self.leave()
        row = stage.wait_for_success("gated", task_id)
        assert (row.fence, row.attempts) == (2, 2)
        assert stage.effects(task_id) == ["started", "started", "ended"]
        assert stage.get(task_id) == self.name
        assert stage.facts(task_id) == {"run_taken_over": 1, "task_success": 1}


@pytest.fixture(params=["redis", "rabbitmq"])
def heir(heirs: Heirs, request: pytest.FixtureRequest) -> tuple[Stage, Worker]:
    return heirs[request.param]


#: What a worker says first of a cold shutdown.
COLD = "Hitting Ctrl+C again will terminate all running tasks"


@pytest.mark.sample("redis-*")
@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_a_warm_shutdown_lets_a_body_end(heir: tuple[Stage, Worker], pool: str) -> None:
    stopped = Stopped(heir, pool)
    stopped.signal(signal.SIGTERM, "Warm shutdown")
    stopped.let_go()
    stopped.ends_as_if_nothing_were()


def test_a_cold_shutdown_gives_the_run_to_another_worker_at_once(
    heir: tuple[Stage, Worker],
) -> None:
    """Its pool process is killed, and what that owned is freed by the worker before it ends."""
    stopped = Stopped(heir, "prefork")
    stopped.signal(signal.SIGQUIT, COLD)
    stopped.goes_on_elsewhere()


@pytest.mark.parametrize("pool", ["threads", "solo"])
def test_a_cold_shutdown_is_a_warm_one_where_nothing_can_be_killed(
    heir: tuple[Stage, Worker], pool: str
) -> None:
    stopped = Stopped(heir, pool)
    stopped.signal(signal.SIGQUIT, COLD)
    stopped.let_go()
    stopped.ends_as_if_nothing_were()


@pytest.mark.sample("redis")
def test_a_soft_shutdown_gives_the_run_to_another_worker_after_its_time(
    heir: tuple[Stage, Worker],
) -> None:
    stopped = Stopped(heir, "prefork", worker_soft_shutdown_timeout=SHORT)
    stopped.signal(signal.SIGQUIT, "Initiating Soft Shutdown")
    stopped.goes_on_elsewhere()


@pytest.mark.sample("rabbitmq")
def test_a_body_that_ends_during_a_soft_shutdown_is_not_repeated(
    heir: tuple[Stage, Worker],
) -> None:
    stopped = Stopped(heir, "prefork", worker_soft_shutdown_timeout=LONG)
    stopped.signal(signal.SIGQUIT, "Initiating Soft Shutdown")
    stopped.let_go()
    stopped.ends_as_if_nothing_were()
