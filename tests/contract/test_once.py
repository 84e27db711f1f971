"""One execution outside of Celery: who gets it, and how a body ends."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date, timedelta, timezone
from typing import Any

import pytest

from celery_idem import (
    ImproperlyConfigured,
    InvalidRunKey,
    Ledger,
    LockNotAcquired,
    NoCurrentRun,
    RunState,
    critical_section,
    current_run,
)
from tests.contract.outside import NAME, SLOT, key, opened
from tests.contract.shop import Broken, Shop, order
from tests.contract.stores import Store
from tests.contract.together import in_processes, in_threads


@pytest.fixture
def ledger(database: Store) -> Iterator[Ledger]:
    """This process's own, on each kind of database."""
    with opened(database.url) as ledger:
        yield ledger


# -- who gets it ---------------------------------------------------------------------------------


def test_the_first_one_has_the_run_and_no_other(database: Store, ledger: Ledger) -> None:
    with ledger.once(key=NAME, slot=SLOT) as run:
        assert run is not None and run is current_run()
        assert (run.key, run.slot, run.task) == (key(), SLOT, NAME)
        assert (run.fence, run.attempt, run.retries) == (1, 1, 0)
        assert run.trusted_for > 0
        run.check()
        with opened(database.url) as another, another.once(key=NAME, slot=SLOT) as second:
            assert second is None
            # It is no run of its own.
            assert current_run() is run
    with pytest.raises(NoCurrentRun):
        current_run()
    with ledger.once(key=NAME, slot=SLOT) as third:
        assert third is None
    row = database.row(key())
    assert (row.state, row.fence, row.error) == (RunState.SUCCEEDED, 1, None)
    details = [(line.kind, line.detail) for line in ledger.history(key())]
    assert details == [
        ("duplicate", "its run is being executed"),
        ("duplicate", "its run has ended: succeeded"),
    ]


def test_a_key_without_a_slot_is_once_for_ever(database: Store, ledger: Ledger) -> None:
    with ledger.once(NAME) as run:
        assert run is not None and run.slot is None
    with ledger.once(NAME) as again, ledger.once(NAME, slot=SLOT) as slot:
        assert again is None and slot is not None
    with ledger.once(NAME, namespace="other") as other:
        assert other is not None and other.key.text == "other:report"


def test_an_instant_is_one_slot_in_every_zone(ledger: Ledger) -> None:
    with ledger.once(NAME, slot=SLOT) as run, ledger.once("other", slot=SLOT) as other:
        assert run is not None and other is not None
    with ledger.once(NAME, slot=SLOT.astimezone(timezone(timedelta(hours=2)))) as again:
        assert again is None


def test_of_many_threads_one_has_the_run(ledger: Ledger) -> None:
    def ask(_: int) -> bool:
        with ledger.once(NAME, slot=SLOT) as run:
            return run is not None

    assert sorted(in_threads(8, ask)) == [False] * 7 + [True]


def _ask(_: int, url: str) -> list[int]:
    with opened(url) as ledger:
        won = []
        for number in range(10):
            with ledger.once(NAME, slot=SLOT + timedelta(seconds=number)) as run:
                won += [number] if run else []
        return won


def test_of_several_processes_one_has_each_run(database: Store) -> None:
    won = in_processes(3, _ask, database.url)
    assert sorted(number for each in won for number in each) == list(range(10))


# -- how a body ends -----------------------------------------------------------------------------


def test_a_body_that_raises_has_failed(database: Store, ledger: Ledger) -> None:
    with pytest.raises(Broken, match="no paper"), ledger.once(NAME, slot=SLOT):
        raise Broken("no paper")
    row = database.row(key())
    assert (row.state, row.error) == (RunState.FAILED, "Broken: no paper")
    with ledger.once(NAME, slot=SLOT) as run:
        assert run is None


