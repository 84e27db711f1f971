"""What a body writes in the transaction of its run, and the run's end: together or not at all."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, IntegrityError

from celery_idem.errors import LeaseLost, LedgerError
from celery_idem.ledger.sql import SqlLedger
from celery_idem.run import ClaimOutcome, Run, RunState
from tests.contract.shop import Broken, Held, Shop, is_healthy, order, state
from tests.contract.stores import LONG, Store, fresh, wait_until

#: Seconds.
PATIENCE = 30.0

LEVELS = ["READ UNCOMMITTED", "READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"]

each_level = pytest.mark.parametrize("level", LEVELS)


# -- together, or not at all ---------------------------------------------------------------------


def test_rows_and_end_become_visible_together(shop: Shop) -> None:
    run = shop.claimed()
    with run.transaction() as connection:
        order(connection, "a")
        order(connection, "b")
        assert shop.orders() == []
        assert state(shop, run) is RunState.RUNNING
    assert shop.orders() == ["a", "b"]
    row = shop.store.row(run.key)
    assert (row.state, row.fence, row.error) == (RunState.SUCCEEDED, 1, None)
    assert row.finished_at is not None
    assert run.ended
    with pytest.raises(LeaseLost, match="its claim has ended"):
        run.transaction()


def test_an_error_of_the_body_rolls_everything_back(shop: Shop) -> None:
    run = shop.claimed()
    with pytest.raises(Broken), run.transaction() as connection:
        order(connection, "a")
        raise Broken
    assert shop.orders() == []
    assert state(shop, run) is RunState.RUNNING
    # It is still owned, and the block may be tried again.
    with run.transaction() as connection:
        order(connection, "a")
    assert shop.orders() == ["a"]
    assert state(shop, run) is RunState.SUCCEEDED


def test_a_statement_that_fails_rolls_everything_back(shop: Shop) -> None:
    run = shop.claimed()
    with pytest.raises(DBAPIError), run.transaction() as connection:
        order(connection, "a")
        order(connection, "a")
    assert shop.orders() == []
    assert state(shop, run) is RunState.RUNNING
    is_healthy(shop.store.sql, shop)


def test_a_commit_that_fails_rolls_everything_back(postgres: Store) -> None:
    """Some constraints are looked at no earlier."""
    shop = Shop(postgres)
    with shop.engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE IF EXISTS late")
        connection.exec_driver_sql("CREATE TABLE late (n int UNIQUE DEFERRABLE INITIALLY DEFERRED)")
    run = shop.claimed()
    with pytest.raises(IntegrityError), run.transaction() as connection:
        order(connection, "a")
        connection.exec_driver_sql("INSERT INTO late VALUES (1), (1)")
    assert shop.orders() == []
    assert (state(shop, run), run.ended) == (RunState.RUNNING, False)
    is_healthy(postgres.sql, shop)


def test_after_a_takeover_everything_is_rolled_back(shop: Shop) -> None:
    lease = shop.store.lease()
    run = shop.claimed(lease=lease)
    shop.store.ledger.release([lease])
    successor = shop.claimed(key=run.key)
    with pytest.raises(LeaseLost) as caught, run.transaction() as connection:
        order(connection, "late")
    assert (caught.value.key, caught.value.fence) == (run.key.text, 1)
    assert shop.orders() == []
    row = shop.store.row(run.key)
    assert (row.state, row.fence) == (RunState.RUNNING, 2)
    with successor.transaction() as connection:
        order(connection, "in time")
    assert shop.orders() == ["in time"]
    is_healthy(shop.store.sql, shop)


@each_level
def test_a_takeover_in_the_midst_of_the_block(server_shop: Shop, level: str) -> None:
    """Where the database keeps the block's view of the past, it refuses the end by an error."""
    shop, lease = server_shop, server_shop.store.lease()
    run = shop.claimed(lease=lease)
    with (
        pytest.raises((LeaseLost, DBAPIError)),
        run.transaction(isolation_level=level) as connection,
    ):
        order(connection, "late")
        shop.store.ledger.release([lease])
        successor = shop.claimed(key=run.key)
    assert shop.orders() == []
    assert not run.ended
    row = shop.store.row(run.key)
    assert (row.state, row.fence) == (RunState.RUNNING, 2)
    with successor.transaction(isolation_level=level) as connection:
        order(connection, "in time")
    assert shop.orders() == ["in time"]


def test_nothing_is_begun_without_trust(shop: Shop) -> None:
    run = shop.claimed(tenure=Held(trusted_for=0.0))
    for begin in (run.transaction, run.session, run.finish_statement):
        with pytest.raises(LeaseLost, match="not renewed in time"):
            begin()


def test_a_ledger_in_memory_refuses(stores: Any) -> None:
    store: Store = stores.get("memory")
    key, claim = store.owned()
    refused: list[Callable[[], object]] = [
        lambda: store.ledger.transaction(key, claim.fence, isolation_level=None, idle=1.0),
        lambda: store.ledger.session(None, None),
        lambda: store.ledger.finish_statement(key, claim.fence, "format"),
    ]
    for refuse in refused:
        with pytest.raises(LedgerError, match=r"in memory has no .* a database"):
            refuse()


# -- isolation, copies and heartbeats meanwhile --------------------------------------------------

