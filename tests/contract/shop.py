"""Bodies that write where the ledger is, for the tests of transactions.

Owns a business table in the database of a ledger, a look at it past that ledger, and runs as bodies
see them. Must not know what is tested.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from celery import Celery
from sqlalchemy import Column, Connection, MetaData, String, Table, create_engine, delete, select
from sqlalchemy.pool import NullPool

from celery_idem.ending import Transactions
from celery_idem.keys import RunKey
from celery_idem.ledger.sql import SqlLedger
from celery_idem.run import Claim, ClaimOutcome, ClaimRequest, Run, RunState, Tenure
from tests.contract.stores import LONG, Store, fresh

metadata = MetaData()
orders = Table("orders", metadata, Column("name", String(50), primary_key=True))

app = Celery("shop", set_as_current=False)


@app.task(shared=False, name="shop.bill")
def bill() -> None:
    """What transactions take for the task of their body."""


class Broken(Exception):
    """What a body raises."""


@dataclass
class Held:
    """A lease that is trusted as long as a test says so."""

    lost: bool = False
    trusted_for: float = LONG


class Shop:
    """The business side of a store's database."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.engine = create_engine(store.sql.database.url, poolclass=NullPool)
        metadata.create_all(self.engine)
        with self.engine.begin() as connection:
            connection.execute(delete(orders))

    def claimed(
        self,
        ledger: SqlLedger | None = None,
        *,
        idle: float = LONG,
        key: RunKey | None = None,
        lease: str | None = None,
        tenure: Tenure | None = None,
    ) -> Run:
        """A run that was just claimed, through `ledger` or the store's."""
        ledger = ledger or self.store.sql
        request = self.store.request(key or RunKey(fresh("run")), lease=lease)
        return owned(ledger, request, tenure or Held(), idle)

    def orders(self) -> list[str]:
        """What somebody else sees now."""
        with self.engine.connect() as connection:
            return list(connection.execute(select(orders.c.name).order_by("name")).scalars())


def owned(ledger: SqlLedger, request: ClaimRequest, tenure: Tenure, idle: float = LONG) -> Run:
    """The run of a claim, as its body sees it."""
    return run_of(ledger, request, ledger.claim(request), tenure, idle)


def run_of(
    ledger: SqlLedger, request: ClaimRequest, claim: Claim, tenure: Tenure, idle: float = LONG
) -> Run:
    """The same, of a claim that was made; `ledger` is where the body ends it."""
    assert claim.outcome is ClaimOutcome.CLAIMED, claim
    return Run(
        key=request.key,
        task=request.task,
        fence=claim.fence,
        attempt=claim.attempts,
        retries=request.retries,
        tenure=tenure,
        books=Transactions(bill, ledger, idle),
        task_id=request.task_id,
    )


def order(connection: Connection | Any, name: str) -> None:
    """One row more."""
    connection.execute(orders.insert().values(name=name))


def state(shop: Shop, run: Run) -> RunState:
    return shop.store.row(run.key).state


def is_healthy(ledger: SqlLedger, shop: Shop) -> None:
    """What the ledger writes now is there for others at once."""
    for _ in range(3):
        run = shop.claimed(ledger)
        assert state(shop, run) is RunState.RUNNING
        ledger.end(run.key, run.fence, RunState.SUCCEEDED)
        assert state(shop, run) is RunState.SUCCEEDED
