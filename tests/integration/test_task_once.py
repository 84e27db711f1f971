"""How long a key is taken, and publishes of which one is sent.

A sender that knows the task has it from `publisher`; `stage.app` is one that does not.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from functools import partial
from typing import Any
from uuid import uuid4

import pytest
from celery import chain, chord, group
from celery.result import AsyncResult
from celery.signals import before_task_publish
from kombu.exceptions import EncodeError, KombuError, OperationalError

from celery_idem import (
    AlreadyScheduled,
    DuplicateRun,
    IdempotentTask,
    KeyReused,
    RunKey,
    RunState,
    critical_section,
    send_once,
)
from celery_idem.run import RunRow
from tests.integration.conftest import NewStage
from tests.integration.stage import NAMESPACE, PATIENCE, Stage
from tests.processes import Worker, wait_for
from tests.proxy import Proxy

pytestmark = pytest.mark.usefixtures("worker")

PROCESSES = 3


@pytest.fixture
def name() -> str:
    return str(uuid4())


def publisher(stage: Stage, task: str = "single", **options: Any) -> Any:
    """The task as a web application has it that publishes once."""
    given = {
        "idem_key": "{name}",
        "idem_scope": "until_start" if task == "queued" else "until_done",
        "idem_publish": "once",
        **options,
    }
    stage.app.tasks.pop(f"tests.{task}", None)
    declare: Any = stage.app.task(base=IdempotentTask, name=f"tests.{task}", shared=False, **given)

    def body(name: str, gate: str | None = None, fails: bool = False) -> None: ...

    return declare(body)


@pytest.fixture
def single(stage: Stage) -> Iterator[Any]:
    yield publisher(stage)
    stage.app.tasks.pop("tests.single", None)


@pytest.fixture
def queued(stage: Stage) -> Iterator[Any]:
    yield publisher(stage, "queued")
    stage.app.tasks.pop("tests.queued", None)


def key(name: str, task: str = "single") -> RunKey:
    return RunKey(f"{NAMESPACE}:tests.{task}={name}")


def row(stage: Stage, name: str, task: str = "single") -> RunRow:
    found = stage.ledger.read(key(name, task))
    assert found is not None
    return found


def bodies(stage: Stage, name: str) -> list[str]:
    """The task ids of the bodies with this name, in order."""
    rows = stage.sql("SELECT task_id FROM effects WHERE detail = %s ORDER BY id", name)
    return [task_id for (task_id,) in rows]


def begun(stage: Stage, name: str, times: int = 1) -> None:
    wait_for(lambda: len(bodies(stage, name)) >= times, PATIENCE, "the body")


def free(stage: Stage, name: str) -> None:
    wait_for(lambda: row(stage, name).leaves_key(0.0), PATIENCE, "the end of the run")


# -- how long a key is taken ----------------------------------------------------------------------


def test_one_after_another_and_never_two(stage: Stage, name: str) -> None:
    """The worker decides, for a sender that does not know the task."""
    first = stage.send("single", name, name)
    begun(stage, name)
    assert isinstance(stage.outcome(stage.send("single", name)), DuplicateRun)
    stage.open(name)
    assert stage.get(first) == name
    free(stage, name)
    second = stage.send("single", name)
    assert stage.get(second) == name
    assert bodies(stage, name) == [first, second]
    assert row(stage, name).fence == 2
    for task_id in (first, second):
        stage.send("single", name, task_id=task_id)
    wait_for(lambda: len(stage.ledger.history(key(name))) == 3, PATIENCE, "two late copies")
    assert bodies(stage, name) == [first, second]
    assert (stage.get(first), stage.get(second)) == (name, name)


def test_a_failed_run_leaves_its_key(stage: Stage, name: str) -> None:
    first = stage.send("single", name, None, True)
    assert isinstance(stage.outcome(first), ValueError)
    free(stage, name)
    assert stage.get(stage.send("single", name)) == name


def test_not_again_within_a_period(stage: Stage, name: str) -> None:
    assert stage.get(stage.send("seldom", name)) == name
    assert isinstance(stage.outcome(stage.send("seldom", name)), DuplicateRun)
    stage.sql(
        "UPDATE celery_idem_runs SET created_at = created_at - interval '300 seconds' "
        "WHERE run_key = %s",
        key(name, "seldom").text,
    )
    assert stage.get(stage.send("seldom", name)) == name


# -- publishes ------------------------------------------------------------------------------------


def test_a_second_publish_returns_the_result_of_the_first(
    stage: Stage, single: Any, name: str
) -> None:
    first = single.delay(name, name)
    assert isinstance(first, AsyncResult)
    assert [single.delay(name, name).id for _ in range(5)] == [first.id] * 5
    begun(stage, name)
    assert single.delay(name, name).id == first.id
    stage.open(name)
    assert first.get(timeout=PATIENCE) == name
    free(stage, name)
    second = single.delay(name)
    assert second.id != first.id
    assert second.get(timeout=PATIENCE) == name
    assert bodies(stage, name) == [first.id, second.id]
    lines = stage.ledger.history(key(name))
    assert len(lines) == 6
    assert all("not published" in str(line.detail) for line in lines)


def test_after_an_error_it_is_published_again(stage: Stage, single: Any, name: str) -> None:
    first = single.delay(name, None, True)
    assert isinstance(stage.outcome(first.id), ValueError)
    free(stage, name)
    second = single.delay(name)
    assert (second.id != first.id, second.get(timeout=PATIENCE)) == (True, name)


def test_or_it_raises(stage: Stage, name: str) -> None:
    task = publisher(stage, idem_publish="once_or_raise")
    first = task.delay(name, name)
    with pytest.raises(AlreadyScheduled) as caught:
        task.delay(name)
    assert (caught.value.task_id, caught.value.key) == (first.id, key(name).text)
    stage.open(name)
    assert first.get(timeout=PATIENCE) == name
    free(stage, name)
    assert task.delay(name).get(timeout=PATIENCE) == name


def test_for_ever_the_first_one_has_the_result(stage: Stage, name: str) -> None:
    """Without `idem_key`, all arguments make the key, however they are passed."""
    declare: Any = stage.app.task(
        base=IdempotentTask, name="tests.note", shared=False, idem_publish="once"
    )

    def note(text: str = "") -> None: ...

    task = declare(note)
    first = task.delay(name)
    assert first.get(timeout=PATIENCE) == name
    assert task.apply_async(kwargs={"text": name}).get(timeout=PATIENCE) == name
    assert task.delay(text=name).id == first.id
    assert task.delay("another " + name).id != first.id
    assert bodies(stage, name) == [first.id]
    stage.app.tasks.pop("tests.note", None)


def _publish(barrier: Any, results: Any, stage_settings: dict[str, Any], name: str) -> None:
    from celery import Celery

    app = Celery(NAMESPACE, set_as_current=False)
    app.conf.update(stage_settings)
    declare: Any = app.task(
        base=IdempotentTask,
        name="tests.single",
        shared=False,
        idem_key="{name}",
        idem_scope="until_done",
        idem_publish="once",
    )

    def body(name: str, gate: str | None = None) -> None: ...

    task = declare(body)
    barrier.wait(PATIENCE)
    results.put([task.delay(name, name).id for _ in range(10)])


def test_of_many_publishers_at_once_one_publishes(stage: Stage, name: str) -> None:
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(PROCESSES), context.Queue()
    given = (barrier, results, stage.settings, name)
    processes = [context.Process(target=_publish, args=given) for _ in range(PROCESSES)]
    for process in processes:
        process.start()
    ids = {task_id for _ in processes for task_id in results.get(timeout=PATIENCE)}
    for process in processes:
        process.join(PATIENCE)
    assert len(ids) == 1
    stage.open(name)
    assert stage.get(*ids) == name
    assert bodies(stage, name) == list(ids)


def test_of_what_waits_there_is_one(stage: Stage, worker: Worker, queued: Any, name: str) -> None:
    """From its start on, the next one may wait."""
    queue = f"waiting-{name}"
    first = queued.apply_async((name, name), queue=queue)
    assert queued.apply_async((name, name), queue=queue).id == first.id
    assert row(stage, name, "queued").state is RunState.SCHEDULED
    stage.consume(worker, queue)
    begun(stage, name)
    second = queued.delay(name, name)
    assert second.id != first.id
    begun(stage, name, 2)
    stage.open(name)
    assert (first.get(timeout=PATIENCE), second.get(timeout=PATIENCE)) == (name, name)
    assert stage.ledger.read(key(name, "queued")) is None
    for task_id in (first.id, second.id):
        own = key(name, "queued").of_message(task_id)
        found = stage.ledger.read(own)
        assert found is not None and found.state is RunState.SUCCEEDED
        # A late copy; whoever publishes it has the key until it is known to be one.
        stage.send("queued", name, task_id=task_id)
        wait_for(partial(stage.ledger.history, own), PATIENCE, "a duplicate")
        wait_for(lambda: stage.ledger.read(key(name, "queued")) is None, PATIENCE, "a free key")
    assert bodies(stage, name) == [first.id, second.id]


def test_by_name_too(stage: Stage, single: Any, name: str) -> None:
    first = stage.app.send_task("tests.single", (name, name))
    assert stage.app.send_task("tests.single", kwargs={"name": name}).id == first.id
    assert single.delay(name).id == first.id
    stage.open(name)
    assert first.get(timeout=PATIENCE) == name


def test_by_a_sender_that_does_not_know_the_task(stage: Stage, name: str) -> None:
    options: Any = {"idem_key": name, "idem_scope": "until_done"}
    first = send_once(stage.app, "tests.single", (name, name), **options)
    assert send_once(stage.app, "tests.single", (name, name), **options).id == first.id
    with pytest.raises(AlreadyScheduled):
        send_once(stage.app, "tests.single", (name,), idem_publish="once_or_raise", **options)
    stage.open(name)
    assert first.get(timeout=PATIENCE) == name
    free(stage, name)
    assert send_once(stage.app, "tests.single", (name,), **options).id != first.id


def test_a_key_with_other_arguments_is_a_mistake(stage: Stage, single: Any, name: str) -> None:
    order = f"order of {name}"
    first = single.apply_async((name, name), idem_key=order)
    again = single.apply_async(kwargs={"name": name, "gate": name}, idem_key=order)
    assert again.id == first.id
    with pytest.raises(KeyReused):
        single.apply_async(("another", name), idem_key=order)
    stage.open(name)
    assert first.get(timeout=PATIENCE) == name


def test_nobody_waits_for_what_was_not_published(stage: Stage, single: Any, name: str) -> None:
    """What others wait for is published in any case, and the worker tells them."""
    first = single.delay(name, name)
    begun(stage, name)
    told = stage.app.signature("tests.size").set(immutable=False)
    joined = chord([single.s(name), single.s(name)])(told)
    with pytest.raises(Exception, match="not executed once more"):
        joined.get(timeout=PATIENCE)
    results: Any = group(single.s(name), single.s(name)).apply_async()
    assert results.children
    for result in results.children:
        assert isinstance(stage.outcome(result.id), DuplicateRun)
    stage.open(name)
    assert first.get(timeout=PATIENCE) == name


def test_a_chain_goes_on_after_a_duplicate(stage: Stage, single: Any, name: str) -> None:
    """The one that follows it is told, and the one before it has its result."""
    first = single.delay(name, name)
    begun(stage, name)
    before = stage.app.signature("tests.note", ("before " + name,))
    joined: Any = chain(before, single.si(name)).apply_async()
    with pytest.raises(DuplicateRun):
        joined.get(timeout=PATIENCE)
    assert joined.parent.get(timeout=PATIENCE) == "before " + name
    mine = str(uuid4())
    assert single.apply_async((name,), task_id=mine).id == mine
    assert isinstance(stage.outcome(mine), DuplicateRun)
    stage.open(name)
    assert first.get(timeout=PATIENCE) == name


def test_what_comes_again_without_a_key_is_itself(stage: Stage, name: str) -> None:
    """The sender knows no period: the message is a run of its own, beside that of the day's key."""
    task = publisher(stage, "daily", idem_scope="forever", idem_grain="day")
    first = task.apply_async((name,), queue=f"parked-{name}")
    assert first.id
    stage.app.tasks.pop("tests.daily")
    other = stage.send("daily", name)
    assert stage.get(other) == name
    assert bodies(stage, name) == [other, other]
    assert stage.wait_final("daily", other).state is RunState.SUCCEEDED


