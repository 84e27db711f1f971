"""The guarded statements of leases, and those of the history.

Owns the SQL text of these verbs; those of runs are in `statements`. Only the ones that renew and
bury compare times of leases. Must not execute anything.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from sqlalchemy import (
    Delete,
    Insert,
    Select,
    Update,
    bindparam,
    case,
    delete,
    func,
    insert,
    literal_column,
    select,
    update,
)

from celery_idem.ledger.dialects import db_now, insert_if_absent
from celery_idem.ledger.schema import history, leases
from celery_idem.ledger.statements import after, number

# -- leases --------------------------------------------------------------------------------------

REGISTER: Insert = insert(leases).values(
    id=bindparam("b_lease"),
    kind=bindparam("b_kind"),
    host=bindparam("b_host"),
    pid=bindparam("b_pid"),
    process=bindparam("b_process"),
    namespace=bindparam("b_namespace"),
    started_at=db_now(),
    expires_at=after("b_micros"),
)

_THESE = leases.c.id.in_(bindparam("b_leases", expanding=True))

#: Only those that renew and bury compare times of leases to decide anything.
RENEW: Update = (
    update(leases)
    .where(_THESE, leases.c.expires_at > db_now())
    .values(expires_at=after("b_micros"))
)

ALIVE: Select[Any] = select(leases.c.id).where(_THESE, leases.c.expires_at > db_now())

BURY: Delete = delete(leases).where(
    leases.c.id == bindparam("b_lease"), leases.c.expires_at <= db_now()
)

EXPIRED: Select[Any] = (
    select(leases.c.id)
    .where(leases.c.expires_at <= db_now())
    .order_by(leases.c.expires_at)
    .limit(bindparam("b_limit"))
)

BURY_THESE: Delete = delete(leases).where(_THESE, leases.c.expires_at <= db_now())

RELEASE_CHILD: Delete = delete(leases).where(
    leases.c.process == bindparam("b_process"), leases.c.pid == bindparam("b_pid")
)

RELEASE: Delete = delete(leases).where(_THESE)

LIVE_BEATS: Select[Any] = select(leases.c.host, leases.c.pid, leases.c.started_at).where(
    leases.c.kind == literal_column("'beat'"),
    leases.c.namespace == bindparam("b_namespace"),
    leases.c.expires_at > db_now(),
)

LEASE_COUNTS: Select[Any] = select(
    leases.c.kind,
    func.count().label("all"),
    func.sum(case((leases.c.expires_at > db_now(), number(1)), else_=number(0))).label("live"),
).group_by(leases.c.kind)

# -- history -------------------------------------------------------------------------------------


@lru_cache
def record(dialect: str) -> Insert:
    """A line is named by its writer, so that its repetition is not a second one."""
    return insert_if_absent(dialect, history).values(
        id=bindparam("b_line"),
        at=db_now(),
        kind=bindparam("b_kind"),
        run_key=bindparam("b_key"),
        slot=bindparam("b_slot"),
        task=bindparam("b_task"),
        task_id=bindparam("b_task_id"),
        host=bindparam("b_host"),
        pid=bindparam("b_pid"),
        detail=bindparam("b_detail"),
    )


LINES: Select[Any] = (
    select(history)
    .where(history.c.run_key == bindparam("b_key"), history.c.slot == bindparam("b_slot"))
    .order_by(history.c.at, history.c.id)
)
