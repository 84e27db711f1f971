"""The tables: made once by many, of the version of the code, and the same as a project's own."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, Engine, MetaData, create_engine, inspect, text
from sqlalchemy.pool import NullPool

from celery_idem.errors import LedgerError, LedgerVersionMismatch
from celery_idem.keys import RunKey
from celery_idem.ledger import emission
from celery_idem.ledger.compiled import compile_statement
from celery_idem.ledger.database import Database
from celery_idem.ledger.migrations import HEAD, upgrade, version
from celery_idem.ledger.schema import metadata
from celery_idem.ledger.sql import SqlLedger
from celery_idem.run import RunState
from tests.contract.stores import Store
from tests.contract.together import in_processes

VERSION = "celery_idem_version"
BIND = re.compile(r"%\((\w+)\)s")


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    """Somebody else's connection to an empty database."""
    made = create_engine(Database(database_url).url, poolclass=NullPool)
    yield made
    made.dispose()


def tables(engine: Engine) -> set[str]:
    return set(inspect(engine).get_table_names())


def differences(engine: Engine, wanted: MetaData = metadata) -> list[Any]:
    """What Alembic would change, to make the database look like `wanted`."""
    with engine.connect() as connection:
        options = {
            "compare_type": True,
            "include_name": lambda name, kind, parents: kind != "table" or name != VERSION,
        }
        context = MigrationContext.configure(connection, opts=options)
        return list(compare_metadata(context, wanted))


def use(store: Store) -> None:
    """Use every table."""
    key, claim = store.owned()
    store.ledger.record("duplicate", key)
    store.ledger.record_tasks("shop", ["shop.bill"])
    store.ledger.activate("shop", [("daily", "f1")])
    store.ledger.pause("shop", "daily")
    store.ledger.end(key, claim.fence, RunState.SUCCEEDED)


def test_the_first_statement_makes_the_tables(database_url: str, engine: Engine) -> None:
    ledger = SqlLedger(database_url)
    assert tables(engine) == set()
    assert ledger.read(RunKey("shop:daily")) is None
    assert tables(engine) == {*metadata.tables, VERSION}
    assert version(ledger.database) == HEAD
    use(Store("new", ledger))
    ledger.close()


def test_the_migrations_make_the_tables_of_the_metadata(database_url: str, engine: Engine) -> None:
    upgrade(Database(database_url))
    assert differences(engine) == []


def test_upgrading_twice_changes_nothing(database_url: str, engine: Engine) -> None:
    for _ in range(2):
        upgrade(Database(database_url))
    assert differences(engine) == []


def test_statements_after_an_upgrade_commit_by_themselves(
    database_url: str, engine: Engine
) -> None:
    """A connection that was in a migration's transaction must not come back."""
    ledger = SqlLedger(database_url)
    for kind in ("duplicate", "refused"):
        ledger.record(kind, RunKey("shop:daily"))
        with engine.connect() as connection:
            kinds = connection.execute(text("SELECT kind FROM celery_idem_history")).scalars()
            assert kind in set(kinds)
        upgrade(ledger.database)
    ledger.close()


def _partial(connection: Connection) -> dict[str, str | None]:
    """The conditions of the indexes, as the database has them."""
    rows = connection.execute(
        text(
            "SELECT indexname, pg_get_expr(indpred, indrelid) FROM pg_indexes"
            " JOIN pg_index ON indexrelid = indexname::regclass"
            " WHERE tablename LIKE 'celery_idem_%'"
        )
    )
    return {name: condition for name, condition in rows}


def test_indexes_are_partial_alike(postgres_url: str) -> None:
    """Alembic does not compare conditions."""
    engine = create_engine(Database(postgres_url).url, poolclass=NullPool)
    with engine.begin() as connection:
        metadata.create_all(connection)
        by_metadata = _partial(connection)
        metadata.drop_all(connection)
    upgrade(Database(postgres_url))
    with engine.begin() as connection:
        by_migrations = _partial(connection)
    del by_migrations[f"{VERSION}_pkc"]
    assert by_migrations == by_metadata
    assert sorted(name for name, condition in by_metadata.items() if condition) == [
        "celery_idem_runs_due",
        "celery_idem_runs_pending",
        "celery_idem_runs_running",
    ]


