"""The timeouts in the documents are those that connections are made with."""

from __future__ import annotations

import re

from celery_idem.ledger.connect import _CONNECT_ARGS
from tests.docs.markdown import ROOT

OPERATIONS = ROOT / "docs" / "operations.md"


def told() -> dict[str, dict[str, int]]:
    """Driver, option, number; a row may have several options, and as many numbers."""
    found: dict[str, dict[str, int]] = {}
    for line in OPERATIONS.read_text(encoding="utf-8").splitlines():
        row = re.match(r"\| (psycopg|PyMySQL) (.*?) \| (.*?) \|", line)
        if row:
            options = re.findall(r"`(\w+)`", row[2])
            numbers = [int(n.replace(",", "")) for n in re.findall(r"\d+(?:,\d{3})*", row[3])]
            if len(numbers) == 1:
                numbers *= len(options)
            found.setdefault(row[1].lower(), {}).update(zip(options, numbers, strict=True))
    return found


def test_the_timeouts_of_the_drivers() -> None:
    for driver, options in told().items():
        numbers = {
            name: value for name, value in _CONNECT_ARGS[driver].items() if isinstance(value, int)
        }
        assert options == numbers
    assert set(told()) == {"psycopg", "pymysql"}
