"""The app for Django projects: checks, migrations, tasks, transactions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, inspect

from celery_idem import Ledger, RunKey, RunState
from celery_idem.ledger.migrations import HEAD, VERSION_TABLE
from celery_idem.ledger.schema import metadata
from tests.contrib.project import Project
from tests.integration.stage import LONELY, PATIENCE
from tests.processes import Worker, wait_for

pytest.importorskip("django")

ROOT = Path(__file__).parents[2]
APP = "tests.contrib.apps.django_app"
#: As in a project whose `__init__.py` imports its Celery app.
BEGIN = f"""
from django.core.management import CommandError, call_command
from django.db import connection, transaction
from {APP} import *
"""


@pytest.fixture(params=["postgres", "sqlite"])
def database(request: pytest.FixtureRequest) -> str:
    """SQLAlchemy's URL of an empty database; for others Django needs drivers of its own."""
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url


def tables(url: str) -> set[str]:
    engine = create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
    try:
        return set(inspect(engine).get_table_names())
    finally:
        engine.dispose()


# -- migrations ----------------------------------------------------------------------------------


def test_migrate_and_upgrade_make_the_same_tables(database: str, tmp_path: Path) -> None:
    project = Project(tmp_path, database)
    said = project.run(
        BEGIN
        + """
call_command("migrate", "celery_idem")
call_command("idem", "status", "--json")
call_command("makemigrations", "--check")
call_command("migrate", "celery_idem", "zero")
"""
    )
    assert "Applying celery_idem.0001_first... OK" in said
    assert f'"version": "{HEAD}"' in said and '"namespace": "shop"' in said
    assert "No changes detected" in said
    assert "Unapplying celery_idem.0001_first... OK" in said
    # Backwards, nothing is forgotten that was executed.
    assert {VERSION_TABLE, *metadata.tables} <= tables(database)
    # Celery's command finds the project's database by itself, too.
    done = project.start("-m", "celery", "-A", APP, "idem", "upgrade")
    assert done.stdout == f"The ledger has version {HEAD}: nothing to do.\n", done.stderr


def test_migrate_after_upgrade(sqlite_url: str, tmp_path: Path) -> None:
    project = Project(tmp_path, sqlite_url)
    said = project.run(BEGIN + 'call_command("idem", "upgrade"); call_command("migrate")')
    assert f"The ledger went from no tables to version {HEAD}." in said
    assert "Applying celery_idem.0001_first... OK" in said


def test_a_ledger_elsewhere_is_left_to_its_own_command(sqlite_url: str, tmp_path: Path) -> None:
    elsewhere = f"sqlite:///{tmp_path / 'elsewhere.sqlite3'}"
    project = Project(tmp_path, sqlite_url, CELERY_IDEM_DATABASE_URL=elsewhere)
    said = project.run(
        BEGIN
        + """
call_command("migrate", "celery_idem")
try:
    call_command("idem", "status")
except CommandError as exc:
    print("CommandError:", exc)
"""
    )
    assert "Applying celery_idem.0001_first... OK" in said
    assert "CommandError: sqlite:///" in said and "has no tables of the ledger yet" in said
    assert not {VERSION_TABLE, *metadata.tables} & tables(sqlite_url)
    assert not (tmp_path / "elsewhere.sqlite3").exists()


def test_a_test_database_in_memory_has_no_ledger(tmp_path: Path) -> None:
    project = Project(tmp_path, f"sqlite:///{tmp_path / 'django.sqlite3'}")
    said = project.run(
        BEGIN
        + """
from celery_idem.contrib.django.database import default_url
from celery_idem.ledger.url import is_in_memory
connection.creation.create_test_db(verbosity=0)
names = connection.introspection.table_names()
print(is_in_memory(default_url()), "django_migrations" in names, "celery_idem_runs" in names)
"""
    )
    assert said == "True True False\n"


def test_each_version_of_the_ledger_has_a_migration() -> None:
    package = ROOT / "celery_idem"
    ours = {p.stem[1:] for p in (package / "ledger/migrations/versions").glob("v[0-9]*.py")}
    theirs = {p.stem for p in (package / "contrib/django/migrations").glob("[0-9]*.py")}
    assert ours == theirs


# -- checks --------------------------------------------------------------------------------------


