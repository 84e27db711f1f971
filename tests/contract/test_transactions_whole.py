"""A transaction of a body that is ended by somebody else, by a time limit, or by standing still."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from celery.exceptions import SoftTimeLimitExceeded
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from celery_idem.errors import LedgerError
from celery_idem.run import RunState
from tests.contract.shop import Shop, is_healthy, order, state
from tests.contract.stores import fresh, wait_until
from tests.contract.test_faults import Operator

# -- a transaction that is ended by somebody else ------------------------------------------------


def ends_by_commit(connection: Any) -> None:
    connection.commit()


def ends_by_rollback(connection: Any) -> None:
    connection.rollback()


def ends_its_transaction(connection: Any) -> None:
    connection.get_transaction().commit()


@pytest.mark.parametrize("end", [ends_by_commit, ends_by_rollback, ends_its_transaction])
@pytest.mark.parametrize("swallowed", [False, True], ids=["raised", "swallowed"])
def test_a_body_that_ends_the_transaction_is_told(
    shop: Shop, end: Callable[[Any], None], swallowed: bool
) -> None:
    run = shop.claimed()
    with (
        pytest.raises((LedgerError, SQLAlchemyError)) as caught,
        run.transaction() as connection,
    ):
        order(connection, "a")
        if swallowed:
            with pytest.raises(LedgerError):
                end(connection)
                order(connection, "b")
        else:
            end(connection)
            order(connection, "b")
    if not swallowed:
        assert isinstance(caught.value, LedgerError)
        assert f"the transaction of run {run.key} did not stay whole" in str(caught.value)
        assert "leave COMMIT and ROLLBACK to the block" in str(caught.value)
    assert shop.orders() == []
    assert (state(shop, run), run.ended) == (RunState.RUNNING, False)
    is_healthy(shop.store.sql, shop)


def commits_as_text(connection: Any) -> None:
    connection.exec_driver_sql("COMMIT")


def commits_past_sqlalchemy(connection: Any) -> None:
    connection.connection.dbapi_connection.commit()


@pytest.mark.parametrize("commit", [commits_as_text, commits_past_sqlalchemy])
def test_a_commit_that_cannot_be_refused_is_noticed(
    shop: Shop, commit: Callable[[Any], None]
) -> None:
    run = shop.claimed()
    with (
        pytest.raises(LedgerError, match="did not stay whole") as caught,
        run.transaction() as connection,
    ):
        order(connection, "a")
        commit(connection)
        order(connection, "b")
    assert "celery_idem" in str(caught.value)  # The name of the savepoint.
    # What it has committed itself cannot be taken back; but the run has not succeeded by it.
    assert shop.orders() == ["a"]
    assert (state(shop, run), run.ended) == (RunState.RUNNING, False)
    is_healthy(shop.store.sql, shop)


@pytest.fixture
def mariadb_shop(stores: Any) -> Shop:
    return Shop(stores.get("mariadb"))


def test_mariadb_commits_before_it_makes_a_table(mariadb_shop: Shop) -> None:
    run = mariadb_shop.claimed()
    with pytest.raises(LedgerError, match="did not stay whole"), run.transaction() as connection:
        order(connection, "a")
        connection.exec_driver_sql(f"CREATE TABLE {fresh('t').replace('-', '_')} (n int)")
        order(connection, "b")
    assert mariadb_shop.orders() == ["a"]
    assert state(mariadb_shop, run) is RunState.RUNNING


def test_mariadb_rolls_everything_back_in_a_deadlock(mariadb_shop: Shop) -> None:
    """A body that goes on after it would keep half of what it wrote."""
    shop, run = mariadb_shop, mariadb_shop.claimed()
    with (
        pytest.raises(LedgerError, match="did not stay whole"),
        run.transaction() as connection,
        shop.engine.connect() as other,
        ThreadPoolExecutor(1) as pool,
    ):
        for n in range(50):
            order(other, f"heavy{n}")
        order(connection, "a")
        order(other, "b")
        future = pool.submit(order, other, "a")
        wait_until(Operator(shop.store).is_waited_for)
        with pytest.raises(DBAPIError, match="Deadlock"):
            order(connection, "b")
        future.result(60)
        other.rollback()
        order(connection, "c")
    assert shop.orders() == []
    assert state(shop, run) is RunState.RUNNING


def test_a_part_may_fail_in_a_savepoint(shop: Shop) -> None:
    run = shop.claimed()
    with run.transaction() as connection:
        order(connection, "a")
        with pytest.raises(DBAPIError), connection.begin_nested():
            order(connection, "b")
            order(connection, "a")
        with connection.begin_nested():
            order(connection, "c")
    assert shop.orders() == ["a", "c"]
    assert state(shop, run) is RunState.SUCCEEDED


def test_one_transaction_at_a_time(shop: Shop) -> None:
    run = shop.claimed()
    with run.transaction() as connection:
        order(connection, "a")
        with pytest.raises(LedgerError, match="has a transaction already"), run.transaction():
            raise AssertionError
    assert shop.orders() == ["a"]


def test_on_sqlite_the_ledger_says_who_keeps_it_locked(stores: Any) -> None:
    """Instead of waiting for itself."""
    shop = Shop(stores.get("sqlite"))
    run = shop.claimed()
    with run.transaction() as connection:
        order(connection, "a")
        with pytest.raises(LedgerError, match=r"locked by this very thread .leave the block"):
            shop.store.ledger.end(run.key, run.fence, RunState.FAILED)
    assert shop.orders() == ["a"]
    is_healthy(shop.store.sql, shop)


# -- time limits ---------------------------------------------------------------------------------


def test_a_time_limit_in_the_block_rolls_everything_back(shop: Shop) -> None:
    run = shop.claimed()
    with pytest.raises(SoftTimeLimitExceeded), run.transaction() as connection:
        order(connection, "a")
        raise SoftTimeLimitExceeded
    assert shop.orders() == []
    assert (state(shop, run), run.ended) == (RunState.RUNNING, False)
    is_healthy(shop.store.sql, shop)


@pytest.mark.parametrize("committed", [False, True], ids=["before", "after"])
def test_a_time_limit_during_the_commit_is_no_doubt(
    shop: Shop, committed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is raised between any two steps of Python: here right before, or after, the COMMIT."""
    run = shop.claimed()
    dialect = type(shop.store.sql.database.engine.dialect)
    commit = dialect.do_commit

    def interrupted(self: Any, connection: Any) -> None:
        monkeypatch.undo()
        if committed:
            commit(self, connection)
        raise SoftTimeLimitExceeded

    def body() -> None:
        with run.transaction() as connection:
            order(connection, "a")
            monkeypatch.setattr(dialect, "do_commit", interrupted)

    if committed:
        body()
        assert (shop.orders(), state(shop, run)) == (["a"], RunState.SUCCEEDED)
    else:
        with pytest.raises(SoftTimeLimitExceeded):
            body()
        assert (shop.orders(), state(shop, run)) == ([], RunState.RUNNING)
    assert run.ended is committed
    is_healthy(shop.store.sql, shop)


