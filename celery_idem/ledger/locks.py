"""The ledger on a SQL database: named locks.

Owns the statements of locks. One that takes a seat names the fence that was seen, so that a try
which arrives late takes nothing from anybody. Must not know what is done under a lock.
"""

from __future__ import annotations

from abc import abstractmethod
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Select,
    Table,
    Update,
    and_,
    bindparam,
    exists,
    null,
    or_,
    select,
    update,
)

from celery_idem.keys import EPOCH
from celery_idem.ledger import Ledger
from celery_idem.ledger.database import Answer
from celery_idem.ledger.dialects import db_now
from celery_idem.ledger.lock_verbs import LockRequest, LockRow, Taken
from celery_idem.ledger.rows import micros
from celery_idem.ledger.schema import leases, locks
from celery_idem.ledger.statements import after

_SEAT = and_(locks.c.name == bindparam("b_name"), locks.c.seat == bindparam("b_seat"))
_AT_FENCE = and_(_SEAT, locks.c.fence == bindparam("b_fence"))
_LEASE_GONE = ~exists(select(leases.c.id).where(leases.c.id == locks.c.lease_id).correlate(locks))

_FREE = or_(locks.c.lease_id.is_(None), _LEASE_GONE, locks.c.ends_at <= db_now())


def _take(ends_at: ColumnElement[Any]) -> Update:
    return (
        update(locks)
        .where(_AT_FENCE, _FREE)
        .values(
            fence=bindparam("b_new_fence", type_=BigInteger()),
            lease_id=bindparam("b_lease"),
            claim_id=bindparam("b_claim"),
            taken_at=db_now(),
            ends_at=ends_at,
        )
    )


_TAKE = _take(null())
_TAKE_FOR = _take(after("b_hold"))

_RELEASE: Update = (
    update(locks)
    .where(_AT_FENCE, locks.c.lease_id.is_not(None))
    .values(lease_id=null(), ends_at=null())
)

_READ: Select[Any] = select(
    locks, leases.c.expires_at.label("expires_at"), db_now().label("now")
).select_from(locks.outerjoin(leases, leases.c.id == locks.c.lease_id))

_READ_SEATS = (
    _READ.where(locks.c.name == bindparam("b_name"), locks.c.seat < bindparam("b_seats"))
).order_by(locks.c.seat)

#: While it is held: a seat that was released knows its last claim.
_OWN = select(locks.c.fence).where(
    _SEAT, locks.c.claim_id == bindparam("b_claim"), locks.c.lease_id.is_not(None)
)

_HELD = _READ.where(locks.c.lease_id.is_not(None)).order_by(locks.c.name, locks.c.seat)


class LocksSql(Ledger):
    """The verbs of locks."""

    @abstractmethod
    def _run(self, statement: Any, parameters: Any = None) -> Answer: ...

    @abstractmethod
    def _write(self, statement: Any, parameters: Any) -> Answer: ...

    @abstractmethod
    def _insert_if_absent(self, table: Table, rows: list[dict[str, Any]]) -> None: ...

    def read_seats(self, name: str, seats: int) -> list[LockRow]:
        rows = self._run(_READ_SEATS, {"b_name": name, "b_seats": seats}).rows
        return [_lock_row(row) for row in rows]

    def try_take(self, request: LockRequest, seen: LockRow) -> int | None:
        if not seen.fence:
            return self._take_first(request, seen.seat)
        parameters = {
            "b_name": request.name,
            "b_seat": seen.seat,
            "b_fence": seen.fence,
            "b_new_fence": seen.fence + 1,
            "b_lease": request.lease_id,
            "b_claim": request.claim_id,
        }
        statement = _TAKE
        if request.max_hold is not None:
            statement, parameters["b_hold"] = _TAKE_FOR, micros(request.max_hold)
        return seen.fence + 1 if self._write(statement, parameters).rowcount else None

    def _take_first(self, request: LockRequest, seat: int) -> int | None:
        now = self.now()
        hold = request.max_hold
        row = {
            "name": request.name,
            "seat": seat,
            # A name that was forgotten does not come back with smaller fences.
            "fence": micros((now - EPOCH).total_seconds()),
            "lease_id": request.lease_id,
            "claim_id": request.claim_id,
            "taken_at": now,
            "ends_at": None if hold is None else now + timedelta(seconds=hold),
        }
        self._insert_if_absent(locks, [row])
        own = {"b_name": request.name, "b_seat": seat, "b_claim": request.claim_id}
        rows = self._write(_OWN, own).rows
        return int(rows[0][0]) if rows else None

    def release_seat(self, taken: Taken) -> bool:
        at = {"b_name": taken.name, "b_seat": taken.seat, "b_fence": taken.fence}
        return self._write(_RELEASE, at).rowcount > 0

    def held_locks(self) -> list[tuple[str, LockRow]]:
        return [(row.name, _lock_row(row)) for row in self._run(_HELD).rows]


def _lock_row(row: Any) -> LockRow:
    def left(instant: datetime | None) -> float | None:
        return None if instant is None else (instant - row.now).total_seconds()

    return LockRow(
        row.seat, row.fence, row.lease_id, row.claim_id, left(row.expires_at), left(row.ends_at)
    )
