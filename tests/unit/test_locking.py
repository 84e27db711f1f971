"""What may be written where a lock is declared, and what the errors say of the rest."""

from __future__ import annotations

import re
from typing import Any

import pytest
from celery import Celery

from celery_idem import IdempotentTask, critical_section
from celery_idem.errors import ImproperlyConfigured


@pytest.fixture
def app() -> Celery:
    return Celery("shop", set_as_current=False)


def names(task: Any, *args: Any, **kwargs: Any) -> tuple[str, ...]:
    """The locks of a body with these arguments."""
    return tuple(task._idem_lock.section(args, kwargs).names)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"names": ""}, "names of critical_section = '' is not possible: it must not be empty"),
        ({"names": "a\0"}, "it must not contain a NUL character"),
        ({"names": "x" * 1001}, "it has 1001 bytes, 1000 are allowed"),
        ({"names": "x" * 20_000}, "it has 20000 bytes"),
        ({"names": []}, "it must be one name at least"),
        ({"names": ["a", 1]}, "it must be a str, not int"),
        ({"names": 1}, "it must be a str, or several"),
        ({"names": b"a"}, "it must be a str, or several"),
        ({"names": "\ud800"}, "it is not valid Unicode"),
        ({"wait": -1}, "wait of critical_section = -1 is not possible: it must be between 0 and"),
        ({"wait": "1"}, "it must be seconds or a timedelta"),
        ({"max_hold": -1}, "max_hold of critical_section = -1 is not possible"),
        ({"max_hold": 0}, "max_hold of critical_section = 0 is not possible"),
        ({"max_hold": float("nan")}, "max_hold of critical_section = nan is not possible"),
        ({"concurrency": 0}, "concurrency of critical_section = 0 is not possible"),
        ({"concurrency": True}, "concurrency of critical_section = True is not possible"),
        (
            {"app": "shop"},
            "app of critical_section = 'shop' is not possible: it must be a Celery app",
        ),
        ({"on_contended": "wait"}, "allowed are 'retry', 'skip', 'raise'"),
    ],
)
def test_an_impossible_argument_is_refused_at_the_call(
    arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ImproperlyConfigured, match=re.escape(message)):
        critical_section(**{"names": "stock", **arguments})


def test_an_error_shows_the_beginning_of_a_long_name() -> None:
    with pytest.raises(ImproperlyConfigured) as caught:
        critical_section("x" * 9_000)
    assert len(str(caught.value)) < 300


def test_a_template_is_filled_with_the_arguments(app: Celery) -> None:
    @app.task(base=IdempotentTask, idem_lock="stock:{sku}:{place.real}", shared=False)
    def sell(sku: str, place: int = 7) -> None: ...

    assert names(sell, "a") == names(sell, sku="a") == ("stock:a:7",)
    assert names(sell, "a{b}", 8) == ("stock:a{b}:8",), "what is filled in is no template"


def test_a_bound_task_has_no_self_in_its_templates(app: Celery) -> None:
    @app.task(bind=True, base=IdempotentTask, idem_lock="stock:{sku}", shared=False)
    def sell(self: Any, sku: str) -> None: ...

    assert names(sell, "a") == ("stock:a",)
    with pytest.raises(ImproperlyConfigured, match="the task has no argument 'self'; it has sku"):

        @app.task(bind=True, base=IdempotentTask, idem_lock="{self}", lazy=False, shared=False)
        def buy(self: Any, sku: str) -> None: ...


def test_a_class_may_have_a_lock(app: Celery) -> None:
    class Sell(IdempotentTask):
        name = "shop.sell"
        idem_lock = "stock:{sku}"

        def run(self, sku: str) -> None: ...

    assert names(app.register_task(Sell()), "a") == ("stock:a",)


def test_several_locks_come_from_several_templates(app: Celery) -> None:
    @app.task(base=IdempotentTask, idem_lock=["from:{one}", "to:{two}"], shared=False)
    def move(one: str, two: str) -> None: ...

    assert names(move, "a", "b") == ("from:a", "to:b")


def test_a_callable_gets_the_arguments(app: Celery) -> None:
    @app.task(
        bind=True, base=IdempotentTask, idem_lock=lambda sku, *more: [sku, *more], shared=False
    )
    def sell(self: Any, sku: str, *more: str) -> None: ...

    assert names(sell, "a", "b") == ("a", "b")
    with pytest.raises(ImproperlyConfigured, match=r"idem_lock of task .* it must be a str, not"):
        names(sell, 1)


def test_caught_arguments_can_be_named(app: Celery) -> None:
    @app.task(base=IdempotentTask, idem_lock="{sku}", shared=False)
    def sell(**kwargs: str) -> None: ...

    assert names(sell, sku="a") == ("a",)
    with pytest.raises(ImproperlyConfigured, match=r"the arguments do not fill it: KeyError"):
        names(sell, other="a")


def test_options_of_a_section_are_kept(app: Celery) -> None:
    section = critical_section("{sku}", wait=1, max_hold=2, concurrency=3, on_contended="skip")

    @app.task(base=IdempotentTask, idem_lock=section, shared=False)
    def sell(sku: str) -> None: ...

    assert sell._idem_lock is not None
    made = sell._idem_lock.section(("a",), {})
    assert (made.wait, made.max_hold, made.concurrency, str(made.on_contended)) == (1, 2, 3, "skip")


@pytest.mark.parametrize(
    ("lock", "message"),
    [
        (
            "stock:{skq}",
            "'stock:{skq}' is not possible: the task has no argument 'skq'; it has sku",
        ),
        ("stock:{0}", "the task has no argument '0'"),
        ("stock:{}", "the task has no argument ''"),
        ("stock:{sku", "no template: expected '}' before end of string"),
        ("", "it must not be empty"),
        ("a\0{sku}", "it must not contain a NUL character"),
        (["{sku}", "{other}"], "the task has no argument 'other'"),
        ([], "it must be one name at least"),
        (7, "it must be a template like 'stock:{sku}'"),
        (critical_section("{other}"), "the task has no argument 'other'"),
    ],
)
def test_an_impossible_lock_is_refused_where_the_task_is_declared(
    app: Celery, lock: Any, message: str
) -> None:
    with pytest.raises(ImproperlyConfigured, match=re.escape(message)) as caught:

        @app.task(base=IdempotentTask, idem_lock=lock, name="shop.sell", lazy=False, shared=False)
        def sell(sku: str) -> None: ...

    assert "idem_lock of task shop.sell" in str(caught.value)


def test_arguments_that_make_no_name_are_refused_at_the_run(app: Celery) -> None:
    @app.task(base=IdempotentTask, idem_lock="{sku}", shared=False)
    def sell(sku: str) -> None: ...

    for sku in ("", "x" * 1001, "a\0"):
        with pytest.raises(ImproperlyConfigured, match="idem_lock of task"):
            names(sell, sku)


def test_a_slip_of_the_option_is_told(app: Celery) -> None:
    with pytest.raises(
        ImproperlyConfigured, match=r"known are check_payload, idem_grain, idem_key, idem_lock"
    ):

        @app.task(base=IdempotentTask, idem_locks="{sku}", lazy=False, shared=False)
        def sell(sku: str) -> None: ...
