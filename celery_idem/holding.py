"""What becomes of a lease around a claim, and around the body that owns a run.

Owns the rules by which whoever executes something lets its lease go: given back when everything
under it is known to have ended, abandoned when anything is in doubt; and what becomes of a claim
that is. Must not know messages, nor what a body is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from celery_idem.lease import Lease, Leases
from celery_idem.ledger import Ledger
from celery_idem.lock import Locks
from celery_idem.run import UNANSWERED, Claim, ClaimRequest, Run, RunState

#: Seconds after which a run that was given back is published again, if nobody has claimed it by
#: then: its message was put back, and comes earlier.
GRACE = 60.0


def claimed(
    leases: Leases,
    lease: Lease,
    make_request: Callable[[], ClaimRequest],
    give_up: Callable[[ClaimRequest, BaseException], None],
) -> tuple[ClaimRequest, Claim]:
    """Claim a run: what was asked, and the answer.

    Arguments:
        give_up: called if there is none, as the claim may stand, or come to.
    """
    request: ClaimRequest | None = None
    try:
        request = make_request()
        return request, leases.ledger.claim(request)
    except BaseException as exc:
        leases.abandon(lease)
        if request is not None:
            give_up(request, exc)
        raise


def take_back(
    leases: Leases, lease: Lease, request: ClaimRequest, message: str | None = None
) -> None:
    """Nothing is executed under this claim, which may stand, or come to: it is no attempt.

    Arguments:
        message: JSON of its message, for a run that has no other.
    """
    leases.take_back(lease, partial(unclaim, request, message))


def unclaim(request: ClaimRequest, message: str | None, ledger: Ledger) -> None:
    """Give the run back if it is running by this very claim; repeated, it changes nothing more.

    One that was taken over has begun, in time perhaps: the next one takes it over as well.

    Raises:
        LedgerError: it may have been given back, or not.
    """
    seen = ledger.read(request.key)
    if seen is None or seen.attempts > 1:
        return
    if (seen.state, seen.claim_id) == (RunState.RUNNING, request.claim_id):
        ledger.give_back(seen.key, seen.fence, UNANSWERED, GRACE, message)


@contextmanager
def owning(run: Run, lease: Lease, leases: Leases, locks: Locks) -> Iterator[None]:
    """Free the lease after the body, unless something under it is in doubt."""
    try:
        yield
    finally:
        try:
            locks.release_all(lease)
        finally:
            if run.ended:
                leases.give_back(lease)
            else:
                # The thread is torn out of the body (a hard stop), or an ending could not be
                # written: what the lease owns must become free, which a renewed one does not.
                leases.abandon(lease)
