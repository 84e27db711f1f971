"""What becomes of a lease around a claim, and around the body that owns a run.

Owns the rules by which whoever executes something lets its lease go: given back when everything
under it is known to have ended, discarded when its claim is in doubt, abandoned when the end of its
body is. Must not know messages, nor
what a body is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from celery_idem.lease import Lease, Leases
from celery_idem.ledger import Ledger
from celery_idem.lock import Locks
from celery_idem.run import Claim, ClaimRequest, Run, RunState


def claimed(
    leases: Leases,
    lease: Lease,
    make_request: Callable[[], ClaimRequest],
    grace: float | None,
) -> tuple[ClaimRequest, Claim]:
    """Claim a run: what was asked, and the answer.

    Without an answer the claim may stand, though nothing is executed under it: it is taken back as
    soon as the ledger answers.

    Arguments:
        grace: seconds after which such a run is published again, if nobody has claimed it by then;
            None: it is left to whoever takes it over.
    """
    request: ClaimRequest | None = None
    try:
        request = make_request()
        return request, leases.ledger.claim(request)
    except BaseException:
        take_back(leases, lease, request, grace)
        raise


def take_back(
    leases: Leases, lease: Lease, request: ClaimRequest | None, grace: float | None
) -> None:
    """Nothing is executed under a claim, which may stand, or come to: see `claimed`."""
    if request is None or grace is None:
        leases.discard(lease)
    else:
        leases.discard(lease, partial(_unclaim, request, grace))


def _unclaim(request: ClaimRequest, grace: float, ledger: Ledger) -> None:
    seen = ledger.read(request.key)
    if seen and seen.state is RunState.RUNNING and seen.claim_id == request.claim_id:
        ledger.give_back(seen.key, seen.fence, "its claim was not answered", grace)


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
