"""Functions that several processes call: one call of each interval is executed."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import datetime
from typing import Any

import pytest

from celery_idem import ImproperlyConfigured, Ledger, LedgerUnavailable, RunState, current_run
from celery_idem.ledger import Retry
from tests.contract.outside import LONGEST, NAME, begun, current, key, left, opened
from tests.contract.shop import Broken
from tests.contract.stores import Store
from tests.contract.together import in_threads

NOW = current()
LAST, BEFORE = NOW - LONGEST, NOW - 2 * LONGEST


@pytest.fixture
def ledger(database: Store) -> Iterator[Ledger]:
    """This process's own, on each kind of database."""
    with opened(database.url) as ledger:
        yield ledger


def repeated(ledger: Ledger, body: Callable[..., Any], name: str | None = NAME) -> Any:
    """The body, decorated."""
    return ledger.idempotent(every=LONGEST, key=name)(body)


class Body:
    """What is called, and remembers it."""

    def __init__(self) -> None:
        self.slots: list[datetime | None] = []

    def __call__(self, number: int = 1) -> int:
        self.slots.append(current_run().slot)
        return number + 1


def test_one_call_of_an_interval_is_executed(ledger: Ledger) -> None:
    body = Body()
    job = repeated(ledger, body)
    assert [job(1), job(number=2), job(3)] == [2, None, None]
    assert body.slots == [NOW]


def test_of_calls_at_once_one_is_executed(ledger: Ledger) -> None:
    body = Body()
    job = repeated(ledger, body)
    answers = in_threads(6, job)
    assert answers.count(None) == 5
    assert body.slots == [NOW]


def double(number: int) -> int:
    """What it does."""
    return 2 * number


def test_a_function_keeps_its_name_and_gives_it_to_the_run(database: Store, ledger: Ledger) -> None:
    job = repeated(ledger, double, name=None)
    assert (job.__name__, job.__doc__) == ("double", "What it does.")
    assert job(4) == 8
    assert database.row(key(NOW, f"{__name__}.double")).state is RunState.SUCCEEDED


def test_a_method_is_one_job_of_all_its_objects(ledger: Ledger) -> None:
    class Shop:
        @ledger.idempotent(every="month", key="open", timezone="Europe/Berlin")
        def open(self, door: str) -> str:
            return f"{door} is open"

    assert [Shop().open("front"), Shop().open("back")] == ["front is open", None]


def test_a_call_that_raises_was_the_one(database: Store, ledger: Ledger) -> None:
    def body() -> None:
        raise Broken

    job = repeated(ledger, body)
    with pytest.raises(Broken):
        job()
    assert job() is None
    assert database.row(key(NOW)).state is RunState.FAILED


# -- slots that were left ------------------------------------------------------------------------


def test_slots_that_dead_processes_left_are_executed(database: Store, ledger: Ledger) -> None:
    """After the present one, the oldest first, and once."""
    for slot in (LAST, BEFORE):
        left(database, key(slot))
    body = Body()
    job = repeated(ledger, body)
    assert [job(1), job(2)] == [2, None]
    assert body.slots == [NOW, BEFORE, LAST]
    assert {database.row(key(slot)).state for slot in (BEFORE, LAST)} == {RunState.SUCCEEDED}


def test_of_calls_at_once_one_executes_what_was_left(database: Store, ledger: Ledger) -> None:
    left(database, key(LAST))
    body = Body()
    job = repeated(ledger, body)
    in_threads(6, job)
    assert sorted(filter(None, body.slots)) == [LAST, NOW]


def test_what_is_not_left_is_left_alone(database: Store, ledger: Ledger) -> None:
    """A slot that goes on, one that has ended, another job's, and one of no interval."""
    begun(database, key(LAST), lease=database.lease())
    with ledger.once(NAME, slot=BEFORE):
        pass
    left(database, key(LAST, NAME.upper()), NAME.upper())
    left(database, key(LAST, "other"), "other")
    left(database, key(None))
    body = Body()
    repeated(ledger, body)()
    assert body.slots == [NOW]


def test_a_slot_that_was_given_back_is_executed(database: Store, ledger: Ledger) -> None:
    begun(database, key(LAST), lease=database.lease())
    assert database.ledger.give_back(key(LAST), 1, "its lock was not free", 60.0)
    body = Body()
    repeated(ledger, body)()
    assert body.slots == [NOW, LAST]


def test_a_slot_that_is_to_be_abandoned_is(database: Store, ledger: Ledger) -> None:
    left(database, key(LAST))
    body = Body()
    job: Any = ledger.idempotent(every=LONGEST, key=NAME, on_crash="abandon")(body)
    job()
    assert body.slots == [NOW]
    assert database.row(key(LAST)).state is RunState.DEAD


def test_a_ledger_tells_what_was_begun_and_not_ended(store: Store) -> None:
    def names(namespace: str = "shop", task: str = "shop.bill") -> list[str]:
        found = store.ledger.unfinished_before(namespace, task, NOW)
        return sorted(row.key.text for row in found)

    running, back, ended, retrying, late = (key(LAST, name) for name in "abcde")
    for each in (running, back, ended, retrying):
        store.owned(each)
    store.owned(key(NOW, "late"))
    store.owned(key(None, "none"))
    store.ledger.give_back(back, 1, "", 60.0)
    store.ledger.end(ended, 1, RunState.SUCCEEDED)
    store.ledger.retry(retrying, 1, Retry(1, 0.0, None))
    store.scheduled(1)
    assert names() == sorted([running.text, back.text])
    assert names("other") == names(task="other") == []
    assert late.slot == LAST


# -- what is refused -----------------------------------------------------------------------------


async def coroutine() -> None: ...


def generator() -> Iterator[int]:
    yield 1


async def asynchronous() -> AsyncIterator[int]:
    yield 1


@functools.wraps(coroutine)
def wrapped() -> Any:
    return coroutine()


@pytest.fixture(scope="module")
def nowhere() -> Iterator[Ledger]:
    """A ledger whose database is away."""
    with opened("postgresql://nobody@127.0.0.1:1/nowhere") as ledger:
        yield ledger


@pytest.mark.parametrize(
    "function", [coroutine, generator, asynchronous, wrapped, functools.partial(coroutine), 7]
)
def test_what_is_no_plain_function_is_refused(nowhere: Ledger, function: Any) -> None:
    with pytest.raises(ImproperlyConfigured, match=r"function of idempotent = .* is not possible"):
        repeated(nowhere, function)


def test_a_function_without_a_name_needs_a_key(nowhere: Ledger) -> None:
    def local() -> None: ...

    script = functools.update_wrapper(lambda: None, double)
    script.__module__ = "__main__"
    for function in (local, lambda: None, functools.partial(double, 2), script):
        with pytest.raises(ImproperlyConfigured, match="pass key="):
            repeated(nowhere, function, name=None)
        repeated(nowhere, function)


@pytest.mark.parametrize(
    "arguments",
    [{"every": "often"}, {"every": "day", "timezone": "Nowhere"}, {"every": 1, "lease": 0}],
    ids=str,
)
def test_impossible_arguments_are_refused(nowhere: Ledger, arguments: Any) -> None:
    with pytest.raises(ImproperlyConfigured, match="is not possible"):
        nowhere.idempotent(**arguments)


def test_without_a_database_no_body_runs(nowhere: Ledger) -> None:
    body = Body()
    with pytest.raises(LedgerUnavailable):
        repeated(nowhere, body)()
    assert body.slots == []
