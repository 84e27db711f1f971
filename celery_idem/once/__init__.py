"""The same guarantee outside of Celery: in cron jobs, threads, and the schedulers of others.

Owns what `Ledger.once` and `Ledger.idempotent` do. Claims, leases, fences, transactions and endings
are those of tasks; here is what takes the place of a message and its worker:

- `every`: from a clock to a slot
- `party`: what a process has of a ledger
- `block`: a run from claim to end
- `repeated`: a function that is called by several processes

Must not know messages, tasks or schedules.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import datetime, timedelta, tzinfo
from typing import ParamSpec, TypeVar

from celery_idem.errors import InvalidRunKey
from celery_idem.keys import RunKey, check_text
from celery_idem.ledger import Ledger
from celery_idem.ledger.outside import Terms
from celery_idem.once.block import Block
from celery_idem.once.every import every_of
from celery_idem.once.party import Job, Party, job_of, leave
from celery_idem.once.repeated import Repeated, name_of
from celery_idem.run import Run

__all__ = ["OUTSIDE", "Block", "Job", "Party", "once"]

P = ParamSpec("P")
R = TypeVar("R")


def once(ledger: Ledger, key: str, slot: datetime | None, terms: Terms) -> Block:
    """The block of `Ledger.once`."""
    job = job_of(check_text(key), terms, "once")
    return Block(ledger, job, _run_key(job, slot))


def _run_key(job: Job, slot: datetime | None) -> RunKey:
    if slot is None:
        return RunKey(f"{job.namespace}:{job.name}")
    if not isinstance(slot, datetime):
        kind = type(slot).__name__
        raise InvalidRunKey(job.name, f"its slot must be an aware datetime, not {kind}")
    if slot.utcoffset() is None:
        raise InvalidRunKey(job.name, f"its slot {slot!r} has no time zone")
    return RunKey.for_slot(job.namespace, job.name, slot)


class _Outside:
    """See `celery_idem.ledger.outside.Outside`."""

    def once(
        self, ledger: Ledger, key: str, slot: datetime | None, terms: Terms
    ) -> AbstractContextManager[Run | None]:
        return once(ledger, key, slot, terms)

    def idempotent(
        self,
        ledger: Ledger,
        every: str | float | timedelta,
        key: str | None,
        timezone: str | tzinfo,
        terms: Terms,
    ) -> Callable[[Callable[P, R]], Callable[P, R | None]]:
        slot_at = every_of(every, timezone)
        # Checked here, so that the error is raised where the mistake is.
        job_of("" if key is None else check_text(key), terms, "idempotent")

        def decorate(function: Callable[P, R]) -> Callable[P, R | None]:
            job = job_of(name_of(function, key), terms, "idempotent")
            return Repeated(ledger, job, slot_at).around(function)

        return decorate

    def close(self, ledger: Ledger) -> None:
        leave(ledger)


OUTSIDE = _Outside()
