"""Databases that do not keep every character: what is not a key is escaped, a key is refused."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.engine import make_url

from celery_idem.errors import LedgerError, LedgerUnavailable
from celery_idem.keys import RunKey
from celery_idem.ledger import Retry
from celery_idem.ledger.sql import SqlLedger
from celery_idem.run import ClaimOutcome, RunState
from tests import services
from tests.conftest import Found
from tests.contract.stores import Store, fresh
from tests.services.base import new_name

TEXT = "résumé 😀"
ESCAPED = r"r\xe9sum\xe9 \U0001f600"


@contextmanager
def postgres_in(servers: Found, encoding: str) -> Iterator[str]:
    """The URL of a new database in this encoding."""
    with servers.get(services.POSTGRES).place() as neighbour:
        url = make_url(neighbour)
        plain = url.set(drivername="postgresql").render_as_string(hide_password=False)
        name = new_name()
        with psycopg.connect(plain, autocommit=True) as connection:
            connection.execute(
                f"CREATE DATABASE {name} TEMPLATE template0 ENCODING '{encoding}'"
                " LC_COLLATE 'C' LC_CTYPE 'C'".encode()
            )
            yield url.set(database=name).render_as_string(hide_password=False)
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


@contextmanager
def mariadb_in(servers: Found, encoding: str) -> Iterator[str]:
    """The URL of a database with this encoding by default, that asks clients to use it."""
    with servers.get(services.MARIADB).place() as url:
        store = Store.at("mariadb", url)
        store.sql.database.run(text(f"ALTER DATABASE CHARACTER SET {encoding}"))
        store.ledger.close()
        yield make_url(url).set(query={"charset": encoding}).render_as_string(hide_password=False)


PLACES = {
    "LATIN1": postgres_in,
    "SQL_ASCII": postgres_in,
    "latin1": mariadb_in,
}


@pytest.fixture(scope="module", params=PLACES)
def encoding(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def odd(encoding: str, servers: Found) -> Iterator[Store]:
    """A ledger in such a database."""
    with PLACES[encoding](servers, encoding) as url:
        store = Store.at(encoding, url)
        yield store
        store.ledger.close()


def test_texts_never_make_a_statement_fail(odd: Store, encoding: str) -> None:
    """A run whose end cannot be written would be running for ever."""
    expected = ESCAPED if encoding == "LATIN1" else TEXT
    key = RunKey(fresh("run"))
    request = replace(odd.request(key), task=TEXT, entry=TEXT, task_id=TEXT)
    fence = odd.ledger.claim(request).fence
    odd.ledger.record("duplicate", key, task=TEXT, task_id=TEXT, detail=TEXT)
    odd.ledger.retry(key, fence, Retry(1, 0.0, TEXT))
    assert odd.row(key).message == expected
    fence = odd.claim(key, retries=1).fence
    odd.ledger.end(key, fence, RunState.FAILED, TEXT)
    assert (odd.row(key).state, odd.row(key).error) == (RunState.FAILED, expected)
    (line,) = odd.ledger.history(key)
    assert (line.task, line.task_id, line.detail) == (expected, expected, expected)


def test_keys_are_kept_or_refused(odd: Store, encoding: str) -> None:
    """Never changed: two keys would become one."""
    kept, odd_one = RunKey(fresh("é")), RunKey(fresh("😀"))
    assert odd.claim(kept).outcome is ClaimOutcome.CLAIMED
    assert odd.row(kept).key == kept
    if encoding != "LATIN1":
        assert odd.claim(odd_one).outcome is ClaimOutcome.CLAIMED
        assert odd.row(odd_one).key == odd_one
        return
    with pytest.raises(LedgerError, match=r"postgresql.* refused a statement: .*LATIN1") as caught:
        odd.claim(odd_one)
    assert not isinstance(caught.value, LedgerUnavailable)
    assert odd.claim(kept).outcome is ClaimOutcome.RUNNING


def test_what_a_driver_cannot_send_is_refused_in_the_ledgers_words(postgres: Store) -> None:
    """Somebody has chosen the connection's encoding himself."""
    options = {"connect_args": {"client_encoding": "LATIN1"}}
    ledger = SqlLedger(postgres.url, engine_options=options)
    with pytest.raises(LedgerError, match=r"postgresql.* cannot take a value: 'latin-1'"):
        ledger.claim(postgres.request(RunKey("shop:😀")))
    assert ledger.read(RunKey("shop:x")) is None
    ledger.close()


def test_a_number_that_is_too_large_is_refused(database: Store) -> None:
    """A retry number is what a message says."""
    with pytest.raises(LedgerError) as caught:
        database.claim(RunKey(fresh("run")), retries=2**64)
    assert not isinstance(caught.value, LedgerUnavailable)
