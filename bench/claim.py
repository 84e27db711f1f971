"""Claim and finish of a run on PostgreSQL over TCP, beside the same two statements by raw psycopg.

Owns the row. What is compared is everything that the ledger adds to the driver: making values,
checking the connection's process, translating errors, reading the answer. Must not know tasks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any
from uuid import uuid4

import psycopg
from sqlalchemy import Executable

from bench.base import Row, Servers, in_turn, ratio, seconds
from bench.places import conninfo
from celery_idem import Ledger, RunKey, RunState
from celery_idem.ledger import Owner
from celery_idem.ledger import statements as sql
from celery_idem.ledger.compiled import Compiled, compile_statement
from celery_idem.ledger.database import Database
from celery_idem.run import ClaimRequest

PAIRS = 400
ROUNDS = 15
AIM = "<= 1.25 x"


def measure(servers: Servers) -> Iterator[Row]:
    """Rounds of new runs, each claimed and finished, by either way in turn."""
    ledger = Ledger.from_url(servers.database_url)
    lease = uuid4().hex
    ledger.register(lease, Owner("other", "bench", 0, "bench"), 3600.0)
    pairs = servers.few(PAIRS)
    with psycopg.connect(conninfo(servers.database_url), autocommit=True) as connection:
        raw = Raw(connection, Database(servers.database_url))

        def ours() -> float:
            requests = [_request(lease) for _ in range(pairs)]
            return seconds(lambda: _all_by_ledger(ledger, requests))

        def theirs() -> float:
            requests = [_request(lease) for _ in range(pairs)]
            return seconds(lambda: raw.all(requests))

        took = in_turn({"ours": ours, "theirs": theirs}, servers.few(ROUNDS), warm_up=2)
    ledger.close()
    yield Row(
        "claim and finish of a run, PostgreSQL over TCP",
        "the same statements, prepared, by psycopg",
        took["ours"] / pairs * 1e6,
        took["theirs"] / pairs * 1e6,
        "µs",
        ratio(took["ours"], took["theirs"]),
        AIM,
    )


class Raw:
    """The two statements as somebody would write them by hand."""

    def __init__(self, connection: psycopg.Connection[Any], database: Database) -> None:
        self._cursor = connection.cursor()
        self._claim = _text(sql.claim("postgresql"), database)
        self._end = _text(sql.END, database)

    def all(self, requests: Sequence[ClaimRequest]) -> None:
        for request in requests:
            self._claim_and_finish(request)

    def _claim_and_finish(self, request: ClaimRequest) -> None:
        values = {
            **self._claim.constants,
            "b_key": request.key.text,
            "b_slot": request.key.slot,
            "b_namespace": request.namespace,
            "b_task": request.task,
            "b_entry": request.entry,
            "b_retries": request.retries,
            "b_lease": request.lease_id,
            "b_claim": request.claim_id,
            "b_task_id": request.task_id,
            "b_payload": request.payload,
        }
        self._cursor.execute(self._claim.text, values, prepare=True)
        ((fence, _),) = self._cursor.fetchall()
        values = {
            **self._end.constants,
            "b_key": request.key.text,
            "b_slot": request.key.slot,
            "b_fence": fence,
            "b_state": RunState.SUCCEEDED.value,
            "b_error": None,
        }
        self._cursor.execute(self._end.text, values, prepare=True)
        assert self._cursor.rowcount == 1


def _all_by_ledger(ledger: Ledger, requests: Sequence[ClaimRequest]) -> None:
    for request in requests:
        claim = ledger.claim(request)
        ledger.end(request.key, claim.fence, RunState.SUCCEEDED)


def _request(lease: str) -> ClaimRequest:
    task_id = str(uuid4())
    key = RunKey.for_message("bench", "bench.task", task_id)
    return ClaimRequest(key, "bench.task", "bench", None, task_id, 0, lease, uuid4().hex)


def _text(statement: Executable, database: Database) -> Compiled:
    return compile_statement(statement, database.engine.dialect, None)
