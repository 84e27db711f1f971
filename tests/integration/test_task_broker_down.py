"""The broker goes away for a while, alone or with the database, in each phase of a run.

Nothing is lost, nothing is executed without a claim, and no message goes round and round: bodies,
claims and deliveries are counted. Nothing is executed twice, except where the database was away for
longer than a lease and the run was taken over before its owner could write its end.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from uuid import uuid4

import pytest

from celery_idem import messages
from celery_idem.run import RunState
from tests.integration.conftest import NewStage
from tests.integration.stage import NAMESPACE, PATIENCE, Stage
from tests.processes import Worker, wait_for
from tests.proxy import Proxy

#: Seconds: for which servers are away, a lease, and after which Redis gives a message again.
AWAY, LEASE, VISIBILITY = 5.0, 2.0, 6
#: Deliveries of one message: as it came, after each connection, and once for each lease while its
#: body runs. More the longer a busy machine takes; a hot loop has hundreds a second.
MOST = 20


class View(NamedTuple):
    """What a worker sees through proxies, and a test past them."""

    stage: Stage
    broker: Proxy
    database: Proxy
    worker: Worker

    @contextmanager
    def away(self, *proxies: Proxy) -> Iterator[None]:
        """They are gone, for as long as what is done meanwhile takes and some seconds more."""
        for proxy in proxies:
            proxy.cut()
        try:
            yield
            # Not waiting for anything: the length of the outage is what is tested.
            time.sleep(AWAY)
        finally:
            for proxy in proxies:
                proxy.mend()


@contextmanager
def behind_proxies(new_stage: NewStage, name: str, setting: str = "broker_url") -> Iterator[View]:
    """A worker with four processes, to which the broker of `setting` can be away."""
    options = {"visibility_timeout": VISIBILITY, "unacked_restore_interval": 1}
    stage = new_stage(name, transport_options=options if name == "redis" else {}, idem_lease=LEASE)
    urls = stage.settings["broker_url"], stage.settings["idem_database_url"]
    with Proxy.before(urls[0]) as broker, Proxy.before(urls[1]) as database:
        settings: dict[str, Any] = {
            setting: broker.url(urls[0]),
            "idem_database_url": database.url(urls[1]),
        }
        settings["task_publish_retry"] = False  # Celery's own patience would hide a loop.
        worker = stage.worker("counted", "-c", "4", settings=settings)
        try:
            yield View(stage, broker, database, worker)
        finally:
            worker.kill()


def test_callbacks_that_a_living_worker_cannot_send_are_sent_later(new_stage: NewStage) -> None:
    """It lets go of them; a beat, whose part the test has here, publishes the message again."""
    with behind_proxies(new_stage, "redis", "broker_write_url") as view:
        stage = view.stage
        first, last = str(uuid4()), str(uuid4())
        gated: Any = stage.app.signature("tests.gated", ("callbacks",), task_id=first)
        (gated | stage.app.signature("tests.shout", task_id=last)).apply_async()
        stage.wait_for_effect(first, "started")
        view.broker.cut()
        stage.open("callbacks")

        def has_let_go() -> bool:
            row = stage.row("gated", first)
            return row is not None and row.state.final and row.lease_id is None

        wait_for(has_let_go, PATIENCE, lambda: f"callbacks let go: {stage.row('gated', first)}")
        view.broker.mend()
        (row,) = stage.ledger.acquire_orphans(NAMESPACE, 10, uuid4().hex)
        assert row.message is not None
        messages.publish(stage.app, row.message)
        # Celery has told of a failure meanwhile, of the rest of the chain too.
        stage.wait_for_fact(last, "task_success")
        assert stage.get(last) == "CALLBACKS"
        assert stage.get(first) == "callbacks"
        assert stage.effects(first) == ["started", "ended"]
        assert view.worker.running


class Phases(NamedTuple):
    """Task ids of runs, by where they are when the servers go."""

    claim: str
    body: str
    finish: str
    retry: str
    #: Occupies a process, so that the first one waits.
    beside: str


def begin(stage: Stage) -> Phases:
    """Four bodies wait, and a message for a process."""
    body, finish, beside = (stage.start_gated() for _ in range(3))
    retry = stage.send("gated_retry", "retry")
    stage.wait_for_effect(retry, "try")
    claim = stage.send("note")
    stage.wait_for_fact(claim, "task_received")
    return Phases(claim, body, finish, retry, beside)


def is_one_run(
    stage: Stage,
    task: str,
    task_id: str,
    effects: list[str],
    claims: int = 1,
    outlived: bool = False,
) -> None:
    """With so many claims, and few deliveries.

    Arguments:
        outlived: the outage may have outlived the owner's lease; a takeover is in the history.
    """
    row = stage.wait_for_success(task, task_id)
    takeovers = len(stage.history(task, task_id, "takeover")) if outlived else 0
    claims += takeovers
    assert (row.state, row.fence) == (RunState.SUCCEEDED, claims)
    if not takeovers:
        assert stage.effects(task_id) == effects
    told = stage.facts(task_id)
    assert (told["run_claimed"], told["task_success"], told["task_failure"]) == (claims, 1, 0)
    assert told["task_received"] <= MOST, told


def supervise(worker: Worker) -> None:
    """Returns when it has a connection again; started anew, if it has ended over the loss.

    Celery 5.7 on Redis mostly does, after its bodies: it cannot return the messages that it has.
    """
    back = "Connected to"
    wait_for(
        lambda: worker.log.count(back) > 1 or not worker.running, 2 * PATIENCE, lambda: worker.log
    )
    if not worker.running:
        worker.kill()  # What is left of it.
        worker.start()
        worker.ready()


@pytest.mark.sample("redis-both", "rabbitmq-broker")
@pytest.mark.parametrize("both", [False, True], ids=["broker", "both"])
@pytest.mark.parametrize("name", ["redis", "rabbitmq"])
def test_an_outage_loses_and_repeats_nothing(new_stage: NewStage, name: str, both: bool) -> None:
    with behind_proxies(new_stage, name) as view:
        stage, worker = view.stage, view.worker
        phases = begin(stage)
        with view.away(view.broker, *[view.database] * both):
            stage.open(phases.finish)
            stage.open("retry")
            stage.wait_for_effect(phases.finish, "ended")
            stage.wait_for_effect(phases.retry, "retrying")
            wait_for(lambda: "Connection to broker lost" in worker.log, PATIENCE, worker.tail)
        stage.open(phases.body)
        stage.open(phases.beside)
        supervise(worker)
        is_one_run(stage, "note", phases.claim, ["note"])
        for task_id in (phases.body, phases.finish, phases.beside):
            is_one_run(stage, "gated", task_id, ["started", "ended"], outlived=both)
        tries = ["try", "retrying", "try"]
        is_one_run(stage, "gated_retry", phases.retry, tries, claims=2, outlived=both)


@pytest.mark.sample("redis")
@pytest.mark.parametrize("name", ["redis", "rabbitmq"])
def test_a_message_that_cannot_be_put_back_comes_again_slowly(
    new_stage: NewStage, name: str
) -> None:
    """The database is away, and a broker that delivers messages takes none."""
    with behind_proxies(new_stage, name, "broker_write_url") as view:
        stage = view.stage
        stage.get(stage.send("note"))
        with view.away(view.broker, view.database):
            task_id = stage.send("note")
            stage.wait_for_fact(task_id, "run_put_back", 2)
        is_one_run(stage, "note", task_id, ["note"])
