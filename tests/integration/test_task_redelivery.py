"""Messages that a broker delivers again though nobody was killed: one body, and no storm of copies.

Each delivery is counted: it is a claim, or puts the message back, or is a no-op. A message that
became two on the way would show as a second no-op.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from kombu import Queue

from tests import services
from tests.conftest import Found
from tests.integration.apps import base
from tests.integration.conftest import NewStage
from tests.integration.stage import PATIENCE, Stage
from tests.processes import Worker, wait_for
from tests.proxy import Proxy
from tests.services.base import Refused
from tests.services.rabbitmq import RabbitMQPlaces

#: Seconds.
LEASE, VISIBILITY = 2.0, 5
#: Seconds: nobody waits for the end of such a lease.
LONG_LEASE = 10 * PATIENCE
#: Deliveries of one message while its body runs.
AGAIN = 3


def counts(stage: Stage, task_id: str, lost: int = 0) -> Counter[str]:
    """How often which fact was told of a run; each delivery is accounted for.

    Arguments:
        lost: as many connections, each perhaps with a message that waited for its time.
    """
    told = stage.facts(task_id)
    accounted = told["run_claimed"] + told["run_put_back"] + told["run_duplicate"]
    assert accounted <= told["task_received"] <= accounted + lost, told
    return told


def is_one_run(stage: Stage, task_id: str, lost: int = 0) -> Counter[str]:
    """One claim, one body, one success; the copy that came last was a no-op."""
    assert stage.get(task_id) == task_id
    (copy,) = stage.wait_for_duplicates("gated", task_id)
    assert copy.detail == "its run has ended: succeeded"
    stage.wait_for_fact(task_id, "run_duplicate")
    row = stage.wait_for_success("gated", task_id)
    assert (row.fence, row.attempts) == (1, 1)
    assert stage.effects(task_id) == ["started", "ended"]
    told = counts(stage, task_id, lost)
    assert (told["run_claimed"], told["run_duplicate"], told["task_success"]) == (1, 1, 1)
    return told


def test_a_body_may_take_longer_than_the_visibility_timeout(
    new_stage: NewStage, module_redis: str
) -> None:
    """Redis gives its message to another worker again and again; there is one at any time."""
    options = {"unacked_restore_interval": 1, "visibility_timeout": VISIBILITY}
    stage = new_stage(transport_options=options, idem_lease=LEASE)
    workers = [stage.worker("counted", "-c", "2") for _ in range(2)]
    task_id = stage.start_gated()
    stage.wait_for_fact(task_id, "run_put_back", AGAIN)
    stage.open(task_id)
    is_one_run(stage, task_id)
    prefix = stage.settings["broker_transport_options"]["global_keyprefix"]
    with redis.Redis.from_url(module_redis) as client:
        wait_for(
            lambda: not client.llen(f"{prefix}celery") and not client.hlen(f"{prefix}unacked"),
            PATIENCE,
            lambda: f"nothing to be left: {client.keys()}",
        )
    assert counts(stage, task_id)["run_duplicate"] == 1
    for worker in workers:
        worker.kill()


@pytest.fixture
def rabbitmq(servers: Found) -> Iterator[str]:
    """A virtual host."""
    with servers.get(services.RABBITMQ).place() as url:
        yield url


@pytest.fixture
def proxy(rabbitmq: str) -> Iterator[Proxy]:
    """Between a worker and RabbitMQ; messages are sent past it."""
    with Proxy.before(rabbitmq) as proxy:
        yield proxy


def cut(proxy: Proxy, worker: Worker, times: int = 1) -> None:
    """The worker notices that it has lost its connection, for the given time."""
    proxy.cut()
    lost = "Connection to broker lost"
    wait_for(lambda: worker.log.count(lost) >= times, PATIENCE, worker.tail)
    proxy.mend()


def test_a_body_outlives_its_connection_to_rabbitmq(
    new_stage: NewStage, rabbitmq: str, proxy: Proxy
) -> None:
    """Which delivers the message again at once, and to whom it cannot know."""
    stage = new_stage(rabbitmq, idem_lease=LEASE)
    worker = stage.worker("counted", "-c", "2", settings={"broker_url": proxy.url(rabbitmq)})
    task_id = stage.start_gated()
    for times in range(1, AGAIN):
        cut(proxy, worker, times)
        stage.wait_for_fact(task_id, "run_put_back", times)
    stage.open(task_id)
    is_one_run(stage, task_id, lost=AGAIN)
    worker.kill()


def test_a_body_that_is_cancelled_with_its_connection_goes_on_elsewhere(
    new_stage: NewStage, rabbitmq: str, proxy: Proxy
) -> None:
    """worker_cancel_long_running_tasks_on_connection_loss: what its process owned is free."""
    stage = new_stage(rabbitmq, idem_lease=LONG_LEASE)
    settings = {
        "broker_url": proxy.url(rabbitmq),
        "worker_cancel_long_running_tasks_on_connection_loss": True,
    }
    worker = stage.worker("counted", "-c", "1", settings=settings)
    task_id = stage.start_gated()
    cut(proxy, worker)
    stage.wait_for_effect(task_id, "started", 2)
    stage.open(task_id)
    assert stage.get(task_id) == task_id
    row = stage.wait_for_success("gated", task_id)
    assert (row.fence, row.attempts) == (2, 2)
    assert stage.effects(task_id) == ["started", "started", "ended"]
    worker.kill()


@pytest.fixture(scope="module")
def impatient(module_directory: Path) -> Iterator[RabbitMQPlaces]:
    """A RabbitMQ of our own which takes a message away after a few seconds, not half an hour."""
    try:
        server = services.RABBITMQ.start(module_directory / "rabbitmq")
    except Refused as refused:
        pytest.skip(str(refused))
    control = server.controls[server.url]
    # In milliseconds; and it looks for them once a minute by default.
    for name, value in (("consumer_timeout", 3000), ("channel_tick_interval", 500)):
        control.evaluate(f"application:set_env(rabbit, {name}, {value})")
    places = services.RABBITMQ.open(server.url)
    yield places
    places.close()
    server.stop()


@pytest.mark.sample("False")
@pytest.mark.parametrize("retry", [False, True])
def test_a_body_may_take_longer_than_rabbitmqs_consumer_timeout(
    new_stage: NewStage, impatient: RabbitMQPlaces, retry: bool
) -> None:
    """It closes the channel: the worker ends after its bodies, or goes on if it is told to."""
    with impatient.place() as url:
        outlives_the_consumer_timeout(new_stage(url, idem_lease=LEASE), retry)


def outlives_the_consumer_timeout(stage: Stage, retry: bool) -> None:
    worker = stage.worker("counted", "-c", "2", settings={"broker_channel_error_retry": retry})
    task_id = stage.start_gated()
    wait_for(lambda: "consumer" in worker.log and "timed out" in worker.log, PATIENCE, worker.tail)
    if retry:
        stage.wait_for_fact(task_id, "run_put_back")
    stage.open(task_id)
    if not retry:
        wait_for(lambda: not worker.running, PATIENCE, worker.tail)
        worker = stage.worker("counted", "-c", "2")
    is_one_run(stage, task_id, lost=1)
    worker.kill()


@pytest.mark.sample("2")
@pytest.mark.parametrize("limit", [2, 3])
def test_a_delivery_limit_does_not_lose_a_run_whose_processes_die(
    new_stage: NewStage, limit: int
) -> None:
    """More often than the quorum queue's limit: the message is published anew before."""
    arguments = {"x-queue-type": "quorum", "x-delivery-limit": limit}
    settings: Any = {base.QUEUE_ARGUMENTS: arguments}
    stage = new_stage("rabbitmq", idem_lease=LONG_LEASE, **settings)
    worker = stage.worker("counted", "-c", "1")
    deaths = limit + 1
    task_id = stage.send("dies", deaths, queue=Queue("celery", queue_arguments=arguments))
    row = stage.wait_for_success("dies", task_id)
    assert (row.fence, row.attempts) == (deaths + 1, deaths + 1)
    assert stage.get(task_id) == "survived"
    told = counts(stage, task_id)
    assert (told["run_claimed"], told["task_success"]) == (deaths + 1, 1)
    worker.kill()