def test_a_due_run_is_found_through_the_partial_index(postgres: Store) -> None:
    """Also by a prepared statement, whose plan is made without its values."""
    compiled = compile_statement(emission._DUE, postgres.sql.database.engine.dialect, None)
    names = {name: f"${n}" for n, name in enumerate(dict.fromkeys(BIND.findall(compiled.text)), 1)}
    body = BIND.sub(lambda found: names[found[1]], compiled.text)
    engine = create_engine(postgres.sql.database.url, poolclass=NullPool)
    with engine.connect() as connection:
        for statement in (
            "SET enable_seqscan = off",
            "SET plan_cache_mode = force_generic_plan",
            f"PREPARE due AS {body}",
        ):
            connection.exec_driver_sql(statement)
        values = ", ".join({"b_namespace": "'shop'", "b_limit": "10"}[name] for name in names)
        plan = connection.exec_driver_sql(f"EXPLAIN EXECUTE due({values})").scalars().all()
    assert any("using celery_idem_runs_due" in line for line in plan), plan


# -- many at once ---------------------------------------------------------------------------------


def _first_use(index: int, url: str) -> int:
    ledger = SqlLedger(url)
    ledger.record("duplicate", RunKey("shop:daily"))
    ledger.close()
    return index


@pytest.mark.sample("*-0")
@pytest.mark.parametrize("again", range(2))
def test_many_processes_may_make_the_tables_at_once(
    database_url: str, engine: Engine, again: int
) -> None:
    assert in_processes(8, _first_use, database_url) == list(range(8))
    assert differences(engine) == []
    with engine.connect() as connection:
        (found,) = connection.execute(text(f"SELECT version_num FROM {VERSION}")).scalars()
        assert found == HEAD
        lines = connection.execute(text("SELECT count(*) FROM celery_idem_history")).scalar()
        assert lines == 8


def test_a_creation_that_broke_off_is_finished(database_url: str, engine: Engine) -> None:
    """MySQL and SQLite commit each table by itself."""
    with engine.begin() as connection:
        for name in ("celery_idem_runs", "celery_idem_leases"):
            metadata.tables[name].create(connection)
        for index in metadata.tables["celery_idem_runs"].indexes:
            index.drop(connection)
    ledger = SqlLedger(database_url)
    use(Store("finished", ledger))
    assert differences(engine) == []
    ledger.close()


# -- versions -------------------------------------------------------------------------------------


@pytest.mark.parametrize("create", [True, False])
@pytest.mark.parametrize(
    ("found", "way_out"),
    [
        ("0000", "celery -A PROJECT idem upgrade"),
        ("0002", "install the celery-idem release that made these tables"),
        ("next", "install the celery-idem release that made these tables"),
    ],
)
def test_tables_of_another_version_are_refused(
    database_url: str, engine: Engine, found: str, way_out: str, create: bool
) -> None:
    upgrade(Database(database_url))
    with engine.begin() as connection:
        connection.execute(text(f"UPDATE {VERSION} SET version_num = '{found}'"))
    ledger = SqlLedger(database_url, create_tables=create)
    for _ in range(2):
        with pytest.raises(LedgerVersionMismatch) as caught:
            ledger.now()
        assert (caught.value.found, caught.value.wanted) == (found, HEAD)
        for part in (found, HEAD, way_out):
            assert part in str(caught.value)
    with engine.begin() as connection:
        connection.execute(text(f"UPDATE {VERSION} SET version_num = '{HEAD}'"))
    ledger.now()
    ledger.close()


def test_absent_tables_are_not_made_where_they_may_not(database_url: str, engine: Engine) -> None:
    ledger = SqlLedger(database_url, create_tables=False)
    with pytest.raises(LedgerError) as caught:
        ledger.now()
    for part in ("tables are absent", "celery -A PROJECT idem upgrade", "idem_create_tables"):
        assert part in str(caught.value)
    assert tables(engine) == set()
    upgrade(ledger.database)
    use(Store("upgraded", ledger))
    ledger.close()


# -- a project's own migrations -------------------------------------------------------------------


def test_the_tables_of_a_projects_own_migrations_are_accepted(
    database_url: str, engine: Engine
) -> None:
    metadata.create_all(engine)
    assert differences(engine) == []
    ledger = SqlLedger(database_url, create_tables=False)
    use(Store("own", ledger))
    assert VERSION not in tables(engine)
    ledger.close()


def test_a_column_that_a_projects_own_migrations_lack_is_named(
    database_url: str, engine: Engine
) -> None:
    metadata.create_all(engine)
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE celery_idem_runs DROP COLUMN message"))
        connection.execute(text("DROP TABLE celery_idem_tasks"))
    ledger = SqlLedger(database_url, create_tables=False)
    with pytest.raises(LedgerVersionMismatch) as caught:
        ledger.now()
    for part in ("celery_idem_runs.message", "celery_idem_tasks", "schema.metadata"):
        assert part in str(caught.value)
    ledger.close()