def test_a_body_may_change_its_arguments(stage: Stage, name: str) -> None:
    given: Any = {"idem_key": f"order of {name}"}
    stage.app.tasks.pop("tests.changes", None)
    with critical_section(f"changes:{name}", app=stage.app):
        task_id = send_once(stage.app, "tests.changes", (name, []), **given).id
        begun(stage, name)
    assert stage.get(task_id) == name
    assert set(bodies(stage, name)) == {task_id}


def test_what_waits_for_its_lock_has_not_begun(stage: Stage, name: str) -> None:
    task = publisher(stage, "queued_locked", idem_scope="until_start", idem_lock="queued:{name}")
    running = task.delay(name, name)
    begun(stage, name)
    waits = task.delay(name)
    stage.wait_for_fact(waits.id, "run_put_back")
    assert [task.delay(name).id for _ in range(3)] == [waits.id] * 3
    stage.open(name)
    assert (running.get(timeout=PATIENCE), waits.get(timeout=PATIENCE)) == (name, name)
    assert bodies(stage, name) == [running.id, waits.id]
    stage.app.tasks.pop("tests.queued_locked")


def test_a_killed_body_has_its_key_until_it_is_gone(stage: Stage, name: str) -> None:
    first = stage.send("lingers", name, 2.0)
    begun(stage, name)
    stage.app.control.revoke(first, terminate=True)
    wait_for(lambda: row(stage, name, "lingers").state.final, PATIENCE, "the verdict")
    second = stage.send("lingers", name, 0)
    stage.get(second)
    what = [
        each
        for (each,) in stage.sql("SELECT what FROM effects WHERE detail = %s ORDER BY id", name)
    ]
    assert what in (
        ["lingers begins", "lingers ends", "lingers begins", "lingers ends"],
        ["lingers begins", "lingers begins", "lingers ends"],
    ), "the first one was killed in the middle, or has ended"


