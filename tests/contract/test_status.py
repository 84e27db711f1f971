"""``celery idem status``: what it shows of each ledger, and that it changes nothing."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from click.testing import CliRunner, Result
from sqlalchemy import create_engine, inspect, select, text
from sqlalchemy.engine import make_url

from celery_idem.cli import idem
from celery_idem.ledger import LockRequest, Owner
from celery_idem.ledger.database import Database
from celery_idem.ledger.migrations import HEAD, are_absent
from celery_idem.ledger.schema import leases, metadata
from celery_idem.run import RunState
from tests.contract.stores import LONG, SHORT, Store, fresh


def run(url: str, *words: str, **settings: Any) -> Result:
    """``celery -A shop idem ...``."""
    app = Celery("shop", set_as_current=False)
    app.conf.update(idem_database_url=url, **settings)
    try:
        return CliRunner().invoke(idem, [*words], obj=SimpleNamespace(app=app))
    finally:
        app.close()


def status(url: str, **settings: Any) -> Any:
    done = run(url, "status", "--json", **settings)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def fill(store: Store) -> None:
    for state in RunState:
        store.in_state(state)
    key = store.in_state(RunState.SUCCEEDED)
    for kind in ("takeover", "duplicate", "duplicate"):
        store.ledger.record(kind, key)
    store.ledger.record_tasks("shop", ["shop.remind", "shop.bill"])
    store.ledger.record_tasks("another", ["another.bill"])
    store.ledger.release([row.id for row in store.sql._run(select(leases.c.id)).rows])
    store.lease(SHORT)
    store.let_pass(SHORT)
    store.lease()
    store.ledger.register(fresh("lease"), Owner("beat", "host", 1, "parent"), LONG)
    lease = store.lease()
    for name in ("shop:stock", "another:stock"):
        assert store.ledger.take(LockRequest(name, lease, fresh("claim")))
    freed = store.ledger.take(LockRequest("shop:freed", lease, fresh("claim")))
    assert freed and store.ledger.release_seat(freed)


def test_all_that_there_is(database: Store) -> None:
    fill(database)
    found = status(database.url)
    assert found.pop("database") == database.sql.database.shown
    (lock,) = found.pop("locks")
    assert 0 < lock.pop("lease_seconds") <= LONG
    assert lock.pop("fence") > 0
    assert lock == {"name": "stock", "seat": 0}
    assert found == {
        "schema": None,
        "namespace": "shop",
        "version": HEAD,
        "runs": {state.label: 1 for state in RunState} | {"succeeded": 2},
        "leases": {"beat": {"live": 1, "expired": 0}, "worker": {"live": 2, "expired": 1}},
        "history": {"duplicate": 2, "takeover": 1},
        "tasks": ["shop.bill", "shop.remind"],
    }


def test_the_same_for_people(database: Store) -> None:
    fill(database)
    done = run(database.url, "status")
    assert done.exit_code == 0
    lines = [line.split() for line in done.stdout.splitlines()]
    for line in (
        ["namespace", "shop"],
        ["version", HEAD],
        ["succeeded", "2"],
        ["dead", "1"],
        ["leases", "live", "expired"],
        ["worker", "2", "1"],
        ["locks", "that", "are", "held", "lease,", "s"],
        ["duplicate", "2"],
        ["shop.remind"],
    ):
        assert line in lines, done.stdout
    assert max(map(len, done.stdout.splitlines())) < 100


def test_numbers_stand_below_each_other(database: Store) -> None:
    fill(database)
    numbers = [
        line
        for line in run(database.url, "status").stdout.splitlines()
        if line.startswith("  ") and line[-1].isdigit()
    ]
    assert len({len(line) for line in numbers if len(line.split()) == 2}) == 1
    assert len({len(line) for line in numbers if len(line.split()) == 3}) == 1


def test_an_empty_ledger(database: Store) -> None:
    found = status(database.url)
    assert not any(found["runs"].values())
    names = ("leases", "locks", "history", "tasks")
    assert [found[name] for name in names] == [{}, [], {}, []]
    assert run(database.url, "status").stdout.count(": none") == 5


def test_a_password_is_not_shown(postgres_url: str) -> None:
    run(postgres_url, "upgrade")
    secret = make_url(postgres_url).set(password="geheim").render_as_string(hide_password=False)
    for words in (("status",), ("status", "--json")):
        done = run(secret, *words)
        assert ":***@" in done.output and "geheim" not in done.output


@pytest.mark.parametrize(
    ("create", "hint"),
    [(True, "the first worker or beat that uses it creates them"), (False, "own migrations")],
)
def test_before_the_first_use_it_says_what_to_do(
    database_url: str, create: bool, hint: str
) -> None:
    done = run(database_url, "status", idem_create_tables=create)
    assert done.exit_code == 1
    assert done.stdout == ""
    for part in ("has no tables of the ledger yet", hint, "'celery -A PROJECT idem upgrade'"):
        assert part in done.stderr
    with closing(Database(database_url)) as there:
        assert are_absent(there)
    assert run(database_url, "upgrade").exit_code == 0
    assert status(database_url)["version"] == HEAD


def test_it_makes_no_file(tmp_path: Path) -> None:
    assert run(f"sqlite:///{tmp_path / 'ledger.sqlite3'}", "status").exit_code == 1
    assert list(tmp_path.iterdir()) == []


def test_tables_of_a_projects_own_migrations(database_url: str) -> None:
    engine = create_engine(Database(database_url).url)
    metadata.create_all(engine)
    assert status(database_url, idem_create_tables=False)["version"] is None
    assert "own migrations" in run(database_url, "status").stdout
    assert set(inspect(engine).get_table_names()) == set(metadata.tables)
    engine.dispose()


def test_tables_of_another_version(database_url: str) -> None:
    run(database_url, "upgrade")
    engine = create_engine(Database(database_url).url)
    with engine.begin() as connection:
        connection.execute(text("UPDATE celery_idem_version SET version_num = '9999'"))
    engine.dispose()
    done = run(database_url, "status")
    assert done.exit_code == 1
    assert "9999" in done.stderr and HEAD in done.stderr


def test_a_database_that_does_not_answer() -> None:
    done = run("postgresql://shop:geheim@127.0.0.1:1/shop", "status")
    assert done.exit_code == 1
    assert "does not answer" in done.stderr and "geheim" not in done.output


def test_a_wrong_command_line(tmp_path: Path) -> None:
    assert run(f"sqlite:///{tmp_path / 'ledger.sqlite3'}", "status", "--nothing").exit_code == 2
