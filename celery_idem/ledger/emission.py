"""The ledger on a SQL database: slots, their emission, and what beats bury.

Owns the statements by which beats record slots, compete for messages that must be published again,
and bury leases. Statements on many rows name them in sorted order: two beats that insert the same
slots in different orders would deadlock.
Must not know schedules or messages.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Table, and_, bindparam, null, or_, select, update

from celery_idem.keys import EPOCH, RunKey
from celery_idem.ledger import HANDOVER, NewSlot, beside_runs, check_closing
from celery_idem.ledger.database import Answer, Database
from celery_idem.ledger.dialects import db_now, insert_rows_if_absent
from celery_idem.ledger.entries import EntriesSql
from celery_idem.ledger.reading import read_runs
from celery_idem.ledger.records import LeaseCount, LiveBeat
from celery_idem.ledger.rows import chunks, cut, held, many, micros, run_row, task_name
from celery_idem.ledger.schema import literal_state, runs, tasks
from celery_idem.ledger.statements import LEASE_GONE, after, number
from celery_idem.run import RunRow, RunState

_OPEN = [literal_state(RunState.SCHEDULED), literal_state(RunState.RETRYING)]


def _these() -> tuple[ColumnElement[bool], ...]:
    """Several runs; the slots' range lets a partitioned table skip partitions."""
    return (
        runs.c.run_key.in_(bindparam("b_keys", expanding=True)),
        runs.c.slot.between(bindparam("b_first"), bindparam("b_last")),
    )


def _batch() -> tuple[ColumnElement[bool], ...]:
    """Those of them that a batch holds."""
    return (*_these(), runs.c.claim_id == bindparam("b_batch"))


#: Asked before an insert, which would wait for a transaction that holds one of the rows: that of an
#: owner which stands still before its COMMIT. Of several beats, mostly one has to insert at all.
_KNOWN = select(runs.c.run_key, runs.c.slot).where(*_these())

_GIVEN_BACK = read_runs().where(
    runs.c.namespace == bindparam("b_namespace"),
    runs.c.state == literal_state(RunState.SCHEDULED),
    runs.c.fence > number(0),
    runs.c.slot < bindparam("b_slot"),
    runs.c.slot > bindparam("b_epoch", EPOCH),
)

_BEGUN = read_runs().where(
    runs.c.namespace == bindparam("b_namespace"),
    runs.c.task == bindparam("b_task"),
    runs.c.fence > number(0),
    runs.c.slot < bindparam("b_slot"),
    runs.c.slot > bindparam("b_epoch", EPOCH),
)
#: Each state by itself, as each has an index of its own.
_UNFINISHED = [
    _BEGUN.where(runs.c.state == literal_state(state))
    for state in (RunState.RUNNING, RunState.SCHEDULED)
]

_HELD = select(runs.c.run_key, runs.c.slot).where(*_batch())

_DUE = (
    select(runs.c.run_key, runs.c.slot)
    .where(
        runs.c.state.in_(_OPEN),
        runs.c.next_emit_at <= db_now(),
        runs.c.namespace == bindparam("b_namespace"),
    )
    .order_by(runs.c.next_emit_at)
    .limit(bindparam("b_limit"))
)

#: By compare-and-set: beats that saw the same due rows wait for each other here, and the guard on
#: ``next_emit_at`` lets the first one through only.
_ACQUIRE = (
    update(runs)
    .where(*_these(), runs.c.state.in_(_OPEN), runs.c.next_emit_at <= db_now())
    .values(claim_id=bindparam("b_batch"), next_emit_at=after("b_micros"))
)

_ACQUIRED = read_runs().where(*_batch(), runs.c.state.in_(_OPEN))

#: What a dead owner has left: a body that was not ended, callbacks that were not sent.
_LEFT = and_(
    or_(runs.c.state == literal_state(RunState.RUNNING), runs.c.callbacks_pending),
    LEASE_GONE,
    or_(runs.c.next_emit_at.is_(None), runs.c.next_emit_at <= db_now()),
)

#: Without those that a stopped process holds in a transaction: an update would wait for it.
_ORPHANS = (
    select(runs.c.run_key, runs.c.slot)
    .where(
        _LEFT,
        runs.c.namespace == bindparam("b_namespace"),
        # Otherwise the message is with the broker alone.
        or_(runs.c.entry.is_not(None), runs.c.message.is_not(None)),
    )
    .limit(bindparam("b_limit"))
    .with_for_update(skip_locked=True)
)

_ACQUIRE_ORPHANS = (
    update(runs)
    .where(*_these(), _LEFT)
    .values(claim_id=bindparam("b_batch"), next_emit_at=after("b_micros"))
)

_ACQUIRED_ORPHANS = read_runs().where(*_batch(), LEASE_GONE)

#: Not where a try whose answer was lost has done it already: it would count a publish twice.
_PUBLISHED = (
    update(runs)
    .where(*_batch(), runs.c.next_emit_at <= after("b_handover"))
    .values(next_emit_at=after("b_micros"), emit_count=runs.c.emit_count + number(1))
)

_EMITTED = (
    update(runs)
    .where(*_batch(), runs.c.state == literal_state(RunState.SCHEDULED))
    .values(state=literal_state(RunState.EMITTED), next_emit_at=null())
)

_SKIPPED = (
    update(runs)
    .where(*_batch(), runs.c.state.in_(_OPEN))
    .values(
        state=literal_state(RunState.SKIPPED),
        error=bindparam("b_error"),
        next_emit_at=null(),
        finished_at=db_now(),
    )
)

_TASKS = select(tasks.c.task).where(tasks.c.namespace == bindparam("b_namespace"))


