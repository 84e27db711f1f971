"""Messages: written down, published later, published anew."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from celery import Celery, Task
from celery.app.task import Context
from kombu import Connection

from celery_idem import messages
from celery_idem.clock import SYSTEM

QUEUE = "celery"


@pytest.fixture
def app() -> Iterator[Celery]:
    """An app on a broker in memory, which is emptied."""
    app = Celery("messages", broker="memory://", set_as_current=False)
    app.conf.update(result_backend="cache+memory://")
    with app.connection_for_write() as connection:
        purge(connection)
        yield app
        purge(connection)
    app.close()


def purge(connection: Connection) -> None:
    with connection.SimpleQueue(QUEUE) as queue:
        queue.clear()


def published(app: Celery, queue: str = QUEUE) -> list[Any]:
    """The messages that are in a queue."""
    found = []
    with app.connection_for_read() as connection, connection.SimpleQueue(queue) as simple:
        while simple.qsize():
            found.append(simple.get(timeout=1))
            found[-1].ack()
    return found


@pytest.fixture
def task(app: Celery) -> Task[Any, Any]:
    """A task that is never executed."""

    @app.task(name="bill", shared=False, bind=True)
    def bill(self: Task[Any, Any], *args: Any, **kwargs: Any) -> None:
        """Nothing."""

    return bill


# -- when a message is due -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("countdown", "seconds"), [(None, 0.0), (0, 0.0), (5, 5.0), (2.5, 2.5), (-3, 0.0)]
)
def test_a_countdown_is_the_seconds_until_due(countdown: Any, seconds: float) -> None:
    assert messages.seconds_until(countdown, None) == seconds


def in_an_hour() -> datetime:
    return SYSTEM.now() + timedelta(hours=1)


@pytest.mark.parametrize(
    "form",
    [
        lambda at: at,
        lambda at: at.isoformat(),
        lambda at: at.astimezone(timezone(timedelta(hours=5, minutes=30))),
        lambda at: at.replace(tzinfo=None),
    ],
    ids=["aware", "text", "other-zone", "naive"],
)
def test_an_eta_counts_from_now(form: Any) -> None:
    """Aware, as ISO 8601 text, in another zone, or naive, which is UTC in Celery's messages."""
    seconds = messages.seconds_until(None, form(in_an_hour()))
    assert 3500 < seconds <= 3600


def test_an_eta_that_has_passed_is_due() -> None:
    assert messages.seconds_until(None, SYSTEM.now() - timedelta(days=1)) == 0.0


def test_an_eta_counts_more_than_a_countdown() -> None:
    """As in Celery, which makes an eta of the countdown."""
    assert messages.seconds_until(5, in_an_hour()) > 3500


# -- written down and published later ------------------------------------------------------------


def test_a_message_that_is_written_down_can_be_published(app: Celery) -> None:
    """Arguments, options and headers are those of the message; what is of the moment is not."""
    options = {
        "task_id": "the-id",
        "retries": 2,
        "headers": {"idem_run_key": "k"},
        "countdown": 100,
        "producer": object(),
        "connection": object(),
        "group_id": "g",
        "priority": None,
    }
    text = messages.dump("bill", (1, "ä"), {"to": "ada"}, options)
    assert text is not None
    kept = json.loads(text)["options"]
    assert kept.keys() == {"task_id", "retries", "headers", "group_id"}
    messages.publish(app, text)
    (message,) = published(app)
    args, kwargs, _ = message.payload
    assert (args, kwargs) == ([1, "ä"], {"to": "ada"})
    headers = message.headers
    assert (headers["id"], headers["retries"], headers["group"]) == ("the-id", 2, "g")
    assert headers["idem_run_key"] == "k"
    assert headers["eta"] is None


def test_what_follows_a_message_is_written_down(app: Celery) -> None:
    """Links, error links, chains and chords."""
    link = app.signature("linked", (1,))
    options: dict[str, Any] = {
        "link": [link],
        "link_error": [app.signature("failed")],
        "chain": [link],
    }
    options["chord"] = app.signature("body")
    text = messages.dump("bill", None, None, options)
    assert text is not None
    messages.publish(app, text, task_id="x")
    (message,) = published(app)
    embed = message.payload[2]
    assert [one["task"] for one in embed["callbacks"]] == ["linked"]
    assert [one["task"] for one in embed["errbacks"]] == ["failed"]
    assert [one["task"] for one in embed["chain"]] == ["linked"]
    assert embed["chord"]["task"] == "body"


def test_options_of_the_publish_count_more_than_those_written_down(app: Celery) -> None:
    text = messages.dump("bill", (), {}, {"task_id": "old", "retries": 1})
    assert text is not None
    messages.publish(app, text, retries=5)
    (message,) = published(app)
    assert (message.headers["id"], message.headers["retries"]) == ("old", 5)


def test_values_that_json_knows_only_in_a_way_come_back(app: Celery) -> None:
    """Instants and the like, as in Celery's own JSON."""
    at = datetime(2026, 3, 29, 1, 30, tzinfo=timezone.utc)
    text = messages.dump("bill", (at, {"n": [None, 1.5]}), {}, {})
    assert text is not None
    messages.publish(app, text)
    (message,) = published(app)
    assert message.payload[0] == [at, {"n": [None, 1.5]}]


@pytest.mark.parametrize("value", [object(), {1, 2}.__iter__(), lambda: None, {("a",): 1}])
def test_a_message_that_json_cannot_tell_is_not_written_down(value: Any) -> None:
    """None rather than an error: the retry itself must not fail for it."""
    assert messages.dump("bill", (value,), {}, {}) is None


