"""Messages that are put back: the log says what is wrong, and none is lost."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery
from celery.exceptions import Ignore, Reject, SoftTimeLimitExceeded

from celery_idem import IdempotentTask
from celery_idem.delivery import PAUSE, put_back, until_free
from celery_idem.messages import HEADER_PUT_BACK

AWAY = "the broker does not answer: "
WRONG = "it cannot be published anew: "


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds for which the thread would have slept."""
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    return pauses


@pytest.fixture
def app() -> Iterator[Celery]:
    app = Celery("back", broker="memory://", set_as_current=False)
    yield app
    app.close()


def request_of(app: Celery, **more: Any) -> tuple[Any, Any]:
    """A task and the request of its message."""

    @app.task(base=IdempotentTask, name="bill", shared=False)
    def bill(value: Any) -> None:
        """Never called."""

    request = {
        "id": "the-id",
        "args": (1,),
        "kwargs": {},
        "delivery_info": {"exchange": "", "routing_key": "celery"},
        "called_directly": False,
        **more,
    }
    task: Any = app.tasks["bill"]
    task.push_request(**request)
    return task, task.request


def told(caplog: pytest.LogCaptureFixture) -> str:
    (record,) = [r for r in caplog.records if getattr(r, "action", "") == "run_put_back"]
    assert getattr(record, "run_key", None) == "bill[the-id]"
    return record.getMessage()


def refused(app: Celery, **more: Any) -> None:
    task, request = request_of(app, **more)
    with pytest.raises(Reject) as caught:
        put_back(task, request, "bill[the-id]", 2.0, "the ledger is away")
    assert getattr(caught.value, "requeue", None) is True


def test_a_message_is_published_and_acknowledged(
    app: Celery, pauses: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    task, request = request_of(app)
    with pytest.raises(Ignore):
        put_back(task, request, "bill[the-id]", 2.0, "the ledger is away")
    assert told(caplog).endswith("is put back for 2 s: the ledger is away")
    assert pauses == []


@pytest.mark.parametrize("broker", ["redis://127.0.0.1:1/", "amqp://127.0.0.1:1//"])
def test_a_broker_that_is_away_is_said_to_be(
    broker: str, pauses: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    app = Celery("back", broker=broker, set_as_current=False)
    app.conf.broker_transport_options = {"max_retries": 0}
    refused(app)
    assert AWAY in told(caplog)
    assert WRONG not in told(caplog)
    assert PAUSE[0] <= pauses[-1] <= PAUSE[1]
    app.close()


@pytest.mark.parametrize("broker", ["memory://", "redis://127.0.0.1:1/", "amqp://127.0.0.1:1//"])
def test_a_missing_queue_is_not_the_brokers_fault(
    broker: str, pauses: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    app = Celery("back", broker=broker, set_as_current=False)
    app.conf.update(task_create_missing_queues=False, task_publish_retry=False)
    refused(app, delivery_info={"exchange": "", "routing_key": "nowhere"})
    assert WRONG in told(caplog)
    assert "nowhere" in told(caplog)
    assert AWAY not in told(caplog)
    # Without it, the broker would deliver the message again at once, and so on.
    assert len(pauses) == 1
    assert PAUSE[0] <= pauses[0] <= PAUSE[1]
    app.close()


def test_arguments_that_cannot_be_written_are_not_the_brokers_fault(
    app: Celery, pauses: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    refused(app, args=(object(),))
    assert f"the ledger is away; {WRONG}EncodeError(" in told(caplog)
    assert AWAY not in told(caplog)
    assert len(pauses) == 1
    assert PAUSE[0] <= pauses[0] <= PAUSE[1]


def test_a_time_limit_during_the_pause_loses_nothing(
    app: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would make a failure of a message that was never claimed."""

    def interrupted(seconds: float) -> None:
        raise SoftTimeLimitExceeded

    monkeypatch.setattr(time, "sleep", interrupted)
    refused(app, args=(object(),))


@pytest.mark.parametrize(
    ("told", "least", "most"),
    [
        (None, 1, 5),
        # As older workers say it.
        (True, 2, 10),
        (1, 2, 10),
        (3, 8, 40),
        (10**9, 301, 301),
        # Whatever a sender may have written there.
        (-(10**9), 1, 5),
        ("often", 2, 10),
    ],
)
def test_a_message_whose_run_has_an_owner_comes_soon_and_then_ever_later(
    app: Celery, told: Any, least: float, most: float
) -> None:
    """Not only when the lease would have ended: the owner's parent may know better by then."""
    _, request = request_of(app, headers={HEADER_PUT_BACK: told})
    for _ in range(100):
        assert least <= until_free(request, 300.0) <= most
        assert until_free(request, 0.5) <= 1.5
