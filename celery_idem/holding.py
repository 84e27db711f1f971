"""What becomes of a lease around a claim, and around the body that owns a run.

Owns the rules by which whoever executes something lets its lease go: given back when everything
under it is known to have ended, discarded when its claim is in doubt, abandoned when the end of its
body is. Must not know messages, nor
what a body is.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from celery_idem.lease import Lease, Leases
from celery_idem.lock import Locks
from celery_idem.run import Run


@contextmanager
def claiming(leases: Leases, lease: Lease) -> Iterator[None]:
    """For the claim of a run: without its answer it may stand, and its lease must end."""
    try:
        yield
    except BaseException:
        leases.discard(lease)
        raise


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