CHECKS = """
import json, sys
from celery import Celery
from django.test import override_settings
from celery_idem.contrib.django.checks import check_settings

def told(settings):
    with override_settings(**settings):
        return [(found.id, f"{found.msg} {found.hint}") for found in check_settings()]

answers = [told({})]
for settings in json.loads(sys.argv[1]):
    app = Celery("shop")
    app.config_from_object("django.conf:settings", namespace="CELERY")
    answers.append(told(settings))
print(json.dumps(answers))
"""


def test_checks(sqlite_url: str, tmp_path: Path) -> None:
    cases: list[dict[str, Any]] = [
        {},
        {"CELERY_IDEM_LEESE": 5},
        {"CELERY_IDEM_DATABASE_URL": "oracle://here"},
        {"CELERY_IDEM_DATABASE_URL": "sqlite:///other.sqlite3"},
        {"CELERY_IDEM_DATABASE_URL": "sqlite:///other.sqlite3", "CELERY_IDEM_ENABLED": False},
    ]
    said = Project(tmp_path, sqlite_url).run(CHECKS, json.dumps(cases))
    (no_app,), fine, (name,), (url,), (elsewhere,), off = json.loads(said)
    assert fine == off == []
    assert no_app[0] == "celery_idem.W002"
    assert name[0] == url[0] == "celery_idem.E001"
    assert "did you mean 'idem_lease'" in name[1]
    assert "it is CELERY_IDEM_LEESE" in name[1]
    assert "must begin with postgresql" in url[1]
    assert elsewhere[0] == "celery_idem.W001"


def test_a_command_of_a_project_with_a_bad_setting_ends(sqlite_url: str, tmp_path: Path) -> None:
    project = Project(tmp_path, sqlite_url, CELERY_IDEM_LEASE=0)
    done = project.start("-c", f"import django; django.setup(){BEGIN}call_command('check')")
    assert done.returncode == 1
    assert "celery_idem.E001) idem_lease = 0 is not possible" in done.stderr


# -- tasks ---------------------------------------------------------------------------------------

TABLE = (
    BEGIN
    + """
call_command("migrate", "celery_idem", verbosity=0)
with connection.cursor() as cursor:
    cursor.execute("CREATE TABLE orders (name varchar(40))")
"""
)


def test_rows_and_the_end_of_the_run_are_one_commit(database: str, tmp_path: Path) -> None:
    project = Project(tmp_path, database)
    printed = project.run(
        TABLE
        + """
for _ in range(2):
    order.apply(("once",), task_id="one")
lost = overtaken.apply(("late",), task_id="two")
print(lost.state, type(lost.result).__name__)
with transaction.atomic():
    nested = order.apply(("nested",), task_id="three").result
print(type(nested).__name__, orders())
try:
    with idempotent_atomic():
        insert("no run")
except Exception as exc:
    print(type(exc).__name__, orders())
"""
    )
    assert printed.splitlines() == [
        "FAILURE LeaseLost",
        "RuntimeError ['once']",
        "NoCurrentRun ['once']",
    ]
    ledger = Ledger.from_url(database)
    row = ledger.read(RunKey.for_message("shop", "shop.order", "one"))
    assert row is not None and row.state is RunState.SUCCEEDED
    ledger.close()


def test_a_worker_and_a_message_after_the_commit(
    postgres_url: str, redis_url: str, tmp_path: Path
) -> None:
    project = Project(tmp_path, postgres_url, CELERY_BROKER_URL=redis_url, CELERY_IDEM_LEASE=77)
    worker = Worker(APP, tmp_path, "-P", "solo", *LONELY, env=project.env)
    with worker:
        printed = project.run(
            TABLE
            + """
import time
from celery_idem.config import Settings
with transaction.atomic():
    order.delay_on_commit("by delay")
    order.apply_async_on_commit(("by apply",), task_id="one")
    insert("first")
    with app.connection_for_read() as broker:
        print(broker.default_channel.client.llen("celery"))
order.apply_async(("copy",), task_id="one")
deadline = time.monotonic() + 30
while len(orders()) < 3 and time.monotonic() < deadline:
    time.sleep(0.05)
print(orders(), Settings.of(app).lease)
"""
        )
        ledger = Ledger.from_url(postgres_url)
        wait_for(lambda: ledger.counts().get("duplicate"), PATIENCE, "the copy is recognised")
        assert printed.splitlines() == ["0", "['by apply', 'by delay', 'first'] 77.0"]
        assert ledger.counts()["succeeded"] == 2
        ledger.close()
