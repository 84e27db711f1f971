"""The command line of `celery-idem exec`: keys, and what is refused."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest
from click.testing import CliRunner

from celery_idem import InvalidRunKey, RunKey
from celery_idem.cli.script import main
from celery_idem.cli.template import run_key
from celery_idem.clock import UTC
from celery_idem.keys import EPOCH

NOON = datetime(2026, 7, 1, 12, 34, 56, tzinfo=UTC)
DAY = datetime(2026, 7, 1, tzinfo=UTC)
HALF_PAST = datetime(2026, 7, 1, 12, 30, tzinfo=UTC)
AWAY = "postgresql://nobody:secret@127.0.0.1:1/nowhere"


@pytest.mark.parametrize(
    ("template", "zone", "text", "slot"),
    [
        (
            "daily-{slot:day}",
            "UTC",
            "daily-2026-07-01T00:00:00Z",
            DAY,
        ),
        (
            "{slot:day}.{slot:day}",
            "Europe/Berlin",
            "2026-06-30T22:00:00Z.2026-06-30T22:00:00Z",
            datetime(2026, 6, 30, 22, tzinfo=UTC),
        ),
        ("a{slot:10 minutes}", "UTC", "a2026-07-01T12:30:00Z", HALF_PAST),
        ("{{slot:day}}", "UTC", "{slot:day}", None),
        ("for ever", "UTC", "for ever", None),
    ],
)
def test_a_key_holds_its_slot(template: str, zone: str, text: str, slot: datetime | None) -> None:
    assert run_key(template, zone, NOON) == RunKey(f"exec:{text}", slot or EPOCH)


@pytest.mark.parametrize(
    "template",
    ["", "{}", "{slot}", "{slot:}", "{day}", "{slot!r:day}", "{slot:often}", "{slot", "}", "a\0"],
)
def test_a_template_that_is_none_is_refused(template: str) -> None:
    with pytest.raises(InvalidRunKey):
        run_key(template, "UTC", NOON)


def test_a_key_has_one_slot() -> None:
    with pytest.raises(InvalidRunKey, match="more than one interval"):
        run_key("{slot:day}{slot:hour}", "UTC", NOON)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--key", "a-{slot:fortnight}", "--", "true"], "'fortnight' is no interval"),
        (["--key", "", "--", "true"], "must not be empty"),
        (["--key", "a"], "Missing argument 'COMMAND...'"),
        (["--", "true"], "Missing option '--key'"),
        (["--key", "a", "--timezone", "Nowhere", "--", "true"], "timezone = 'Nowhere'"),
        (["--key", "a", "--lease", "0", "--", "true"], "lease of exec = 0.0 is not possible"),
        (["--key", "a", "--max-attempts", "0", "--", "true"], "max_attempts of exec = 0"),
        (["--key", "a", "--database", "nowhere", "--", "true"], "it must be a SQLAlchemy URL"),
        (["--key", "a", "--database", "sqlite://", "--", "true"], "a database in memory"),
    ],
    ids=str,
)
def test_a_wrong_command_line_is_status_2(words: list[str], reason: str) -> None:
    done = _invoke(words, {"CELERY_IDEM_DATABASE_URL": AWAY})
    assert done.exit_code == 2
    assert reason in " ".join(done.output.split())
    assert "secret" not in done.output


def test_a_database_has_to_be_named() -> None:
    done = _invoke(["--key", "a", "--", "true"], {"CELERY_IDEM_DATABASE_URL": None})
    assert (done.exit_code, "Missing option '--database'" in done.output) == (2, True)


def _invoke(words: list[str], env: Any) -> Any:
    return CliRunner().invoke(main, ["exec", *words], env=env)
