"""Runs of one entry of the schedule that would go on at the same time.

Owns the decision, made by a worker that has claimed a slot: a lock called after the entry tells
whether an earlier run goes on, and of those that wait for it the earliest stays. Two slots that are
claimed at one instant cannot both find nobody. Must not know schedules.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from celery_idem.errors import Contended
from celery_idem.keys import Stamp
from celery_idem.lease import Lease
from celery_idem.ledger.rows import lock_name
from celery_idem.lock import Lock, Locks
from celery_idem.policy import OnContended, Overlap
from celery_idem.run import Run


def alone(
    stamp: Stamp | None, run: Run, locks: Locks, namespace: str
) -> AbstractContextManager[None]:
    """What the body of a run is executed in, as its entry's ``overlap`` has it.

    Raises:
        Contended: (on entry) an earlier run goes on.
        LedgerError: (on entry) the ledger did not answer.
    """
    if stamp is None or stamp.entry is None or stamp.overlap is Overlap.ALLOW:
        return nullcontext()
    return _alone(stamp.entry, stamp.overlap, run, locks, namespace)


@contextmanager
def _alone(entry: str, overlap: Overlap, run: Run, locks: Locks, namespace: str) -> Iterator[None]:
    assert isinstance(run.tenure, Lease)
    name = f"overlap:{entry}"
    found = locks.acquire([name], run.tenure)
    if not isinstance(found, Lock):
        why = f"an earlier run of entry {entry!r} goes on"
        if overlap is Overlap.SKIP:
            raise Contended(name, 0.0, OnContended.SKIP, why)
        if _somebody_waits(entry, run, locks, namespace, lock_name(namespace, name)):
            raise Contended(name, 0.0, OnContended.SKIP, f"{why}, and one waits for it")
        raise Contended(name, 0.0, OnContended.RETRY, why)
    try:
        yield
    finally:
        locks.release(found)


def _somebody_waits(entry: str, run: Run, locks: Locks, namespace: str, stored: str) -> bool:
    """Whether a run of an earlier slot waits for the one that goes on.

    Of two that wait, each sees the other: the later one gives way, whoever asks first.
    """
    ledger = locks.leases.ledger
    holders = {row.lease_id for row in ledger.read_seats(stored, 1)}
    return any(
        row.entry == entry and (row.lease_id is None or row.lease_id not in holders)
        for row in ledger.claimed_before(namespace, run.key.slot)
    )