def test_what_a_body_writes_is_committed_with_its_end(shop: Shop) -> None:
    with opened(shop.store.url) as ledger:
        with pytest.raises(Broken), ledger.once("rolled back") as run:
            assert run is not None
            with run.transaction() as connection:
                order(connection, "a")
                raise Broken
        with ledger.once("committed") as run:
            assert run is not None
            with run.transaction() as connection:
                order(connection, "b")
        # The run is over where the transaction is: what follows is no part of it.
        with pytest.raises(Broken), ledger.once("after") as run:
            assert run is not None
            with run.transaction() as connection:
                order(connection, "c")
            raise Broken
    assert shop.orders() == ["b", "c"]
    states = {name: shop.store.row(key(None, name)).state for name in ("rolled back", "after")}
    assert states == {"rolled back": RunState.FAILED, "after": RunState.SUCCEEDED}


def test_a_process_that_is_interrupted_leaves_the_run_at_once(
    database: Store, ledger: Ledger
) -> None:
    """To the next one who asks, who need not wait for the end of a lease."""
    for end in (KeyboardInterrupt, SystemExit):
        with pytest.raises(end), ledger.once(NAME, slot=SLOT):
            raise end
        assert database.row(key()).state is RunState.RUNNING
    with ledger.once(NAME, slot=SLOT) as run:
        assert run is not None and (run.attempt, run.fence) == (3, 3)


def test_a_section_in_a_body_lives_as_the_run_does(database: Store, ledger: Ledger) -> None:
    def contend(name: str, then: str) -> None:
        with (
            pytest.raises(LockNotAcquired),
            ledger.once(name),
            critical_section("stock", on_contended=then),
        ):
            raise AssertionError("two at once")

    with ledger.once("first") as run, critical_section("stock") as lock:
        assert run is not None and lock.lease is run.tenure
        # Threads, as the one who is in does not wait for itself.
        in_threads(1, lambda _: contend("second", "retry"))
        in_threads(1, lambda _: contend("third", "skip"))
    assert database.row(key(None, "second")).state is RunState.SCHEDULED
    assert database.row(key(None, "third")).state is RunState.SKIPPED
    with ledger.once("second") as run, critical_section("stock"):
        assert run is not None and run.attempt == 1
    with ledger.once("third") as run:
        assert run is None


# -- what is refused -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def nowhere() -> Iterator[Ledger]:
    """Nothing is asked of it."""
    with opened("postgresql://nobody@127.0.0.1:1/nowhere") as ledger:
        yield ledger


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"key": ""}, "must not be empty"),
        ({"key": None}, "must be a str"),
        ({"key": "a\0b"}, "NUL"),
        ({"key": "a", "slot": SLOT.replace(tzinfo=None)}, "has no time zone"),
        ({"key": "a", "slot": date(2026, 3, 29)}, "must be an aware datetime, not date"),
        ({"key": "a", "slot": "2026-03-29T00:00:00Z"}, "must be an aware datetime, not str"),
    ],
    ids=str,
)
def test_a_key_or_slot_that_is_none_is_refused(
    nowhere: Ledger, arguments: Any, reason: str
) -> None:
    with pytest.raises(InvalidRunKey, match=reason):
        nowhere.once(**arguments)


@pytest.mark.parametrize(
    "terms",
    [
        {"namespace": "a:b"},
        {"lease": 0},
        {"lease": "60"},
        {"max_attempts": 0},
        {"on_crash": "sometimes"},
    ],
    ids=str,
)
def test_impossible_terms_are_refused(nowhere: Ledger, terms: Any) -> None:
    (name,) = terms
    with pytest.raises(ImproperlyConfigured, match=f"{name} of once = .* is not possible"):
        nowhere.once("a", **terms)


def test_a_block_is_no_decorator_and_is_used_by_one(ledger: Ledger) -> None:
    block = ledger.once(NAME)
    assert not callable(block)
    with block, pytest.raises(RuntimeError, match="call once"):
        block.__enter__()