def test_a_retry_is_published_as_ever(stage: Stage, name: str) -> None:
    declare: Any = stage.app.task(
        base=IdempotentTask, name="tests.rekeyed", shared=False, idem_key="{number}"
    )

    def rekeyed(number: int) -> None: ...

    task = declare(rekeyed)
    number = int(name[:8], 16)
    given = {"idem_publish": "once", "idem_key": str(number)}
    first = send_once(stage.app, "tests.rekeyed", (number,), **given)
    assert first.get(timeout=PATIENCE) == [number + 1, f"rekeyed={number}"]
    assert task.delay(number).id != first.id


# -- publishes that fail --------------------------------------------------------------------------


def test_one_that_was_lost_is_made_up(stage: Stage, single: Any, name: str) -> None:
    """Recorded, and its sender died before it was sent: a beat publishes it."""
    first = single.apply_async((name,), queue=f"lost-{name}")
    assert single.delay(name).id == first.id
    # As if it had never arrived; and time flies.
    kept = str(row(stage, name).message).replace(f'"queue": "lost-{name}"', '"priority": 3')
    stage.sql(
        "UPDATE celery_idem_runs SET message = %s, next_emit_at = now() WHERE run_key = %s",
        *(kept, key(name).text),
    )
    beat = stage.beat("watched")
    assert first.get(timeout=PATIENCE) == name
    assert bodies(stage, name) == [first.id]
    beat.kill()