class EmissionSql(EntriesSql):
    """The verbs of slots, and of leases that beats bury; `SqlLedger` adds those of workers."""

    database: Database

    @abstractmethod
    def _run(self, statement: Any, parameters: Any = None) -> Answer: ...

    @abstractmethod
    def _write(self, statement: Any, parameters: Mapping[str, Any]) -> Answer: ...

    def _insert_if_absent(self, table: Table, rows: list[dict[str, Any]]) -> None:
        self._run(*insert_rows_if_absent(self.database.dialect, table, rows))

    def insert_slots(self, slots: Sequence[NewSlot], batch: str) -> set[RunKey]:
        won: set[RunKey] = set()
        for chunk in chunks(sorted(slots, key=lambda slot: slot.key)):
            known = self.recorded(slot.key for slot in chunk)
            new = [slot for slot in chunk if slot.key not in known]
            if new:
                now = self.now()
                self._insert_if_absent(runs, [_new_row(slot, batch, now) for slot in new])
            # Read back rather than counted: a repeated insert would find its own rows.
            answer = self._run(_HELD, held([slot.key for slot in chunk], batch))
            won.update(RunKey(*row) for row in answer.rows)
        return won

    def given_back_before(self, namespace: str, slot: datetime) -> list[RunRow]:
        found = self._run(_GIVEN_BACK, {"b_namespace": namespace, "b_slot": slot}).rows
        return [run_row(row) for row in found]

    def unfinished_before(self, namespace: str, task: str, slot: datetime) -> list[RunRow]:
        asked = {"b_namespace": namespace, "b_task": task, "b_slot": slot}
        found = [row for each in _UNFINISHED for row in self._run(each, asked).rows]
        return [run_row(row) for row in found]

    def recorded(self, keys: Iterable[RunKey]) -> set[RunKey]:
        found: set[RunKey] = set()
        for chunk in chunks(sorted(keys)):
            found.update(RunKey(*row) for row in self._run(_KNOWN, many(chunk)).rows)
        return found

    def acquire_due(self, namespace: str, limit: int, batch: str) -> list[RunRow]:
        return self._acquired(_DUE, _ACQUIRE, _ACQUIRED, namespace, limit, batch)

    def acquire_orphans(self, namespace: str, limit: int, batch: str) -> list[RunRow]:
        return self._acquired(
            _ORPHANS, _ACQUIRE_ORPHANS, _ACQUIRED_ORPHANS, namespace, limit, batch
        )

    def _acquired(
        self, look: Any, acquire: Any, read: Any, namespace: str, limit: int, batch: str
    ) -> list[RunRow]:
        found = self._run(look, {"b_namespace": namespace, "b_limit": limit}).rows
        acquired: list[RunRow] = []
        for chunk in chunks(sorted(RunKey(*row) for row in found)):
            self._run(acquire, {**held(chunk, batch), "b_micros": micros(HANDOVER)})
            acquired.extend(run_row(row) for row in self._run(read, held(chunk, batch)).rows)
        return acquired

    def published(self, keys: Iterable[RunKey], batch: str, grace: float) -> None:
        waits = {"b_micros": micros(grace), "b_handover": micros(HANDOVER)}
        for chunk in chunks(sorted(keys)):
            self._run(_PUBLISHED, {**held(chunk, batch), **waits})

    def close_unclaimed(
        self, keys: Iterable[RunKey], batch: str, state: RunState, error: str | None = None
    ) -> None:
        check_closing(state)
        for chunk in chunks(sorted(keys)):
            if state is RunState.EMITTED:
                self._run(_EMITTED, held(chunk, batch))
            else:
                self._run(_SKIPPED, {**held(chunk, batch), "b_error": cut(error)})

    def bury_expired(self, limit: int) -> int:
        # Read first: mostly there are none, and a DELETE of none waits for others who write.
        found = sorted(row.id for row in self._run(beside_runs.EXPIRED, {"b_limit": limit}).rows)
        for chunk in chunks(found):
            self._run(beside_runs.BURY_THESE, {"b_leases": chunk})
        return len(found)

    def live_beats(self, namespace: str) -> list[LiveBeat]:
        rows = self._run(beside_runs.LIVE_BEATS, {"b_namespace": namespace}).rows
        return sorted(LiveBeat(row.host, row.pid, row.started_at) for row in rows)

    def lease_counts(self) -> dict[str, LeaseCount]:
        rows = self._run(beside_runs.LEASE_COUNTS).rows
        return {row.kind: LeaseCount(int(row.live), row.all - int(row.live)) for row in rows}

    def record_tasks(self, namespace: str, names: Iterable[str]) -> None:
        now = self.now()
        stored = sorted({task_name(namespace, name) for name in names})
        for chunk in chunks(stored):
            self._insert_if_absent(
                tasks, [{"task": name, "namespace": namespace, "seen_at": now} for name in chunk]
            )

    def known_tasks(self, namespace: str) -> set[str]:
        return {row.task for row in self._run(_TASKS, {"b_namespace": namespace}).rows}


def _new_row(slot: NewSlot, batch: str, now: datetime) -> dict[str, Any]:
    return {
        "run_key": slot.key.text,
        "slot": slot.key.slot,
        "namespace": slot.namespace,
        "task": slot.task,
        "entry": slot.entry,
        # Nobody claims the slot of a plain task: it is closed at once, and published by whoever
        # recorded it.
        "state": (RunState.SCHEDULED if slot.claims else RunState.EMITTED).value,
        "fence": 0,
        "attempts": 0,
        "retries": 0,
        "claim_id": batch,
        "task_id": slot.key.task_id,
        "due_at": slot.key.slot,
        "next_emit_at": now + timedelta(seconds=HANDOVER) if slot.claims else None,
        "emit_count": 0,
        "deadline": slot.deadline,
        "message": slot.message,
        "created_at": now,
    }
