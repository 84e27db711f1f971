"""The guarded statements of runs.

Owns the SQL text of every verb that an owner needs; each names run key and slot, the fence where
somebody may be late, and the states it is allowed to leave (`celery_idem.run.TRANSITIONS`).
Must not execute anything. Binds are called ``b_*``, as SQLAlchemy keeps the column names.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Insert,
    Integer,
    Select,
    Update,
    and_,
    bindparam,
    case,
    exists,
    func,
    literal_column,
    null,
    or_,
    select,
    true,
    update,
)

from celery_idem.ledger.dialects import Columns, Updates, db_now, insert_or_change
from celery_idem.ledger.schema import FreeText, leases, literal_state, runs
from celery_idem.run import RunState

_RUNNING = literal_state(RunState.RUNNING)
_RETRYING = literal_state(RunState.RETRYING)
_SKIPPED = literal_state(RunState.SKIPPED)
_UNCLAIMED = [literal_state(RunState.SCHEDULED), literal_state(RunState.EMITTED)]


def after(bind: str) -> ColumnElement[Any]:
    """The database's clock plus a bind in microseconds."""
    return db_now(bindparam(bind, type_=BigInteger()))


def number(value: int) -> ColumnElement[int]:
    """A constant in the text of a statement."""
    return literal_column(str(value), Integer())


def one_run() -> ColumnElement[bool]:
    return and_(runs.c.run_key == bindparam("b_key"), runs.c.slot == bindparam("b_slot"))


def _owned() -> ColumnElement[bool]:
    return and_(one_run(), runs.c.fence == bindparam("b_fence"), runs.c.state == _RUNNING)


LEASE_GONE = ~exists(select(leases.c.id).where(leases.c.id == runs.c.lease_id).correlate(runs))


def _ownerless() -> ColumnElement[bool]:
    return and_(_owned(), LEASE_GONE)


# -- claim --------------------------------------------------------------------------------------


def _claimable(current: Columns, new: Columns) -> ColumnElement[bool]:
    # A claim that was ended must not come to life by its own repetition, sent on another
    # connection and arriving late.
    return and_(
        current.claim_id.is_distinct_from(new.claim_id),
        # A slot is its entry's, whatever brings its message; any other run, that of its message.
        or_(
            current.entry.is_not(None),
            current.task_id.is_(None),
            new.task_id.is_(None),
            current.task_id == new.task_id,
        ),
        or_(
            current.payload.is_(None),
            new.payload.is_(None),
            current.payload == new.payload,
            current.task_id == new.task_id,
        ),
        or_(
            and_(current.state.in_(_UNCLAIMED), current.retries <= new.retries),
            and_(current.state == _RETRYING, current.retries == new.retries),
        ),
    )


def _claimed_now(current: Columns, new: Columns) -> ColumnElement[bool]:
    # The lease is the first assignment, and a row that can be claimed names none.
    return and_(current.lease_id == new.lease_id, current.state.in_([*_UNCLAIMED, _RETRYING]))


def _claimed(current: Columns, new: Columns) -> Updates:
    same_retry = current.retries == new.retries
    return (
        ("lease_id", new.lease_id),
        ("fence", current.fence + number(1)),
        ("attempts", case((same_retry, current.attempts + number(1)), else_=number(1))),
        ("claim_id", new.claim_id),
        ("task_id", new.task_id),
        ("task", new.task),
        ("started_at", new.started_at),
        ("next_emit_at", new.next_emit_at),
        ("retries", new.retries),
        ("payload", func.coalesce(current.payload, new.payload)),
        ("state", new.state),
    )


def _new_run(state: ColumnElement[int], claims: int, **more: Any) -> dict[str, Any]:
    return {
        "run_key": bindparam("b_key"),
        "slot": bindparam("b_slot"),
        "namespace": bindparam("b_namespace"),
        "task": bindparam("b_task"),
        "entry": bindparam("b_entry"),
        "state": state,
        "fence": number(claims),
        "attempts": number(claims),
        "retries": bindparam("b_retries"),
        "claim_id": bindparam("b_claim"),
        "task_id": bindparam("b_task_id"),
        "next_emit_at": null(),
        "emit_count": number(0),
        "created_at": db_now(),
        **more,
    }


@lru_cache
def claim(dialect: str) -> Insert:
    values = _new_run(
        _RUNNING,
        1,
        lease_id=bindparam("b_lease"),
        started_at=db_now(),
        payload=bindparam("b_payload"),
    )
    return insert_or_change(dialect, runs, values, _claimable, _claimed, _claimed_now)


CLAIM_READ_BACK: Select[Any] = select(runs.c.fence, runs.c.attempts).where(
    one_run(), runs.c.claim_id == bindparam("b_claim"), runs.c.state == _RUNNING
)


def _skippable(current: Columns, new: Columns) -> ColumnElement[bool]:
    # Not the run of another sender, whose message may come again.
    of_its_own = or_(current.task_id.is_(None), current.task_id == new.task_id)
    return and_(_claimable(current, new), of_its_own)


def _skipped_now(current: Columns, new: Columns) -> ColumnElement[bool]:
    return and_(current.claim_id == new.claim_id, current.state.in_([*_UNCLAIMED, _RETRYING]))


