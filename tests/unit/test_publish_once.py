"""Publishes of which one is sent: what is in the queue, and what the sender gets."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from celery import Celery, group
from kombu import Queue
from kombu.utils.json import loads

from celery_idem import (
    AlreadyScheduled,
    IdempotentTask,
    ImproperlyConfigured,
    KeyReused,
    Ledger,
    Publish,
    RunKey,
    RunState,
    Scope,
    send_once,
)
from celery_idem.member import Member
from celery_idem.run import RunRow
from celery_idem.scoping import Terms, terms_of


@pytest.fixture
def app(tmp_path: Path) -> Iterator[Celery]:
    made = Celery("shop", broker="memory://", set_as_current=False)
    made.conf.idem_database_url = f"sqlite:///{tmp_path / 'ledger.sqlite3'}"
    made.conf.broker_transport_options = {"queue": str(tmp_path)}
    yield made
    with made.connection_for_write() as connection:
        Queue("celery")(connection.default_channel).purge()
    Member.of(made).leases.close()
    made.close()


def task_of(app: Celery, body: Any = None, **options: Any) -> Any:
    def bill(customer: int, month: str = "may") -> None: ...

    given = {"idem_publish": "once", **options}
    declare: Any = app.task(name="shop.bill", base=IdempotentTask, shared=False, **given)
    return declare(body or bill)


def told(customer: int) -> int:
    """A body that tells its argument."""
    return customer


def queued(app: Celery) -> list[dict[str, Any]]:
    """The messages that are in the queue, which is empty then."""
    with app.connection_for_write() as connection, connection.SimpleQueue("celery") as queue:
        found = []
        while queue.qsize():
            message = queue.get_nowait()
            message.ack()
            args, kwargs, _ = message.decode()
            found.append({**message.headers, "args": args, "kwargs": kwargs})
        return found


def row(app: Celery, text: str) -> RunRow:
    ledger = Ledger.from_url(app.conf.idem_database_url)
    found = ledger.read(RunKey(f"shop:shop.bill={text}"))
    ledger.close()
    assert found is not None
    return found


# -- the options ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "setting"),
    [
        ({"idem_scope": "until_noon"}, "idem_scope of task shop.bill"),
        ({"idem_period": -1}, "idem_period of task shop.bill"),
        ({"idem_publish": "twice"}, "idem_publish of task shop.bill"),
        ({"idem_scope": "until_start", "idem_publish": "always"}, "idem_scope of task shop.bill"),
        ({"idem_scope": "until_start", "idem_period": 5}, "idem_period of task shop.bill"),
        ({"idem_scop": "forever"}, "idem_scop of task shop.bill"),
    ],
)
def test_what_is_not_possible_is_said_where_it_is_declared(
    app: Celery, options: dict[str, Any], setting: str
) -> None:
    with pytest.raises(ImproperlyConfigured) as caught:
        task_of(app, **options).name  # noqa: B018 - a task is made when it is looked at
    assert caught.value.setting == setting


@pytest.mark.parametrize(
    ("scope", "period", "free_after"),
    [
        ("forever", None, None),
        ("until_done", None, 0.0),
        (Scope.UNTIL_DONE, 60, 60.0),
        ("forever", timedelta(minutes=1), 60.0),
    ],
)
def test_when_a_key_is_free(scope: Any, period: Any, free_after: float | None) -> None:
    assert terms_of("it", scope, period, "always").free_after == free_after


def test_a_publish_has_a_choice_of_its_own(app: Celery) -> None:
    task = task_of(app, idem_key="{customer}")
    first = task.delay(1)
    with pytest.raises(AlreadyScheduled):
        task.apply_async((1,), idem_publish="once_or_raise")
    assert task.s(1).set(idem_publish="always").apply_async().id != first.id
    assert len(queued(app)) == 2
    with pytest.raises(ImproperlyConfigured, match=r"idem_publish of task shop\.bill"):
        task.apply_async((1,), idem_publish="maybe")
    assert Terms().with_publish("it", None) == Terms()
    assert Terms().with_publish("it", "once").publish is Publish.ONCE


# -- which are one --------------------------------------------------------------------------------


def test_all_arguments_make_the_key_unless_it_is_said(app: Celery) -> None:
    task = task_of(app)
    first = task.delay(7)
    same = [task.delay(7, "may"), task.delay(customer=7), task.delay(month="may", customer=7)]
    assert {result.id for result in same} == {first.id}
    assert task.delay(7, "june").id != first.id
    assert {message["args"][0] for message in queued(app)} == {7}
    assert row(app, '{"customer":7,"month":"may"}').task_id == first.id


def test_whatever_the_arguments_are(app: Celery) -> None:
    """A template without a name in it is one key."""
    task = task_of(app, idem_key="all")
    assert len({task.delay(number).id for number in range(3)}) == 1
    assert len(queued(app)) == 1


def test_a_uuid_is_its_text(app: Celery) -> None:
    task, value = task_of(app), uuid.uuid4()
    assert task.delay(value).id == task.delay(str(value)).id


def test_of_equal_keys_and_other_arguments_one_is_mistaken(app: Celery) -> None:
    task = task_of(app)
    first = task.apply_async((7,), idem_key="order-42")
    assert task.apply_async((7, "may"), idem_key="order-42").id == first.id
    with pytest.raises(KeyReused):
        task.apply_async((8,), idem_key="order-42")
    assert len(queued(app)) == 1


def test_a_key_of_another_period_is_another_one(app: Celery) -> None:
    task = task_of(app, idem_key="{customer}", idem_grain="month")
    assert task.delay(7).id == task.delay(7).id


# -- what is published ----------------------------------------------------------------------------


def test_all_ways_to_publish_are_one(app: Celery) -> None:
    """Also with Celery's positional arguments."""
    task = task_of(app)
    first = task.apply_async((7,), {}, "my-own-id")
    assert first.id == "my-own-id"
    again = [
        task.delay(7),
        task.s(7).apply_async(),
        task.si(7).delay(),
        app.send_task("shop.bill", (7,)),
        app.send_task("shop.bill", kwargs={"customer": 7}, countdown=3),
        app.signature("shop.bill", (7,)).apply_async(),
    ]
    assert [result.id for result in again] == ["my-own-id"] * len(again)
    (message,) = queued(app)
    assert (message["id"], message["args"]) == ("my-own-id", [7])
    assert message["idem_run_key"] == row(app, '{"customer":7,"month":"may"}').key.text


