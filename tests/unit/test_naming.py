"""Which run a message is: by its sender's key, by the task's options, or by itself."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from celery import Celery, chain, group
from pydantic import BaseModel

from celery_idem import (
    DuplicateRun,
    IdempotentTask,
    InvalidHeader,
    InvalidRunKey,
    KeyReused,
    NotCanonical,
    RunKey,
)
from celery_idem.config import Settings
from celery_idem.errors import ImproperlyConfigured
from celery_idem.keys import EPOCH, HEADER_KEY, Stamp
from celery_idem.naming import identify
from celery_idem.replacing import HEADER_REPLACED, HEADER_REPLACES
from tests.unit.beats import messages

Declare = Callable[..., Any]


@pytest.fixture
def app() -> Celery:
    made = Celery("shop", broker="memory://", set_as_current=False)
    made.conf.update(task_default_queue=f"naming-{id(made)}", timezone="Europe/Berlin")
    return made


def declare(app: Celery, function: Callable[..., Any], **options: Any) -> Any:
    options = {"name": "shop.bill", "base": IdempotentTask, "shared": False, **options}
    make: Any = app.task(lazy=False, **options)
    return make(function)


def bill(customer: int, month: str = "now", *, dry: bool = False) -> None: ...


def sent(app: Celery) -> list[RunKey]:
    """The run keys of the messages that were published."""
    stamps = [Stamp.read(message.headers, "shop.bill") for message in messages(app)]
    return [stamp.key for stamp in stamps if stamp]


def arrived(task: Any, *args: Any, **kwargs: Any) -> RunKey | None:
    """The key of a message that somebody has sent who does not know the task."""
    request = {"id": "one", "args": args, "kwargs": kwargs}
    return identify(task, {}, request, Settings.of(task.app)).key


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (["customer"], '{"customer":7}'),
        (["customer", "month"], '{"customer":7,"month":"now"}'),
        (("month", "customer"), '{"customer":7,"month":"now"}'),
        ("bill:{customer}:{month}", "bill:7:now"),
        (lambda customer, *rest, **more: f"c{customer}", "c7"),
    ],
)
def test_however_arguments_are_passed_they_make_one_key(app: Celery, given: Any, text: str) -> None:
    task = declare(app, bill, idem_key=given)
    task.delay(7)
    task.delay(customer=7)
    task.apply_async((7,), {"month": "now", "dry": False})
    wanted = RunKey(f"shop:shop.bill={text}")
    assert sent(app) == [wanted] * 3
    assert arrived(task, 7) == arrived(task, customer=7) == wanted


def test_a_bound_task_and_a_class_have_no_self_in_their_keys(app: Celery) -> None:
    def bound(self: Any, customer: int) -> None: ...

    assert arrived(declare(app, bound, bind=True, idem_key=["customer"]), 7) == RunKey(
        'shop:shop.bill={"customer":7}'
    )

    class Bill(IdempotentTask):
        name = "shop.other"
        idem_key = "{customer}"

        def run(self, customer: int) -> None: ...

    assert arrived(app.register_task(Bill()), 7) == RunKey("shop:shop.other=7")


def test_what_kwargs_catch_may_be_named(app: Celery) -> None:
    def loose(*rows: int, **more: int) -> None: ...

    task = declare(app, loose, idem_key=["rows", "tenant"])
    assert arrived(task, 1, 2, tenant=3, other=4) == RunKey(
        'shop:shop.bill={"rows":[1,2],"tenant":3}'
    )
    assert arrived(task, 1) == RunKey('shop:shop.bill={"rows":[1],"tenant":null}')


class Customer(BaseModel):
    number: int


def test_a_pydantic_task(app: Celery) -> None:
    def charge(customer: Customer, cents: int) -> None: ...

    task = declare(app, charge, pydantic=True, idem_key=["customer"])
    task.delay({"number": 7}, 100)
    task.delay(Customer(number=7).model_dump(), cents=200)
    assert sent(app) == [RunKey('shop:shop.bill={"customer":{"number":7}}')] * 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"idem_key": ["custmer"]}, "the task has no argument 'custmer'; it has customer, month"),
        ({"idem_key": "bill:{custmer}"}, "the task has no argument 'custmer'"),
        ({"idem_key": "bill:{customer"}, "no template"),
        ({"idem_key": []}, "it must be a template like"),
        ({"idem_key": ""}, "it must be a template like"),
        ({"idem_key": [1]}, "it must be a template like"),
        ({"idem_key": 7}, "idem_key of task shop.bill = 7 is not possible"),
        ({"idem_grain": "year"}, "idem_grain of task shop.bill = 'year'"),
        (
            {"on_duplicate": "replay"},
            "on_duplicate of task shop.bill = 'replay' is not possible: set",
        ),
        ({"on_duplicate": "wait"}, "allowed are 'raise', 'replay', 'ignore'"),
        ({"store_result": 1}, "store_result of task shop.bill = 1"),
        (
            {"idem_keys": "x"},
            "there is no such option; known are check_payload, idem_grain, idem_key",
        ),
    ],
)
def test_an_impossible_option_is_an_error_where_the_task_is_declared(
    app: Celery, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(ImproperlyConfigured, match=re.escape(said)):
        declare(app, bill, **options)


def test_what_makes_no_key_is_an_error_of_the_sender(app: Celery) -> None:
    task = declare(app, bill, idem_key=["customer"])
    with pytest.raises(NotCanonical, match=r"arguments\['customer'\]"):
        task.delay(object())
    with pytest.raises(TypeError, match="customer"):
        task.apply_async(kwargs={"month": "may"})
    with pytest.raises(InvalidRunKey, match="must not be empty"):
        task.apply_async((7,), idem_key="")
    with pytest.raises(InvalidRunKey, match="it must be a str"):
        task.apply_async((7,), idem_key=7)
    with pytest.raises(ImproperlyConfigured, match="it has returned a int"):
        declare(app, bill, name="shop.other", idem_key=lambda customer: customer).delay(7)
    assert messages(app) == []


def test_a_callable_may_leave_it_at_that(app: Celery) -> None:
    task = declare(app, bill, idem_key=lambda customer, **more: None)
    task.delay(7)
    assert sent(app) == []
    assert arrived(task, 7) == RunKey("shop:shop.bill[one]")


def test_the_senders_own_key_wins_and_keeps_what_was_in_the_headers(app: Celery) -> None:
    task = declare(app, bill, idem_key=["customer"])
    mine = {"mine": 1}
    task.apply_async((7,), idem_key="order-42", headers=mine)
    (message,) = messages(app)
    assert message.headers[HEADER_KEY] == "shop:shop.bill=order-42"
    assert message.headers["mine"] == 1
    assert mine == {"mine": 1}


def test_signatures_take_a_key_along(app: Celery) -> None:
    task = declare(app, bill)
    task.s(7).set(idem_key="a").apply_async()
    group(task.s(7).set(idem_key=name) for name in "bc").apply_async()
    chain(task.s(7).set(idem_key="d"), task.si(8).set(idem_key="e")).apply_async()
    found = messages(app)
    assert [message.headers[HEADER_KEY][-2:] for message in found] == ["=a", "=b", "=c", "=d"]
    (following,) = found[-1].payload[2]["chain"]
    assert following["options"]["idem_key"] == "e"


def test_a_call_in_this_process_takes_a_key_too(app: Celery, tmp_path: Path) -> None:
    app.conf.idem_database_url = f"sqlite:///{tmp_path / 'ledger.sqlite3'}"
    task = declare(app, bill)
    assert task.apply((7,), idem_key="order-42").successful()
    assert isinstance(task.apply((7,), idem_key="order-42").result, DuplicateRun)
    assert isinstance(task.s(8).set(idem_key="order-42").apply().result, KeyReused)


def test_a_sender_that_does_not_know_the_task_gives_a_header(app: Celery) -> None:
    task = declare(app, bill, idem_key=["customer"])
    settings = Settings.of(app)
    request = {"id": "one", "args": (7,), "kwargs": {}}
    header = {"idem_key": "order-42"}
    assert identify(task, header, request, settings).key == RunKey("shop:shop.bill=order-42")
    for wrong in ("", 7, "a\0"):
        with pytest.raises(InvalidHeader, match="idem_key"):
            identify(task, {"idem_key": wrong}, request, settings)


def test_with_a_signing_key_only_what_is_signed_names_a_run(app: Celery) -> None:
    app.conf.idem_signing_key = "secret"
    task = declare(app, bill)
    task.apply_async((7,), idem_key="order-42")
    (message,) = messages(app)
    stamp = Stamp.read(message.headers, "shop.bill", "secret")
    assert stamp and stamp.key == RunKey("shop:shop.bill=order-42")
    with pytest.raises(InvalidHeader, match="it is not signed"):
        identify(task, {"idem_key": "order-42"}, {"id": "one"}, Settings.of(app))


@pytest.mark.parametrize(
    ("grain", "now", "start"),
    [
        # In the app's time zone: Berlin is two hours ahead then.
        ("day", "2026-05-04T21:59:00", "2026-05-03T22:00:00"),
        ("day", "2026-05-04T22:00:00", "2026-05-04T22:00:00"),
        ("hour", "2026-05-04T21:59:00", "2026-05-04T21:00:00"),
        ("minute", "2026-05-04T21:59:30", "2026-05-04T21:59:00"),
        ("week", "2026-05-04T21:59:00", "2026-05-03T22:00:00"),
        ("month", "2026-05-04T21:59:00", "2026-04-30T22:00:00"),
    ],
)
def test_a_grain_makes_a_key_that_of_a_period(
    app: Celery, monkeypatch: pytest.MonkeyPatch, grain: str, now: str, start: str
) -> None:
    moment = datetime.fromisoformat(now).replace(tzinfo=timezone.utc)
    monkeypatch.setattr("celery_idem.naming.SYSTEM", type("Clock", (), {"now": lambda _: moment})())
    began = datetime.fromisoformat(start).replace(tzinfo=timezone.utc)
    task = declare(app, bill, idem_key=["customer"], idem_grain=grain)
    task.delay(7)
    assert sent(app) == [RunKey(f'shop:shop.bill={{"customer":7}}@{start}Z', began)]
    alone = declare(app, bill, name="shop.all", idem_grain=grain)
    alone.delay(8)
    (message,) = messages(app)
    assert message.headers[HEADER_KEY] == f"shop:shop.all={{}}@{start}Z"
    # When it was sent a worker cannot know, and it may come again in another period.
    assert arrived(task, 7) == RunKey("shop:shop.bill[one]")
    with pytest.raises(InvalidHeader, match="the task has idem_grain"):
        identify(task, {"idem_key": "x"}, {"id": "one"}, Settings.of(app))


def test_names_of_tasks_and_keys_are_not_mixed_up() -> None:
    keys = {
        RunKey.for_task("shop", "a", "b=c"),
        RunKey.for_task("shop", "a=b", "c"),
        RunKey.for_task("shop", "a%3Db", "c"),
        RunKey.for_message("shop", "a", "b=c"),
        RunKey.for_slot("shop", "a=b=c", EPOCH),
    }
    assert len(keys) == 5


def test_with_a_signing_key_nobody_occupies_a_key_by_arguments(app: Celery) -> None:
    app.conf.idem_signing_key = "secret"
    task = declare(app, bill, idem_key=["customer"])
    assert arrived(task, 7) == RunKey("shop:shop.bill[one]")
    strict = declare(app, bill, name="shop.strict", idem_key=["customer"], unstamped="reject")
    with pytest.raises(InvalidHeader, match="messages without a run key are refused"):
        arrived(strict, 7)


def test_what_replaces_a_task_is_no_copy_of_it(app: Celery) -> None:
    task = declare(app, bill, idem_key=["customer"])
    marks = {HEADER_REPLACES: 1, HEADER_REPLACED: ["shop.bill"]}
    task.apply_async((7,), task_id="one", headers=marks)
    (message,) = messages(app)
    assert HEADER_KEY not in message.headers
    request = {"id": "one", "args": (7,), "kwargs": {}}
    assert identify(task, marks, request, Settings.of(app)).key == RunKey("shop:shop.bill[one/1]")


def test_what_replaces_another_task_has_its_own_key(app: Celery) -> None:
    task = declare(app, bill, idem_key=["customer"])
    marks = {HEADER_REPLACES: 1, HEADER_REPLACED: ["shop.other"]}
    task.apply_async((7,), task_id="one", headers=marks)
    assert sent(app) == [RunKey('shop:shop.bill={"customer":7}')]


@pytest.mark.parametrize("times", ["one", True, -1, 1.5])
def test_a_count_that_is_none_is_refused(app: Celery, times: Any) -> None:
    task = declare(app, bill)
    request = {"id": "one", "args": (7,), "kwargs": {}}
    with pytest.raises(InvalidHeader, match=r"idem_replaces = .* must be a whole number"):
        identify(task, {HEADER_REPLACES: times}, request, Settings.of(app))


def test_arguments_that_are_longer_than_names_may_be_make_a_key(app: Celery) -> None:
    task = declare(app, bill, idem_publish="once")
    one, other = (task._idem_key.text(("x" * 20_000 + end,), {}) for end in "ab")
    assert one != other
    assert one == task._idem_key.text(("x" * 20_000 + "a",), {})
    assert len(one.encode()) <= 255


def test_a_retry_and_what_was_put_back_keep_their_key(app: Celery) -> None:
    task = declare(app, bill, idem_key=["customer"])
    stamp = Stamp(RunKey("shop:other@2026-01-01T00:00:00Z"))
    task.apply_async((7,), headers=stamp.write(None, "shop.bill"))
    assert sent(app) == [stamp.key]


def test_switched_off_nothing_is_stamped(app: Celery) -> None:
    app.conf.idem_enabled = False
    task = declare(app, bill, idem_key=["customer"])
    task.apply_async((7,), idem_key="order-42")
    (message,) = messages(app)
    assert HEADER_KEY not in message.headers
    assert "idem_key" not in message.properties
