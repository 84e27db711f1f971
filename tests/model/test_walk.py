"""Databases go along with the model, statement by statement, on walks at random.

Always the same short walk: `IDEM_TEST_WALK_SEED` takes another one, `IDEM_TEST_WALK_STEPS` a longer
one.
"""

from __future__ import annotations

import os
import random
from dataclasses import replace
from pathlib import Path

import pytest

from celery_idem.ledger import emission
from celery_idem.run import RunState
from tests import services
from tests.conftest import Found
from tests.contract.stores import Store
from tests.model.rules import Alphabet
from tests.model.walk import HANDOVER, Walk

SEED = os.environ.get("IDEM_TEST_WALK_SEED", "1")
STEPS = int(os.environ.get("IDEM_TEST_WALK_STEPS", "1000"))
#: Steps of one run.
LONGEST = 60

EVERYTHING = Alphabet(
    "everything",
    ends=("retry", "reject"),
    retries=1,
    unsent=True,
    beats=2,
    late=True,
    expires=True,
    limits=True,
    counts=True,
)


def alphabets(transactions: bool) -> list[Alphabet]:
    """A run of a slot, and an ad-hoc one."""
    ends = (*EVERYTHING.ends, RunState.SUCCEEDED, RunState.FAILED)
    ends += ("transaction",) if transactions else ()
    every = replace(EVERYTHING, ends=ends)
    return [every, replace(every, slots=True, closes=True)]


def walk(store: Store, transactions: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emission, "HANDOVER", HANDOVER)
    chance = random.Random(SEED)
    taken = 0
    while taken < STEPS:
        store.clear()
        alphabet = chance.choice(alphabets(transactions))
        taken += Walk(store, alphabet, chance).go(LONGEST)


def test_sqlite_goes_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store.at("sqlite", f"sqlite:///{tmp_path / 'ledger.sqlite3'}")
    try:
        # There a transaction would keep everybody from writing anything.
        walk(store, False, monkeypatch)
    finally:
        store.ledger.close()


def test_postgresql_goes_along(servers: Found, monkeypatch: pytest.MonkeyPatch) -> None:
    with servers.get(services.POSTGRES).place() as url:
        store = Store.at("postgres", url)
        try:
            walk(store, True, monkeypatch)
        finally:
            store.ledger.close()
