"""The ledger on a SQL database: keys that change hands, and reservations.

Owns the statements of `key_verbs`. One that gives a key to another message names the fence and the
claim that were seen, so that a try which arrives late takes nothing from anybody. Must not know why
a key is free.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Table,
    Update,
    and_,
    bindparam,
    delete,
    null,
    or_,
    select,
    update,
)

from celery_idem.keys import EPOCH, RunKey
from celery_idem.ledger import Ledger, Reservation
from celery_idem.ledger.database import Answer
from celery_idem.ledger.dialects import db_now
from celery_idem.ledger.records import skipped
from celery_idem.ledger.rows import micros, named
from celery_idem.ledger.schema import UtcDateTime, literal_state, runs
from celery_idem.ledger.statements import CLAIM_READ_BACK, LEASE_GONE, after, number, one_run
from celery_idem.run import ClaimRequest, RunRow, RunState

_FINAL = [literal_state(state) for state in RunState if state.final]
_SCHEDULED = literal_state(RunState.SCHEDULED)

#: What a run has of the one before it: its fence, and nothing else.
_BLANK: dict[str, Any] = dict.fromkeys(
    (
        "entry",
        "due_at",
        "deadline",
        "message",
        "error",
        "callbacks_pending",
        "result",
        "next_emit_at",
        "started_at",
        "finished_at",
    ),
    null(),
)


#: As `RunRow.never_begins`, of what waits still.
_NEVER_BEGINS = and_(
    runs.c.state.in_([_SCHEDULED, literal_state(RunState.EMITTED)]),
    runs.c.fence == number(0),
    runs.c.entry.is_(None),
    runs.c.deadline <= db_now(),
)


def _again(callbacks: Any, values: Mapping[str, Any]) -> Update:
    return (
        update(runs)
        .where(
            one_run(),
            or_(runs.c.state.in_(_FINAL), _NEVER_BEGINS),
            runs.c.fence == bindparam("b_fence"),
            runs.c.claim_id.is_not_distinct_from(bindparam("b_seen", type_=runs.c.claim_id.type)),
            runs.c.created_at <= after("b_ago"),
            callbacks,
        )
        .values(
            **{
                **_BLANK,
                "namespace": bindparam("b_namespace"),
                "task": bindparam("b_task"),
                "task_id": bindparam("b_task_id"),
                "claim_id": bindparam("b_claim"),
                "payload": bindparam("b_payload"),
                "emit_count": number(0),
                "created_at": db_now(),
                **values,
            }
        )
    )


def _both(values: Mapping[str, Any]) -> dict[bool, Update]:
    """Whether callbacks of the run before are pending must be as it was kept apart."""
    sent = runs.c.callbacks_pending.is_(None)
    unsent = and_(runs.c.callbacks_pending.is_not(None), LEASE_GONE)
    return {False: _again(sent, values), True: _again(unsent, values)}


_CLAIM_AGAIN = _both(
    {
        "state": literal_state(RunState.RUNNING),
        "fence": runs.c.fence + number(1),
        "attempts": number(1),
        "retries": bindparam("b_retries"),
        "lease_id": bindparam("b_lease"),
        "started_at": db_now(),
    }
)

_RESERVE_AGAIN = _both(
    {
        "state": _SCHEDULED,
        "attempts": number(0),
        "retries": number(0),
        "lease_id": null(),
        "due_at": after("b_due"),
        "next_emit_at": after("b_grace"),
        "deadline": bindparam("b_deadline"),
        "message": bindparam("b_message"),
    }
)

_MINE = and_(one_run(), runs.c.claim_id == bindparam("b_claim"), runs.c.state == _SCHEDULED)

_OWN = select(runs.c.fence).where(_MINE)

_RELY_ON = (
    update(runs)
    .where(
        one_run(),
        runs.c.claim_id.is_not_distinct_from(bindparam("b_seen", type_=runs.c.claim_id.type)),
        runs.c.fence == bindparam("b_fence"),
        runs.c.state == _SCHEDULED,
        runs.c.emit_count == number(0),
    )
    .values(emit_count=number(1))
)

_UNSURE = and_(_MINE, runs.c.emit_count == number(0))
_FORGET = delete(runs).where(_UNSURE, runs.c.fence == number(0))


def _close(where: ColumnElement[bool], why: str) -> Update:
    """Fences go on, as a late statement of the run before could meet them; its time is over."""
    return (
        update(runs)
        .where(where, runs.c.fence > number(0))
        .values(
            state=literal_state(RunState.SKIPPED),
            error=why,
            next_emit_at=null(),
            created_at=bindparam("b_epoch", EPOCH, type_=UtcDateTime()),
            finished_at=db_now(),
        )
    )


_CLOSE = _close(_UNSURE, "it could not be published")

_OF_MESSAGE = and_(one_run(), runs.c.task_id == bindparam("b_task_id"))
_UNBEGUN = [literal_state(s) for s in (RunState.SCHEDULED, RunState.EMITTED, RunState.SKIPPED)]
_LEAVE = delete(runs).where(_OF_MESSAGE, runs.c.fence == number(0), runs.c.state.in_(_UNBEGUN))
_LEAVE_CLOSED = _close(
    and_(_OF_MESSAGE, runs.c.state == _SCHEDULED),
    "its body begins under the name of its message",
)


class KeysSql(Ledger):
    """The verbs of keys that change hands."""

    @abstractmethod
    def _write(self, statement: Any, parameters: Any) -> Answer: ...

    @abstractmethod
    def _insert_if_absent(self, table: Table, rows: list[dict[str, Any]]) -> None: ...

    def keep_apart(self, seen: RunRow) -> None:
        if seen.task_id is None:
            return
        seen = seen if seen.state.final else skipped(seen, self.now())
        kept = {
            "namespace": seen.namespace,
            "task": seen.task,
            "entry": seen.entry,
            "state": seen.state.value,
            "fence": seen.fence,
            "attempts": seen.attempts,
            "retries": seen.retries,
            "lease_id": seen.lease_id,
            "claim_id": seen.claim_id,
            "task_id": seen.task_id,
            "due_at": seen.due_at,
            "emit_count": seen.emit_count,
            "deadline": seen.deadline,
            "message": seen.message,
            "error": seen.error,
            "callbacks_pending": seen.callbacks_pending or None,
            "result": seen.result,
            "payload": seen.payload,
            "created_at": seen.started_at or self.now(),
            "started_at": seen.started_at,
            "finished_at": seen.finished_at,
        }
        key = seen.key.of_message(str(seen.task_id))
        self._insert_if_absent(runs, [{"run_key": key.text, "slot": key.slot, **kept}])

    def try_claim_again(self, request: ClaimRequest, seen: RunRow) -> tuple[int, int] | None:
        parameters = {
            **_taken(request, seen),
            "b_retries": request.retries,
            "b_lease": request.lease_id,
        }
        if self._write(_CLAIM_AGAIN[seen.callbacks_pending], parameters).rowcount:
            return seen.fence + 1, 1
        own = {**named(request.key), "b_claim": request.claim_id}
        rows = self._write(CLAIM_READ_BACK, own).rows
        return (int(rows[0][0]), int(rows[0][1])) if rows else None

    def try_reserve(self, reservation: Reservation) -> None:
        now = self.now()
        due = now + timedelta(seconds=reservation.due_in)
        self._insert_if_absent(runs, [_reserved(reservation, now, due)])

    def try_reserve_again(self, reservation: Reservation, seen: RunRow) -> bool:
        parameters = {
            **_taken(reservation, seen),
            "b_due": micros(reservation.due_in),
            "b_grace": micros(reservation.due_in + reservation.grace),
            "b_deadline": reservation.deadline,
            "b_message": reservation.message,
        }
        if self._write(_RESERVE_AGAIN[seen.callbacks_pending], parameters).rowcount:
            return True
        own = {**named(reservation.key), "b_claim": reservation.claim_id}
        return bool(self._write(_OWN, own).rows)

    def cancel(self, reservation: Reservation) -> None:
        own = {**named(reservation.key), "b_claim": reservation.claim_id}
        self._write(_FORGET, own)
        self._write(_CLOSE, own)

    def try_rely_on(self, seen: RunRow) -> bool:
        at = {**named(seen.key), "b_fence": seen.fence, "b_seen": seen.claim_id}
        return self._write(_RELY_ON, at).rowcount > 0

    def leave(self, key: RunKey, task_id: str, *, followed: bool = False) -> None:
        own = {**named(key), "b_task_id": task_id}
        if not self._write(_LEAVE, own).rowcount and followed:
            self._write(_LEAVE_CLOSED, own)


def _taken(by: ClaimRequest | Reservation, seen: RunRow) -> dict[str, Any]:
    return {
        **named(by.key),
        "b_fence": seen.fence,
        "b_seen": seen.claim_id,
        "b_ago": -micros(by.free_after or 0.0) if seen.fence else 0,
        "b_namespace": by.namespace,
        "b_task": by.task,
        "b_task_id": by.task_id,
        "b_claim": by.claim_id,
        "b_payload": by.payload,
    }


def _reserved(reservation: Reservation, now: datetime, due: datetime) -> dict[str, Any]:
    return {
        "run_key": reservation.key.text,
        "slot": reservation.key.slot,
        "namespace": reservation.namespace,
        "task": reservation.task,
        "state": RunState.SCHEDULED.value,
        "fence": 0,
        "attempts": 0,
        "retries": 0,
        "claim_id": reservation.claim_id,
        "task_id": reservation.task_id,
        "due_at": due,
        "next_emit_at": due + timedelta(seconds=reservation.grace),
        "emit_count": 0,
        "deadline": reservation.deadline,
        "message": reservation.message,
        "payload": reservation.payload,
        "created_at": now,
    }