def test_a_time_limit_after_the_commit_is_too_late(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the connection goes back to its pool."""
    run = shop.claimed()
    dialect = type(shop.store.sql.database.engine.dialect)

    def interrupted(self: Any, connection: Any, level: Any) -> None:
        monkeypatch.undo()
        raise SoftTimeLimitExceeded

    with run.transaction() as connection:
        order(connection, "a")
        monkeypatch.setattr(dialect, "set_isolation_level", interrupted)
    assert (shop.orders(), state(shop, run)) == (["a"], RunState.SUCCEEDED)
    assert run.ended
    is_healthy(shop.store.sql, shop)


# -- a transaction that stands still -------------------------------------------------------------


def test_a_transaction_that_stands_still_is_ended(server_shop: Shop) -> None:
    """What it has locked is freed, so that a successor can go on."""
    shop = server_shop
    run = shop.claimed(idle=1.0)
    with pytest.raises(DBAPIError) as caught, run.transaction() as connection:
        order(connection, "a")
        with shop.engine.begin() as other:
            order(other, "a")  # Waits for the row.
        order(connection, "b")
    assert caught.value.connection_invalidated
    assert shop.orders() == ["a"]
    assert (state(shop, run), run.ended) == (RunState.RUNNING, False)
    is_healthy(shop.store.sql, shop)