def _skipped(current: Columns, new: Columns) -> Updates:
    return tuple(
        (name, new[name])
        for name in ("claim_id", "task_id", "next_emit_at", "error", "finished_at", "state")
    )


@lru_cache
def skip(dialect: str) -> Insert:
    """As `claim`, but into ``skipped``."""
    values = _new_run(_SKIPPED, 0, error=bindparam("b_error"), finished_at=db_now())
    return insert_or_change(dialect, runs, values, _skippable, _skipped, _skipped_now)


SKIP_READ_BACK: Select[Any] = select(runs.c.fence).where(
    one_run(), runs.c.claim_id == bindparam("b_claim"), runs.c.state == _SKIPPED
)

# -- an owner that is gone -----------------------------------------------------------------------

TAKEOVER: Update = (
    update(runs)
    .where(_ownerless())
    .values(
        fence=runs.c.fence + number(1),
        attempts=bindparam("b_attempts"),
        retries=bindparam("b_retries"),
        lease_id=bindparam("b_lease"),
        claim_id=bindparam("b_claim"),
        task_id=bindparam("b_task_id"),
        started_at=db_now(),
        next_emit_at=null(),
    )
)

#: No row if a transaction holds it: that of an owner which stands still between its last statement
#: and the COMMIT.
FREE: Select[Any] = select(runs.c.fence).where(one_run()).with_for_update(skip_locked=True)

KILL: Update = (
    update(runs)
    .where(_ownerless())
    .values(
        state=literal_state(RunState.DEAD),
        error=bindparam("b_error"),
        finished_at=db_now(),
    )
)

FAIL_OF_CHILD: Update = (
    update(runs)
    .where(
        one_run(),
        runs.c.state == _RUNNING,
        runs.c.lease_id.in_(
            select(leases.c.id).where(
                leases.c.process == bindparam("b_process"), leases.c.pid == bindparam("b_pid")
            )
        ),
    )
    .values(
        state=literal_state(RunState.FAILED),
        error=bindparam("b_error"),
        finished_at=db_now(),
    )
)

# -- the owner's endings -------------------------------------------------------------------------

END: Update = (
    update(runs)
    .where(_owned())
    .values(state=bindparam("b_state"), error=bindparam("b_error"), finished_at=db_now())
)

#: `END` of a run whose result is kept.
END_STORED: Update = END.values(result=bindparam("b_result"))

#: `END` of a run whose callbacks are about to be sent.
END_UNSENT: Update = END_STORED.values(callbacks_pending=true())

_ENDED: Any = and_(
    one_run(),
    runs.c.fence == bindparam("b_fence"),
    runs.c.state.in_([literal_state(state) for state in RunState if state.final]),
)

STORE_RESULT: Update = update(runs).where(_ENDED).values(result=bindparam("b_result"))

KEEP_RESULT: Update = STORE_RESULT.where(runs.c.callbacks_pending)

CALLBACKS_SENT_STORED: Update = update(runs).where(_ENDED).values(callbacks_pending=null())

CALLBACKS_SENT: Update = CALLBACKS_SENT_STORED.values(result=null())

#: `END` for a transaction of the body, which does not know yet what it will return.
FINISH: Update = (
    update(runs)
    .where(_owned())
    .values(
        state=literal_state(RunState.SUCCEEDED),
        error=null(),
        callbacks_pending=bindparam("b_pending"),
        finished_at=db_now(),
    )
)

#: Changes nothing, and waits for every transaction that has changed the row.
HOLD: Update = update(runs).where(_owned()).values(fence=bindparam("b_fence"))

LET_GO: Update = (
    update(runs)
    .where(_ENDED)
    .values(
        lease_id=null(),
        next_emit_at=null(),
        message=func.coalesce(runs.c.message, bindparam("b_message", type_=FreeText())),
    )
)

REPAIR: Update = (
    update(runs)
    .where(_ENDED, LEASE_GONE)
    .values(
        fence=runs.c.fence + number(1),
        lease_id=bindparam("b_lease"),
        claim_id=bindparam("b_claim"),
    )
)

#: `REPAIR` where callbacks are to be sent: their late owner may have told meanwhile that they are.
REPAIR_UNSENT: Update = REPAIR.where(runs.c.callbacks_pending)

REPAIR_READ_BACK: Select[Any] = select(runs.c.fence).where(
    one_run(), runs.c.claim_id == bindparam("b_claim"), runs.c.lease_id == bindparam("b_lease")
)

GIVE_BACK: Update = (
    update(runs)
    .where(_owned())
    .values(
        lease_id=null(),
        # A claim that was given back is no attempt that failed.
        attempts=runs.c.attempts - number(1),
        state=literal_state(RunState.SCHEDULED),
        error=bindparam("b_error"),
        next_emit_at=after("b_grace"),
        message=func.coalesce(runs.c.message, bindparam("b_message", type_=FreeText())),
    )
)

RETRY: Update = (
    update(runs)
    .where(_owned())
    .values(
        state=_RETRYING,
        lease_id=null(),
        retries=bindparam("b_retries"),
        attempts=number(0),
        emit_count=number(0),
        due_at=after("b_due"),
        next_emit_at=after("b_grace"),
        message=bindparam("b_message"),
        deadline=bindparam("b_deadline"),
    )
)
