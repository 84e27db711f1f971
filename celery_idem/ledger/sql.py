"""The ledger on a SQL database: leases, claims and endings.

Owns how the verbs of an owner become statements and answers. Their text stands in `statements`,
those of emission in `emission`; what differs between databases in `dialects`.
Must not know Celery or schedules.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Collection, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError

from celery_idem.errors import LedgerError
from celery_idem.keys import RunKey
from celery_idem.ledger import HistoryLine, Owner, Retry, Unsent, beside_runs
from celery_idem.ledger import statements as sql
from celery_idem.ledger.database import Answer, Database
from celery_idem.ledger.dialects import db_now, returns_rows
from celery_idem.ledger.emission import EmissionSql
from celery_idem.ledger.keys_sql import KeysSql
from celery_idem.ledger.locks import LocksSql
from celery_idem.ledger.migrations import ensure_current
from celery_idem.ledger.reading import READ
from celery_idem.ledger.rows import cut, history_line, line_id, micros, named, run_row
from celery_idem.ledger.schema import history, runs
from celery_idem.ledger.transactions import TransactionSql
from celery_idem.run import Claim, ClaimRequest, RunRow, RunState


class SqlLedger(EmissionSql, KeysSql, TransactionSql, LocksSql):
    """See `celery_idem.ledger.Ledger`; the tables are prepared at first use in each process."""

    def __init__(
        self,
        url: str,
        *,
        schema: str | None = None,
        engine_options: Mapping[str, Any] | None = None,
        create_tables: bool = True,
    ) -> None:
        self._url = url
        self._made_with: dict[str, Any] = {
            "schema": schema,
            "engine_options": engine_options,
            "create_tables": create_tables,
        }
        self.database = Database(url, engine_options, schema)
        self._create_tables = create_tables
        self._prepared = False

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.database.shown}>"

    def _prepare(self) -> None:
        if not self._prepared:
            ensure_current(self.database, create=self._create_tables)
            self._prepared = True

    def _run(self, statement: Any, parameters: Any = None) -> Answer:
        self._prepare()
        return self.database.run(statement, parameters)

    def _write(self, statement: Any, parameters: Mapping[str, Any]) -> Answer:
        self._prepare()
        return self.database.write(statement, parameters)

    # -- leases ---------------------------------------------------------------------------------

    def register(self, lease_id: str, owner: Owner, seconds: float) -> None:
        parameters = {
            "b_lease": lease_id,
            "b_kind": owner.kind,
            "b_host": owner.host,
            "b_pid": owner.pid,
            "b_process": owner.process,
            "b_namespace": owner.namespace,
            "b_micros": micros(seconds),
        }
        try:
            self._run(beside_runs.REGISTER, parameters)
        except LedgerError as exc:
            # The id is new: if it is there, the first try did it and only its answer was lost.
            repeated = isinstance(exc.__cause__, IntegrityError)
            if not (repeated and self.renew([lease_id], seconds)):
                raise

    def renew(self, lease_ids: Collection[str], seconds: float) -> set[str]:
        ids = sorted(lease_ids)
        if not ids:
            return set()
        changed = self._run(
            beside_runs.RENEW, {"b_leases": ids, "b_micros": micros(seconds)}
        ).rowcount
        if changed == len(ids):
            return set(ids)
        return {row.id for row in self._run(beside_runs.ALIVE, {"b_leases": ids}).rows}

    def bury(self, lease_id: str) -> None:
        self._write(beside_runs.BURY, {"b_lease": lease_id})

    def release(self, lease_ids: Collection[str]) -> None:
        if lease_ids:
            self._run(beside_runs.RELEASE, {"b_leases": sorted(lease_ids)})

    def release_child(self, process: str, pid: int) -> None:
        self._write(beside_runs.RELEASE_CHILD, {"b_process": process, "b_pid": pid})

    # -- runs -----------------------------------------------------------------------------------

    def claim(self, request: ClaimRequest) -> Claim:
        unanswered = self.database.unanswered
        claim = super().claim(request)
        if self.database.unanswered == unanswered:
            return claim
        return replace(claim, doubtful=True)

    def read(self, key: RunKey) -> RunRow | None:
        rows = self._run(READ, named(key)).rows
        return run_row(rows[0]) if rows else None

    def try_claim(self, request: ClaimRequest) -> tuple[int, int] | None:
        parameters = {
            **_requested(request),
            "b_lease": request.lease_id,
            "b_payload": request.payload,
        }
        answer = self._write(sql.claim(self.database.dialect), parameters)
        if returns_rows(self.database.dialect):
            return _first(answer)
        return self._read_back(request)

    def _read_back(self, request: ClaimRequest) -> tuple[int, int] | None:
        parameters = {**named(request.key), "b_claim": request.claim_id}
        return _first(self._write(sql.CLAIM_READ_BACK, parameters))

    def try_takeover(self, request: ClaimRequest, seen: RunRow) -> tuple[int, int] | None:
        if not self._write(sql.FREE, named(seen.key)).rows:
            return None
        attempts = seen.attempts + 1 if request.retries == seen.retries else 1
        changed = self._write(
            sql.TAKEOVER,
            {
                **named(request.key),
                "b_fence": seen.fence,
                "b_attempts": attempts,
                "b_retries": request.retries,
                "b_lease": request.lease_id,
                "b_claim": request.claim_id,
                "b_task_id": request.task_id,
            },
        ).rowcount
        return (seen.fence + 1, attempts) if changed else self._read_back(request)

    def try_kill(self, seen: RunRow, error: str) -> bool:
        parameters = {**named(seen.key), "b_fence": seen.fence, "b_error": cut(error)}
        return self._write(sql.KILL, parameters).rowcount > 0

    def try_skip(self, request: ClaimRequest, error: str) -> bool:
        parameters = {**_requested(request), "b_error": cut(error)}
        answer = self._write(sql.skip(self.database.dialect), parameters)
        if answer.rows:
            return True
        claimed = {**named(request.key), "b_claim": request.claim_id}
        return bool(self._write(sql.SKIP_READ_BACK, claimed).rows)

    def try_end(
        self,
        key: RunKey,
        fence: int,
        state: RunState,
        error: str | None,
        unsent: Unsent | None = None,
        stored: str | None = None,
    ) -> bool:
        parameters = {**named(key), "b_fence": fence, "b_state": state.value, "b_error": cut(error)}
        if unsent is None and stored is None:
            return self._write(sql.END, parameters).rowcount > 0
        statement = sql.END_STORED if unsent is None else sql.END_UNSENT
        result = unsent.result if unsent and stored is None else stored
        return self._write(statement, {**parameters, "b_result": result}).rowcount > 0

    def keep_result(
        self, key: RunKey, fence: int, result: str | None, *, stored: bool = False
    ) -> None:
        statement = sql.STORE_RESULT if stored else sql.KEEP_RESULT
        self._write(statement, {**named(key), "b_fence": fence, "b_result": result})

    def callbacks_sent(self, key: RunKey, fence: int, *, stored: bool = False) -> None:
        statement = sql.CALLBACKS_SENT_STORED if stored else sql.CALLBACKS_SENT
        self._write(statement, {**named(key), "b_fence": fence})

    def let_go(self, key: RunKey, fence: int, message: str | None) -> None:
        self._write(sql.LET_GO, {**named(key), "b_fence": fence, "b_message": message})

    def try_repair(self, request: ClaimRequest, seen: RunRow) -> int | None:
        own = {**named(seen.key), "b_lease": request.lease_id, "b_claim": request.claim_id}
        repair = sql.REPAIR_UNSENT if seen.callbacks_pending else sql.REPAIR
        if self._write(repair, {**own, "b_fence": seen.fence}).rowcount:
            return seen.fence + 1
        # By a try whose answer was lost?
        rows = self._write(sql.REPAIR_READ_BACK, own).rows
        return int(rows[0][0]) if rows else None

    def try_retry(self, key: RunKey, fence: int, retry: Retry) -> bool:
        parameters = {
            **named(key),
            "b_fence": fence,
            "b_retries": retry.retries,
            "b_due": micros(retry.due_in),
            "b_grace": micros(retry.due_in + retry.grace),
            "b_message": retry.message,
            "b_deadline": retry.deadline,
        }
        return self._write(sql.RETRY, parameters).rowcount > 0

    def try_give_back(
        self, key: RunKey, fence: int, error: str, seconds: float, message: str | None = None
    ) -> bool:
        parameters = {
            **named(key),
            "b_fence": fence,
            "b_error": cut(error),
            "b_grace": micros(seconds),
            "b_message": message,
        }
        return self._write(sql.GIVE_BACK, parameters).rowcount > 0

    def fail_of_child(self, key: RunKey, process: str, pid: int, error: str) -> bool:
        parameters = {**named(key), "b_process": process, "b_pid": pid, "b_error": cut(error)}
        return self._write(sql.FAIL_OF_CHILD, parameters).rowcount > 0

    # -- what is known --------------------------------------------------------------------------

    def now(self) -> datetime:
        moment: datetime = self._run(select(db_now().label("now"))).rows[0].now
        return moment

    def record(
        self,
        kind: str,
        key: RunKey,
        *,
        task: str | None = None,
        task_id: str | None = None,
        detail: str | None = None,
        line: str | None = None,
    ) -> None:
        self._write(
            beside_runs.record(self.database.dialect),
            {
                **named(key),
                "b_line": line or line_id(),
                "b_kind": kind,
                "b_task": task,
                "b_task_id": task_id,
                "b_host": socket.gethostname(),
                "b_pid": os.getpid(),
                "b_detail": cut(detail),
            },
        )

    def history(self, key: RunKey) -> list[HistoryLine]:
        return [history_line(row) for row in self._run(beside_runs.LINES, named(key)).rows]

    def counts(self) -> dict[str, int]:
        by_state = select(runs.c.state, func.count()).group_by(runs.c.state)
        by_kind = select(history.c.kind, func.count()).group_by(history.c.kind)
        found = {RunState(state).label: count for state, count in self._run(by_state).rows}
        return found | {kind: count for kind, count in self._run(by_kind).rows}

    def twin(self) -> SqlLedger:
        return type(self)(self._url, **self._made_with)

    def close(self) -> None:
        self._leave()
        self.database.close()


def _requested(request: ClaimRequest) -> dict[str, Any]:
    return {
        **named(request.key),
        "b_namespace": request.namespace,
        "b_task": request.task,
        "b_entry": request.entry,
        "b_retries": request.retries,
        "b_claim": request.claim_id,
        "b_task_id": request.task_id,
    }


def _first(answer: Answer) -> tuple[int, int] | None:
    return tuple(answer.rows[0]) if answer.rows else None
