"""The connections of a ledger after transactions of bodies, with any engine; and its schema."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from celery.exceptions import SoftTimeLimitExceeded
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from celery_idem.errors import ResultLost
from celery_idem.keys import RunKey
from celery_idem.ledger.sql import SqlLedger
from celery_idem.run import RunState
from tests.contract.shop import Broken, Shop, is_healthy, order, state
from tests.contract.stores import Store, fresh

pytestmark = pytest.mark.slow

OPTIONS: dict[str, dict[str, Any]] = {
    "small": {"pool_size": 1, "max_overflow": 0, "pool_timeout": 5},
    "none": {"poolclass": NullPool},
    "pinged": {"pool_pre_ping": True},
    "reset": {"pool_reset_on_return": "rollback"},
}


@pytest.fixture(params=list(OPTIONS.values()), ids=list(OPTIONS))
def tuned(request: pytest.FixtureRequest, shop: Shop) -> Iterator[SqlLedger]:
    """A ledger with options of the engine as users set them."""
    ledger = SqlLedger(shop.store.url, engine_options=request.param)
    yield ledger
    ledger.close()


@pytest.mark.sample("postgres-*", "sqlite-*")
def test_the_pool_is_as_before(shop: Shop, tuned: SqlLedger) -> None:
    """After each way in which a transaction ends, with any pool."""
    for number in range(3):
        with shop.claimed(tuned).transaction() as connection:
            order(connection, f"a{number}")
        is_healthy(tuned, shop)
        for error in (Broken, SoftTimeLimitExceeded, KeyboardInterrupt):
            with pytest.raises(error), shop.claimed(tuned).transaction() as connection:
                order(connection, "b")
                raise error
            is_healthy(tuned, shop)
        with pytest.raises(DBAPIError), shop.claimed(tuned).transaction() as connection:
            order(connection, "a0")
        is_healthy(tuned, shop)
        lost = shop.claimed(tuned)
        tuned.end(lost.key, lost.fence, RunState.SUCCEEDED)
        with pytest.raises(ResultLost), lost.transaction() as connection:
            order(connection, "c")
        is_healthy(tuned, shop)
    assert shop.orders() == ["a0", "a1", "a2"]


# -- somewhere else in the database --------------------------------------------------------------


def test_the_ledger_may_be_in_a_schema_of_its_own(postgres: Store) -> None:
    """The names of the body's tables are not touched."""
    shop = Shop(postgres)
    schema = fresh("ledger").replace("-", "_")
    with shop.engine.begin() as connection:
        connection.exec_driver_sql(f"CREATE SCHEMA {schema}")
    ledger = SqlLedger(postgres.url, schema=schema)
    lease = fresh("lease")
    run = shop.claimed(ledger, lease=lease)
    with run.transaction() as connection:
        order(connection, "a")
    with shop.claimed(ledger, lease=lease).session() as session:
        order(session, "b")
    assert shop.orders() == ["a", "b"]
    row = ledger.read(run.key)
    assert row is not None and row.state is RunState.SUCCEEDED
    assert postgres.ledger.read(run.key) is None
    other = shop.claimed(ledger, lease=lease)
    statement, parameters = other.finish_statement()
    assert f"{schema}." in statement
    with shop.engine.begin() as connection:
        assert connection.exec_driver_sql(statement, parameters).rowcount == 1
    row = ledger.read(other.key)
    assert row is not None and row.state is RunState.SUCCEEDED
    ledger.close()


def test_a_key_of_any_text(shop: Shop) -> None:
    run = shop.claimed(key=RunKey(f"shop:{fresh('50%s')}:Ärger 'x' ?%"))
    with run.transaction() as connection:
        order(connection, "a")
    assert state(shop, run) is RunState.SUCCEEDED