def test_what_others_wait_for_is_published_in_any_case(app: Celery) -> None:
    task = task_of(app)
    first = task.delay(7)
    task.apply_async((7,), link=task.si(8))
    task.apply_async((7,), link_error=task.si(8))
    (task.si(7) | task.si(8)).apply_async()
    group(task.si(7), task.si(9)).apply_async()
    frozen = task.si(7).set(task_id="mine")
    assert frozen.apply_async().id == "mine"
    # As a worker publishes what follows in a chain, and what is put in the place of a task.
    task.apply_async((7,), chain=[], parent_id="of the one before", root_id="of the first")
    task.apply_async((7,), replaced_task_nesting=1, idem_key='{"customer":7,"month":"may"}')
    ids = [message["id"] for message in queued(app) if message["args"] == [7]]
    assert (len(ids), len(set(ids)), ids[0]) == (8, 8, first.id)


def test_the_message_is_kept_as_it_was_sent(app: Celery) -> None:
    task = task_of(app, expires=3600)
    task.apply_async((7,), priority=3, headers={"tenant": "north"}, countdown=60)
    (message,) = queued(app)
    kept = row(app, '{"customer":7,"month":"may"}')
    content = loads(str(kept.message))
    assert (content["task"], content["args"]) == ("shop.bill", [7])
    options = content["options"]
    assert (options["priority"], options["headers"]["tenant"]) == (3, "north")
    assert options["headers"]["idem_run_key"] == message["idem_run_key"]
    assert kept.due_at is not None and kept.deadline is not None
    assert timedelta(seconds=3530) < kept.deadline - kept.due_at < timedelta(seconds=3600)


def test_what_cannot_be_kept_is_published_all_the_same(
    app: Celery, caplog: pytest.LogCaptureFixture
) -> None:
    task = task_of(app, idem_key="{customer}")
    large = "x" * 70_000
    assert task.delay(7, large).id != task.delay(7, large).id
    assert len(queued(app)) == 2
    assert "published without being recorded first" in caplog.text


def test_a_sender_that_does_not_know_the_task(app: Celery) -> None:
    first = send_once(app, "shop.other", (7,), idem_key="order-42", queue="celery")
    assert send_once(app, "shop.other", (8,), idem_key="order-42").id == first.id
    assert send_once(app, "shop.third", (7,), idem_key="order-42").id != first.id
    with pytest.raises(AlreadyScheduled) as caught:
        send_once(app, "shop.other", idem_key="order-42", idem_publish="once_or_raise")
    assert caught.value.task_id == first.id
    assert [message["args"] for message in queued(app)] == [[7], [7]]


# -- nothing of all this --------------------------------------------------------------------------


def test_turned_off_every_publish_is_sent(app: Celery) -> None:
    app.conf.idem_enabled = False
    task = task_of(app)
    task.apply_async((7,), idem_publish="once", idem_key="order-42")
    task.delay(7)
    send_once(app, "shop.bill", (7,), idem_key="order-42")
    app.send_task("shop.bill", (7,))
    messages = queued(app)
    assert len(messages) == 4
    assert not any("idem_run_key" in message for message in messages)


def test_eager_tasks_are_claimed_where_they_are_called(app: Celery) -> None:
    app.conf.task_always_eager = True
    task = task_of(app, told, idem_scope="until_done")
    assert [task.delay(7).get() for _ in range(3)] == [7, 7, 7]
    assert row(app, '{"customer":7}').fence == 3


def test_in_this_process_until_it_starts(app: Celery) -> None:
    task = task_of(app, told, idem_scope="until_start")
    first = task.delay(7)
    assert task.apply((7,)).get() == 7
    assert row(app, '{"customer":7}').state is RunState.SCHEDULED
    assert task.delay(7).id == first.id
