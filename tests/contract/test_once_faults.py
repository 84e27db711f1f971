"""One execution outside of Celery, where processes die and databases are away."""

from __future__ import annotations

import logging
import multiprocessing
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.pool import NullPool

from celery_idem import (
    LeaseLost,
    Ledger,
    LedgerUnavailable,
    Run,
    RunState,
    signals,
)
from tests.contract.outside import NAME, SLOT, begun, key, left, opened
from tests.contract.shop import Broken, Shop, order
from tests.contract.stores import Store, wait_until
from tests.contract.together import in_threads
from tests.proxy import Proxy

pytestmark = pytest.mark.slow

#: Seconds: short to wait for, and longer than a claim takes on a busy machine.
BRIEF = 3


@pytest.fixture
def ledger(database: Store) -> Iterator[Ledger]:
    """This process's own, on each kind of database."""
    with opened(database.url) as ledger:
        yield ledger


# -- an owner that is gone -----------------------------------------------------------------------


def test_the_run_of_a_dead_process_goes_on_elsewhere(database: Store, ledger: Ledger) -> None:
    left(database, key())
    with ledger.once(NAME, slot=SLOT) as run:
        assert run is not None and (run.attempt, run.fence) == (2, 2)
    assert database.row(key()).state is RunState.SUCCEEDED
    assert [line.kind for line in ledger.history(key())] == ["takeover"]


def test_a_run_is_its_owners_as_long_as_the_lease_holds(database: Store, ledger: Ledger) -> None:
    begun(database, key(), lease=database.lease(60))
    with ledger.once(NAME, slot=SLOT) as run:
        assert run is None
    database.let_pass(61)
    with ledger.once(NAME, slot=SLOT) as run:
        assert run is not None and run.attempt == 2


@pytest.mark.parametrize("terms", [{"max_attempts": 2}, {"on_crash": "abandon"}], ids=str)
def test_a_run_may_be_given_up(
    database: Store, ledger: Ledger, caplog: pytest.LogCaptureFixture, terms: Any
) -> None:
    told: list[str] = []

    def tell(sender: Any, reason: str, **_: Any) -> None:
        told.append(f"{sender.name}: {reason}")

    signals.run_dead.connect(tell)
    left(database, key())
    if "max_attempts" in terms:
        left(database, key())
    for _ in range(2):
        with ledger.once(NAME, slot=SLOT, **terms) as run:
            assert run is None
    signals.run_dead.disconnect(tell)
    row = database.row(key())
    assert row.state is RunState.DEAD
    assert told == [f"{NAME}: {row.error}"]
    assert [r.levelno for r in caplog.records if "is given up" in r.message] == [logging.ERROR]


def _taken_over(database: Store, run: Run | None) -> None:
    assert run is not None
    lease: Any = run.tenure
    database.ledger.release([lease.id])
    begun(database, run.key, lease=database.lease())


def test_the_end_of_a_late_owner_is_refused(database: Store, ledger: Ledger) -> None:
    with (
        pytest.raises(LeaseLost, match="the ledger has it running at fence 2"),
        ledger.once(NAME, slot=SLOT) as run,
    ):
        _taken_over(database, run)
    with pytest.raises(Broken), ledger.once("other", slot=SLOT) as run:
        _taken_over(database, run)
        raise Broken
    for name in (NAME, "other"):
        row = database.row(key(SLOT, name))
        assert (row.state, row.fence) == (RunState.RUNNING, 2)
        assert [line.kind for line in ledger.history(row.key)] == ["refused"]


def test_rows_of_a_late_owner_are_rolled_back(shop: Shop) -> None:
    with (
        opened(shop.store.url) as ledger,
        pytest.raises(LeaseLost),
        ledger.once(NAME, slot=SLOT) as run,
    ):
        _taken_over(shop.store, run)
        assert run is not None
        with run.transaction() as connection:
            order(connection, "late")
    assert shop.orders() == []
    assert shop.store.row(key()).fence == 2


def test_a_body_that_knows_that_its_lease_ended_has_not_failed(
    database: Store, ledger: Ledger
) -> None:
    with (
        pytest.raises(LeaseLost, match="not renewed in time"),
        ledger.once(NAME, slot=SLOT) as run,
    ):
        assert run is not None
        lease: Any = run.tenure
        lease.lost = True
        run.check()
    assert database.row(key()).state is RunState.RUNNING


# -- the database, and the process ---------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["postgresql", "mariadb"])
def test_without_a_database_no_body_runs(scheme: str) -> None:
    with (
        opened(f"{scheme}://nobody@127.0.0.1:1/nowhere") as ledger,
        pytest.raises(LedgerUnavailable),
        ledger.once(NAME),
    ):
        raise AssertionError("unclaimed")


def test_an_end_waits_for_the_database(postgres: Store, caplog: pytest.LogCaptureFixture) -> None:
    with Proxy.before(postgres.url) as proxy, opened(proxy.url(postgres.url)) as ledger:

        def mend(_: int) -> None:
            wait_until(lambda: "has ended, which is not recorded yet" in caplog.text)
            proxy.mend()

        def work(_: int) -> None:
            with ledger.once(NAME, slot=SLOT):
                proxy.cut()

        in_threads(2, lambda number: (work, mend)[number](number))
    assert postgres.row(key()).state is RunState.SUCCEEDED


def test_a_ledger_that_is_closed_leaves_no_lease(database: Store) -> None:
    with opened(database.url) as ledger:
        with ledger.once(NAME), ledger.once("other", lease=5) as run:
            assert run is not None
        assert database.ledger.lease_counts()["once"].live == 2
    assert "once" not in database.ledger.lease_counts()
    with ledger.once("open again") as run:
        assert run is not None
    ledger.close()


def test_a_ledger_that_is_forgotten_renews_nothing(database: Store) -> None:
    """Its thread ends, and its lease by itself."""
    # Without connections that would be open until they are collected.
    options = {"poolclass": NullPool}
    with Ledger.from_url(database.url, engine_options=options).once(NAME, lease=BRIEF) as run:
        assert run is not None
    wait_until(lambda: database.ledger.lease_counts()["once"].expired == 1)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_goes_on_by_itself(database: Store) -> None:
    """It has nothing of its parent's leases, and what the parent has is not touched by it."""
    with opened(database.url) as ledger, ledger.once(NAME) as run:
        assert run is not None
        child = multiprocessing.get_context("fork").Process(target=_in_child, args=(ledger,))
        child.start()
        child.join(60)
        assert child.exitcode == 0
        run.check()
    assert database.row(key(None)).state is RunState.SUCCEEDED
    assert database.row(key(None, "child")).state is RunState.SUCCEEDED


def _in_child(ledger: Ledger) -> None:
    with ledger.once(NAME) as parents, ledger.once("child") as run:
        assert parents is None and run is not None
    ledger.close()


def test_leases_of_dead_processes_are_buried_by_new_ones(database: Store) -> None:
    """Where no beat does it."""
    dead, living = database.lease(60), database.lease()
    database.let_pass(61)
    with opened(database.url) as ledger, ledger.once(NAME):
        assert ledger.renew([dead, living], 60) == {living}
        assert [its.expired for its in ledger.lease_counts().values()] == [0, 0]


def test_leases_are_renewed_while_a_body_takes_its_time(database: Store, ledger: Ledger) -> None:
    query = text("SELECT expires_at FROM celery_idem_leases")
    with ledger.once(NAME, lease=BRIEF) as run:
        assert run is not None
        first = database.sql._run(query).rows[0][0]
        wait_until(lambda: bool(database.sql._run(query).rows[0][0] > first))
        run.check()
