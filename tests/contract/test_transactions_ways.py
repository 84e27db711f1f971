"""The ways to the transaction of a run: ORM sessions, a statement for other drivers, engines."""

from __future__ import annotations

import sqlite3
from typing import Any

import psycopg
import pymysql
import pytest
from sqlalchemy import create_engine, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import DeclarativeBase, Session, sessionmaker

from celery_idem.errors import LeaseLost, ResultLost
from celery_idem.keys import RunKey
from celery_idem.run import Run, RunState
from tests.contract.shop import Broken, Shop, is_healthy, metadata, order, orders, state
from tests.contract.stores import fresh

# -- sessions ------------------------------------------------------------------------------------


class Base(DeclarativeBase):
    metadata = metadata


class Order(Base):
    """A mapped class."""

    __table__ = orders

    def __init__(self, name: str) -> None:
        self.name = name


class OwnSession(Session):
    """A subclass as projects have it."""


FACTORIES: dict[str, Any] = {
    "none": None,
    "class": OwnSession,
    "maker": sessionmaker(class_=OwnSession, autoflush=False, expire_on_commit=False),
    "bound": sessionmaker(
        bind=create_engine("sqlite://"), binds={Order: create_engine("sqlite://")}
    ),
}
OWN = [FACTORIES["class"], FACTORIES["maker"]]
each_factory = pytest.mark.parametrize("factory", FACTORIES.values(), ids=FACTORIES.keys())


@each_factory
def test_a_session(shop: Shop, factory: Any) -> None:
    """Whatever engine it would have used: all is written on the connection of the transaction."""
    run = shop.claimed()
    with run.session(factory) as session:
        assert isinstance(session, OwnSession) is (factory in OWN)
        session.add(Order("a"))
        session.flush()
        session.add(Order("b"))
        assert shop.orders() == []
        assert state(shop, run) is RunState.RUNNING
    assert shop.orders() == ["a", "b"]
    assert state(shop, run) is RunState.SUCCEEDED


@each_factory
def test_a_session_may_commit_and_roll_back(shop: Shop, factory: Any) -> None:
    """It concerns what was done since the last time, and nothing is committed before the end."""
    run = shop.claimed()
    with run.session(factory) as session:
        session.add(Order("a"))
        session.commit()
        assert shop.orders() == []
        session.add(Order("b"))
        session.flush()
        session.rollback()
        session.add(Order("c"))
        session.commit()
        session.add(Order("a"))
        with pytest.raises(DBAPIError):
            session.flush()
        session.rollback()
        names = select(orders.c.name).order_by("name")
        assert session.scalars(names).all() == ["a", "c"]
        session.add(Order("d"))
        assert shop.orders() == []
    assert shop.orders() == ["a", "c", "d"]
    assert state(shop, run) is RunState.SUCCEEDED


@each_factory
def test_an_error_in_a_session_rolls_everything_back(shop: Shop, factory: Any) -> None:
    run = shop.claimed()
    with pytest.raises(Broken), run.session(factory) as session:
        session.add(Order("a"))
        session.commit()
        raise Broken
    with pytest.raises(DBAPIError), run.session(factory) as session:
        session.add_all([Order("a"), Order("a")])
    assert shop.orders() == []
    assert (state(shop, run), run.ended) == (RunState.RUNNING, False)
    is_healthy(shop.store.sql, shop)


def test_a_session_after_a_takeover(shop: Shop) -> None:
    lease = shop.store.lease()
    run = shop.claimed(lease=lease)
    shop.store.ledger.release([lease])
    shop.claimed(key=run.key)
    with pytest.raises(LeaseLost), run.session() as session:
        session.add(Order("late"))
        session.commit()
    assert shop.orders() == []


# -- a statement for another connection ----------------------------------------------------------


def connect(shop: Shop) -> Any:
    """A connection as a project's own code opens it."""
    url = shop.store.sql.database.url
    if shop.store.name == "sqlite":
        return sqlite3.connect(str(url.database))
    given: dict[str, Any] = {
        "host": url.host,
        "port": url.port,
        "user": url.username,
        "password": url.password,
    }
    if shop.store.name == "postgres":
        return psycopg.connect(dbname=url.database, **{k: v for k, v in given.items() if v})
    given["password"] = given["password"] or ""
    return pymysql.connect(database=url.database, **given)


class Django:
    """Django's cursor takes ``%s`` on every database; on SQLite it makes question marks of them."""

    def __init__(self, cursor: Any, convert: bool) -> None:
        self._cursor, self._convert = cursor, convert

    def execute(self, statement: str, parameters: Any) -> int:
        if self._convert:
            statement = statement % (("?",) * len(parameters))
        self._cursor.execute(statement, parameters)
        return int(self._cursor.rowcount)


def ended_by(shop: Shop, run: Run, style: str, names: list[str]) -> int:
    """A transaction of the project's own; returns the rows that the statement has changed."""
    connection = connect(shop)
    mark = "?" if style == "qmark" else "%s"
    try:
        cursor: Any = connection.cursor()
        execute = cursor.execute
        if style == "format":
            execute = Django(cursor, shop.store.name == "sqlite").execute
        for name in names:
            execute(f"INSERT INTO orders VALUES ({mark})", (name,))
        execute(*run.finish_statement(style))
        changed = int(cursor.rowcount)
        assert not set(names) & set(shop.orders())
        assert state(shop, run) is RunState.RUNNING
        if changed:
            connection.commit()
        else:
            connection.rollback()
        return changed
    finally:
        connection.close()


def styles(shop: Shop) -> list[str]:
    return ["format", "qmark"] if shop.store.name == "sqlite" else ["format"]


def test_a_statement_ends_the_run_on_any_connection(shop: Shop) -> None:
    for style in styles(shop):
        run = shop.claimed(key=RunKey(f"shop:{fresh('50%')}"))
        names = [f"{style}1", f"{style}2"]
        before = shop.orders()
        assert ended_by(shop, run, style, names) == 1
        assert shop.orders() == sorted([*before, *names])
        row = shop.store.row(run.key)
        assert (row.state, row.error) == (RunState.SUCCEEDED, None)
        assert row.started_at is not None and row.finished_at is not None
        assert row.finished_at >= row.started_at
        # The body's own end finds it as it is to be.
        shop.store.ledger.end(run.key, run.fence, RunState.SUCCEEDED)
        with pytest.raises(ResultLost):
            shop.store.ledger.end(run.key, run.fence, RunState.FAILED)


def test_a_statement_of_a_former_owner_changes_nothing(shop: Shop) -> None:
    for style in styles(shop):
        lease = shop.store.lease()
        run = shop.claimed(lease=lease)
        shop.store.ledger.release([lease])
        shop.claimed(key=run.key)
        assert ended_by(shop, run, style, ["late"]) == 0
        assert shop.orders() == []
        assert state(shop, run) is RunState.RUNNING


def test_the_default_style_is_that_of_most_drivers(shop: Shop) -> None:
    run = shop.claimed()
    assert run.finish_statement() == run.finish_statement("format")
    with pytest.raises(ValueError, match="'percent' is none of format, "):
        run.finish_statement("percent")


def test_a_transaction_after_the_statement(shop: Shop) -> None:
    """Too late: the run has ended, and what the second one wrote is not kept."""
    run = shop.claimed()
    ended_by(shop, run, "qmark" if shop.store.name == "sqlite" else "format", ["a"])
    with pytest.raises(ResultLost), run.transaction() as connection:
        order(connection, "b")
    assert shop.orders() == ["a"]
    assert run.ended
