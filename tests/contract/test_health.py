"""``celery idem health``: what a probe is told."""

from __future__ import annotations

import socket
from contextlib import closing
from types import SimpleNamespace

from celery import Celery
from click.testing import CliRunner, Result

from celery_idem.cli import idem
from celery_idem.health import health
from celery_idem.ledger import Owner
from celery_idem.ledger.database import Database
from celery_idem.ledger.migrations import are_absent
from tests.contract.stores import LONG, NAMESPACE, SHORT, Store, fresh


def run(url: str, *words: str) -> Result:
    """``celery -A shop idem health``."""
    app = Celery(NAMESPACE, set_as_current=False)
    app.conf.update(idem_database_url=url)
    try:
        return CliRunner().invoke(idem, ["health", *words], obj=SimpleNamespace(app=app))
    finally:
        app.close()


def add(store: Store, host: str, seconds: float = LONG) -> None:
    store.ledger.register(fresh("lease"), Owner("beat", host, 7, "process", NAMESPACE), seconds)


def test_healthy_is_who_has_a_beat_that_ticks(database: Store) -> None:
    add(database, "elsewhere", SHORT)
    done = run(database.url)
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout.startswith("beat elsewhere 7, since ")
    database.let_pass(SHORT)
    done = run(database.url)
    assert done.exit_code == 1
    assert "0 of 1 beats of namespace 'shop' tick" in done.stderr


def test_the_beats_of_this_host_and_their_number(database: Store) -> None:
    add(database, "elsewhere")
    assert run(database.url, "--here").exit_code == 1
    add(database, socket.gethostname())
    assert run(database.url, "--here").exit_code == 0
    assert run(database.url, "--beats", "2").exit_code == 0
    assert run(database.url, "--beats", "3").exit_code == 1
    assert run(database.url, "--here", "--beats", "2").exit_code == 1


def test_a_database_that_does_not_answer_is_not_healthy() -> None:
    done = run("postgresql://nobody@127.0.0.1:1/nowhere")
    assert done.exit_code == 1
    assert "does not answer" in done.stderr


def test_a_probe_makes_no_tables(database_url: str) -> None:
    assert run(database_url).exit_code == 1
    with closing(Database(database_url)) as database:
        assert are_absent(database)


def test_a_wrong_command_line_is_told() -> None:
    assert run("sqlite://", "--beats", "many").exit_code == 2


def test_the_same_as_a_function(database: Store) -> None:
    app = Celery(NAMESPACE, set_as_current=False)
    app.conf.update(idem_database_url=database.url)
    assert not health(app).healthy
    add(database, "elsewhere")
    found = health(app)
    assert found.healthy
    assert [(beat.host, beat.pid) for beat in found.beats] == [("elsewhere", 7)]
    assert health(app, host="nowhere").trouble == (
        "0 of 1 beats of namespace 'shop' tick on host 'nowhere'"
    )
    app.close()