LEVEL = {
    "postgresql": "SELECT upper(current_setting('transaction_isolation'))",
    "mysql": "SELECT trx_isolation_level FROM information_schema.innodb_trx"
    " WHERE trx_mysql_thread_id = connection_id()",
}


def level_of(connection: Any) -> Any:
    """What the server has for the transaction."""
    query = text(LEVEL[connection.dialect.name])
    found = connection.execute(query).scalar()
    deadline = time.monotonic() + PATIENCE
    while found is None and time.monotonic() < deadline:
        # MariaDB's view is made anew only after nobody has read it for 0.1 s; and not at all, if
        # two tests that run at once read it by turns, each as often as the other.
        connection.exec_driver_sql(f"DO SLEEP({random.uniform(0.11, 1.0)})")
        found = connection.execute(query).scalar()
    return found


class Meanwhile:
    """Copies of a run's message that arrive again and again, and a heartbeat."""

    def __init__(self, shop: Shop, run: Run, lease: str) -> None:
        self.outcomes: list[ClaimOutcome] = []
        self.renewed = 0
        self._shop, self._run, self._lease = shop, run, lease
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(3)

    def __enter__(self) -> Meanwhile:
        self._futures = [self._pool.submit(work) for work in (self._copy, self._copy, self._renew)]
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for future in self._futures:
            future.result(60)
        self._pool.shutdown()

    def _copy(self) -> None:
        while not self._stop.is_set():
            claim = self._shop.store.claim(self._run.key)
            assert claim.outcome is not ClaimOutcome.CLAIMED
            self.outcomes.append(claim.outcome)

    def _renew(self) -> None:
        while not self._stop.is_set():
            assert self._shop.store.ledger.renew([self._lease], LONG) == {self._lease}
            self.renewed += 1

    def go_on(self) -> None:
        """Return when each has happened once more, and more."""
        copies, renewed = len(self.outcomes), self.renewed
        wait_until(lambda: len(self.outcomes) > copies + 5 and self.renewed > renewed + 2)


@each_level
def test_copies_and_heartbeats_go_on_meanwhile(server_shop: Shop, level: str) -> None:
    shop, lease = server_shop, server_shop.store.lease()
    run = shop.claimed(lease=lease)
    with Meanwhile(shop, run, lease) as meanwhile:
        meanwhile.go_on()
        with run.transaction(isolation_level=level) as connection:
            order(connection, "a")
            assert level_of(connection) == level
            meanwhile.go_on()
            assert set(meanwhile.outcomes) == {ClaimOutcome.RUNNING}
        assert state(shop, run) is RunState.SUCCEEDED
        meanwhile.go_on()
    assert set(meanwhile.outcomes) == {ClaimOutcome.RUNNING, ClaimOutcome.FINISHED}
    assert shop.orders() == ["a"]
    assert shop.store.row(run.key).fence == 1


def test_on_sqlite_others_wait_meanwhile(stores: Any) -> None:
    shop = Shop(stores.get("sqlite"))
    lease = shop.store.lease()
    run = shop.claimed(lease=lease)
    with Meanwhile(shop, run, lease) as meanwhile:
        meanwhile.go_on()
        for name in ("a", "b"):
            with pytest.raises(Broken), run.transaction() as connection:
                order(connection, name)
                raise Broken
            meanwhile.go_on()
        assert set(meanwhile.outcomes) == {ClaimOutcome.RUNNING}
        with run.transaction() as connection:
            order(connection, "c")
        meanwhile.go_on()
    assert shop.orders() == ["c"]


@each_level
def test_the_level_is_that_of_one_transaction(server: Store, level: str) -> None:
    """A claim that read what is not committed would take a run for ended that is not."""
    shop = Shop(server)
    ledger = SqlLedger(server.url, engine_options={"pool_size": 1, "max_overflow": 0})
    with ledger.database.engine.connect() as connection:
        before = session_of(connection)
    for _ in range(2):
        with shop.claimed(ledger).transaction(isolation_level=level):
            pass
        with ledger.database.engine.connect() as connection:
            assert session_of(connection) == before
        with shop.claimed(ledger).transaction() as connection:
            order(connection, fresh("order"))
            assert level_of(connection) == connection.dialect.default_isolation_level
    is_healthy(ledger, shop)
    ledger.close()


def session_of(connection: Any) -> list[Any]:
    """What a session of the pool is set to."""
    if connection.dialect.name == "postgresql":
        driver = connection.connection.dbapi_connection
        return [driver.autocommit, driver.isolation_level]
    level = "tx_isolation" if connection.dialect.is_mariadb else "transaction_isolation"
    return list(connection.execute(text(f"SELECT @@autocommit, @@{level}")).one())


@pytest.mark.parametrize("level", ["AUTOCOMMIT", "autocommit", "SNAPSHOT"])
def test_what_is_no_level_of_a_transaction_is_refused(server_shop: Shop, level: str) -> None:
    run = server_shop.claimed()
    with (
        pytest.raises(LedgerError, match=f"'{level}' is none of .*READ COMMITTED"),
        run.transaction(isolation_level=level),
    ):
        raise AssertionError
    assert not run.ended
    is_healthy(server_shop.store.sql, server_shop)
