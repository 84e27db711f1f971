"""``celery idem pause`` and ``resume``: what operators do and are told."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from click.testing import CliRunner, Result

from celery_idem.cli import idem
from celery_idem.keys import RunKey
from celery_idem.ledger.rows import entry_name
from tests.contract.stores import NAMESPACE, Store


def run(store: Store, *words: str) -> Result:
    """``celery -A shop idem ...``."""
    app = Celery(NAMESPACE, set_as_current=False)
    app.conf.update(
        idem_database_url=store.url, beat_schedule={"hourly": {"task": "t", "schedule": 3600}}
    )
    try:
        return CliRunner().invoke(idem, [*words], obj=SimpleNamespace(app=app))
    finally:
        app.close()


def told(store: Store, *words: str) -> str:
    done = run(store, *words)
    assert done.exit_code == 0, done.output
    return done.output


def history(store: Store, entry: str) -> list[Any]:
    return store.ledger.history(RunKey.for_entry(NAMESPACE, entry))


def test_an_entry_is_paused_and_resumed(database: Store) -> None:
    database.ledger.activate(NAMESPACE, [("daily", "f1")])
    assert told(database, "pause", "daily", "--note", "inventory") == "Entry daily is paused.\n"
    (pause,) = database.ledger.pauses(NAMESPACE).values()
    assert (pause.lasts, pause.note) == (True, "inventory")
    assert pause.paused_by and "@" in pause.paused_by
    assert "Nothing that was due since" in told(database, "resume", "daily")
    assert not database.ledger.pauses(NAMESPACE)[entry_name(NAMESPACE, "daily")].lasts
    lines = history(database, "daily")
    assert [line.kind for line in lines] == ["pause", "resume"]
    assert lines[0].detail.endswith(": inventory")


def test_a_second_time_says_how_it_stands(database: Store) -> None:
    told(database, "pause", "hourly", "--note", "first")
    database.tick()
    said = told(database, "pause", "hourly", "--note", "second")
    assert said.startswith("Entry hourly has been paused since ")
    assert said.endswith(": first\n")
    told(database, "resume", "hourly")
    database.tick()
    assert told(database, "resume", "hourly").startswith("Entry hourly has not been paused since ")
    assert [line.kind for line in history(database, "hourly")] == ["pause", "resume"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("pause", "Hourly"), "has ever followed an entry 'Hourly'"),
        (("resume", "hourly"), "entry 'hourly' was never paused"),
        (("pause", ""), "must not be empty"),
    ],
)
def test_what_cannot_be_is_told(database: Store, words: tuple[str, ...], said: str) -> None:
    done = run(database, *words)
    assert done.exit_code == 1
    assert said in done.output
    assert database.ledger.pauses(NAMESPACE) == {}