def test_one_that_has_failed_leaves_no_trace(stage: Stage, single: Any, name: str) -> None:
    with pytest.raises(KombuError, match="No encoder installed"):
        single.apply_async((name,), serializer="of nobody")
    assert stage.ledger.read(key(name)) is None
    with pytest.raises(EncodeError):
        single.apply_async((name, object()))
    assert single.delay(name).get(timeout=PATIENCE) == name


@pytest.fixture(params=["redis", "rabbitmq"])
def away(new_stage: NewStage, request: pytest.FixtureRequest) -> Iterator[tuple[Stage, Proxy]]:
    """A stage whose sender reaches its broker through a proxy, and tries once."""
    behind = new_stage(request.param)
    url = behind.settings["broker_url"]
    with Proxy.before(url) as proxy:
        policy = {"max_retries": 0, "interval_start": 0}
        behind.app.conf.update(broker_url=proxy.url(url), task_publish_retry_policy=policy)
        yield behind, proxy


def test_without_a_broker_nothing_is_recorded(away: tuple[Stage, Proxy], name: str) -> None:
    behind, proxy = away
    task = publisher(behind)
    proxy.cut()
    with pytest.raises((OperationalError, OSError)):
        task.delay(name)
    assert behind.ledger.read(key(name)) is None
    proxy.mend()
    first = task.delay(name)
    assert task.delay(name).id == first.id