@pytest.mark.parametrize("value", [(1, 2), {1: "one"}])
def test_what_another_serializer_tells_otherwise_is_not_written_down(value: Any) -> None:
    """The body would be executed with other arguments."""
    assert messages.dump("bill", (value,), {}, {"serializer": "pickle"}) is None
    assert messages.dump("bill", (7, "x"), {}, {"serializer": "pickle"})
    assert messages.dump("bill", (value,), {}, {})


def bill(*args: Any, **kwargs: Any) -> None: ...


class Fragile:
    """Cannot be copied, in one of the two ways."""

    def __init__(self, when: str) -> None:
        self.when = when

    def __reduce__(self) -> Any:
        if self.when == "told":
            raise ValueError("not to be told")
        return _broken, ()


def _broken() -> None:
    raise ValueError("not to be made again")


@pytest.mark.parametrize("when", ["told", "made"])
def test_arguments_that_cannot_be_copied_are_those_of_the_request(app: Celery, when: str) -> None:
    """JSON may tell any class that somebody has registered."""
    task = app.task(name="bill", shared=False)(bill)
    properties = {"content_type": "application/json"}
    request = Context(
        id="one", args=[Fragile(when)], kwargs={}, properties=properties, is_eager=False
    )
    messages.keep_arguments(request)
    assert list(messages.signature_of(task, request).args) == request.args


def test_arguments_are_kept_as_they_came(app: Celery) -> None:
    task = app.task(name="bill", shared=False)(bill)
    properties = {"content_type": "application/json"}
    request: Any = Context(id="one", args=[["x"]], kwargs={"to": {}}, properties=properties)
    messages.keep_arguments(request)
    request.args[0].append("header")
    request.kwargs["to"]["more"] = 1
    signature = messages.signature_of(task, request)
    assert (list(signature.args), signature.kwargs) == ([["x"]], {"to": {}})


def test_what_is_nested_too_deeply_is_not_written_down() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    assert messages.dump("bill", (deep,), {}, {}) is None


def test_a_message_that_contains_itself_is_not_written_down() -> None:
    """It could not be published as JSON either."""
    circle: list[Any] = []
    circle.append(circle)
    assert messages.dump("bill", (circle,), {}, {}) is None


# -- published anew ------------------------------------------------------------------------------


def request_of(task: Task[Any, Any], **more: Any) -> Any:
    """The request of a message as the tracer has it."""
    task.push_request(
        **{
            "id": "the-id",
            "args": (1,),
            "kwargs": {"to": "ada"},
            "headers": {"idem_run_key": "k"},
            "delivery_info": {"exchange": "", "routing_key": QUEUE},
            "called_directly": False,
            **more,
        }
    )
    return task.request


@pytest.mark.parametrize(
    ("delay", "seconds"), [(0, 1), (-2, 1), (0.2, 1), (1.0, 1), (1.1, 2), (59.5, 60)]
)
def test_a_message_is_published_anew_after_whole_seconds(
    app: Celery, task: Task[Any, Any], delay: float, seconds: int
) -> None:
    """At least one, as brokers count."""
    before = SYSTEM.now()
    assert messages.publish_anew(task, request_of(task), delay, 0) == seconds
    (message,) = published(app)
    due = datetime.fromisoformat(message.headers["eta"])
    assert before + timedelta(seconds=seconds) <= due <= SYSTEM.now() + timedelta(seconds=seconds)


def test_it_is_counted_how_often_the_run_of_a_message_had_an_owner(
    app: Celery, task: Task[Any, Any]
) -> None:
    """And noted, once, that it was put back for another reason."""
    headers: dict[str, Any] = {}
    for is_owned, count in ((False, 1), (False, 1), (True, 2), (True, 3), (False, 3)):
        request = request_of(task, headers=headers)
        messages.publish_anew(task, request, 1, 0, is_owned=is_owned)
        (message,) = published(app)
        headers = {messages.HEADER_PUT_BACK: message.headers[messages.HEADER_PUT_BACK]}
        assert headers[messages.HEADER_PUT_BACK] == count


def test_a_message_that_is_published_anew_is_the_same(app: Celery, task: Task[Any, Any]) -> None:
    """Id, arguments, retry number, headers, group and what follows it."""
    link = dict(app.signature("linked"))
    request = request_of(
        task, retries=3, callbacks=[link], chain=[link], group="g", root_id="r", parent_id="p"
    )
    messages.publish_anew(task, request, 5, request.retries)
    (message,) = published(app)
    args, kwargs, embed = message.payload
    headers = message.headers
    assert (args, kwargs) == ([1], {"to": "ada"})
    assert (headers["id"], headers["task"], headers["retries"]) == ("the-id", "bill", 3)
    assert (headers["root_id"], headers["parent_id"], headers["group"]) == ("r", "p", "g")
    assert headers["idem_run_key"] == "k"
    assert headers[messages.HEADER_PUT_BACK] == 1
    assert [one["task"] for one in embed["callbacks"]] == ["linked"]
    assert [one["task"] for one in embed["chain"]] == ["linked"]
    assert request.headers == {"idem_run_key": "k"}, "the request's own headers are left alone"


def test_a_message_is_published_anew_through_its_own_route(
    app: Celery, task: Task[Any, Any]
) -> None:
    """Not through the task's: it may have been sent to a queue of its own."""
    info = {"exchange": "", "routing_key": "own", "priority": 5}
    with app.connection_for_write() as connection, connection.SimpleQueue("own") as queue:
        queue.clear()
    messages.publish_anew(task, request_of(task, delivery_info=info), 1, 0)
    assert published(app) == []
    (message,) = published(app, "own")
    assert message.properties["priority"] == 5
