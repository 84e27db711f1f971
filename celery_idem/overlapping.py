"""Runs of one entry of the schedule that would go on at the same time.

Owns the decision, made by a worker that has claimed a slot: a lock called after the entry tells
whether an earlier run goes on, and of those that wait for it the earliest stays. Two slots that are
claimed at one instant cannot both find nobody. Must not know schedules.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from celery_idem.errors import Contended
from celery_idem.keys import Stamp
from celery_idem.lease import Lease
from celery_idem.lock import Locks
from celery_idem.lock.held import Lock
from celery_idem.policy import OnContended, Overlap
from celery_idem.run import UNANSWERED, Run, RunState

#: Bounds of the pause, in seconds, after which a run that waits for its entry looks again.
PAUSE = (0.5, 1.5)


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
    buffers = overlap is Overlap.BUFFER_ONE
    waits = buffers and _somebody_waits(entry, run, locks, namespace)
    goes_on = f"an earlier run of entry {entry!r} goes on"
    if not isinstance(found, Lock):
        raise Contended(name, 0.0, *_then(overlap, run, waits, goes_on), seconds=_soon())
    try:
        if buffers and _somebody_looks(entry, run, locks, namespace):
            raise Contended(name, 0.0, *_then(overlap, run, waits, goes_on), seconds=_soon())
        if waits:
            # The turn of that one: it looks in a moment.
            why = f"an earlier run of entry {entry!r} has waited for longer"
            raise Contended(name, 0.0, OnContended.RETRY, why, seconds=_soon())
        yield
    finally:
        locks.release(found)


def _then(overlap: Overlap, run: Run, waits: bool, why: str) -> tuple[str, str]:
    """What becomes of the run, and why."""
    # One that has begun before is not skipped half-way: it may be a retry, which can be faster
    # than its own first try is in leaving.
    if run.retries or run.attempt > 1:
        return OnContended.RETRY, why
    if overlap is Overlap.SKIP:
        return OnContended.SKIP, why
    return (OnContended.SKIP, f"{why}, and one waits for it") if waits else (OnContended.RETRY, why)


def _soon() -> float:
    return random.uniform(*PAUSE)


def _somebody_looks(entry: str, run: Run, locks: Locks, namespace: str) -> bool:
    """Whether a run of an earlier slot has an owner, though not the lock, which we hold.

    It has waited, and is about to learn that it must wait again; or its body has just ended; or it
    began while the entry had no such policy.
    """
    begun = locks.leases.ledger.unfinished_before(namespace, run.task, run.key.slot)
    return any(
        row.entry == entry and row.state is RunState.RUNNING and (row.lease_seconds or 0.0) > 0
        for row in begun
    )


def _somebody_waits(entry: str, run: Run, locks: Locks, namespace: str) -> bool:
    """Whether a run of an earlier slot waits. Of two that do, the later one gives way."""
    waiting = locks.leases.ledger.given_back_before(namespace, run.key.slot)
    # A claim that was not answered has met nobody: its message comes, and finds the lock as it is.
    return any(row.entry == entry and row.error != UNANSWERED for row in waiting)