def test_a_publish_in_doubt_is_not_undone(away: tuple[Stage, Proxy], name: str) -> None:
    """The connection is there, and breaks: nobody knows whether the message has arrived."""
    behind, proxy = away
    task = publisher(behind)

    def cut(**_: Any) -> None:
        proxy.cut()

    before_task_publish.connect(cut)
    try:
        with pytest.raises((OperationalError, OSError)):
            task.delay(name)
    finally:
        before_task_publish.disconnect(cut)
    kept = row(behind, name)
    assert (kept.state, kept.fence) == (RunState.SCHEDULED, 0)
    proxy.mend()
    assert task.delay(name).id == kept.task_id


def test_without_a_database_the_worker_decides(
    new_stage: NewStage, module_postgres: str, name: str
) -> None:
    with Proxy.before(module_postgres) as proxy:
        behind = new_stage(ledger=module_postgres)
        behind.worker("watched", "-c", "2")
        behind.app.conf.update(idem_database_url=proxy.url(module_postgres))
        task = publisher(behind)
        first = task.delay(name)
        assert first.get(timeout=PATIENCE) == name
        proxy.cut()
        second = task.delay(name, name)
        begun(behind, name, 2)
        third = task.delay(name, name)
        assert isinstance(behind.outcome(third.id), DuplicateRun)
        behind.open(name)
        assert second.get(timeout=PATIENCE) == name
        assert bodies(behind, name) == [first.id, second.id]


def test_one_that_expires_in_its_queue_frees_its_key(
    stage: Stage, worker: Worker, name: str
) -> None:
    task = publisher(stage, idem_scope="forever")
    queue = f"slow-{name}"
    first = task.apply_async((name,), queue=queue, expires=1)
    assert task.delay(name).id == first.id
    wait_for(lambda: row(stage, name).deadline is not None, PATIENCE, "a deadline")
    deadline = row(stage, name).deadline
    assert deadline is not None
    wait_for(lambda: stage.ledger.now() > deadline, PATIENCE, "the expiry")
    stage.consume(worker, queue)
    wait_for(lambda: stage.ledger.read(key(name)) is None, PATIENCE, "a free key")
    assert stage.result(first.id).state in ("PENDING", "REVOKED")
    second = task.delay(name)
    assert second.id != first.id
    assert second.get(timeout=PATIENCE) == name
    stage.app.tasks.pop("tests.single", None)
