"""Locks that a block holds.

Owns what the block is given, for how long it may trust it, and which locks this thread has entered.
Must not know how a lock is taken.
"""

from __future__ import annotations

import os
from contextvars import ContextVar

from celery_idem.clock import SYSTEM
from celery_idem.errors import LockLost
from celery_idem.lease import Lease
from celery_idem.ledger import Taken

#: What this thread (or greenlet, or context) has entered; some of it may have been left elsewhere.
ENTERED: ContextVar[tuple[Lock, ...]] = ContextVar("celery_idem_entered", default=())


class Lock:
    """What `critical_section` gives: locks that its block holds.

    Attributes:
        names: in the order in which they were taken.
        fences: by name. Each is larger than those of all earlier holders (of the same seat, if
            several may hold the lock at once): a store that remembers the largest one it has seen
            can refuse late writes.
    """

    def __init__(
        self, taken: dict[str, Taken], lease: Lease, max_hold: float | None, started: float
    ) -> None:
        self.names = tuple(taken)
        self.fences = {name: it.fence for name, it in taken.items()}
        self.taken = taken
        self.lease = lease
        self._ends_at = None if max_hold is None else started + max_hold
        self._released = False
        self._pid = os.getpid()

    @property
    def fence(self) -> int:
        """The fence of a single lock.

        Raises:
            ValueError: there are several; ask `fences`.
        """
        if len(self.fences) != 1:
            raise ValueError(f"{len(self.fences)} locks are held here: ask fences[name]")
        return next(iter(self.fences.values()))

    @property
    def trusted_for(self) -> float:
        """Seconds for which the locks are held for certain; 0.0: no longer."""
        if self._released:
            return 0.0
        left = self.lease.trusted_for
        if self._ends_at is not None:
            left = min(left, self._ends_at - SYSTEM.elapsed())
        return max(0.0, left)

    @property
    def lost(self) -> bool:
        """True once somebody else may hold one of the locks."""
        return self.trusted_for <= 0

    def check(self) -> None:
        """Raise `LockLost` unless the locks are held for certain."""
        if self.lost:
            raise LockLost(self.names[0], self.fences[self.names[0]], self.reason)

    @property
    def reason(self) -> str:
        """Why it is lost."""
        if self._released:
            return "it was released"
        if self.lease.trusted_for <= 0:
            return "its lease was not renewed in time"
        return "it was held for longer than max_hold"

    @property
    def is_mine(self) -> bool:
        """True until it is released; False in a forked child, which holds nothing of its parent."""
        return not self._released and self._pid == os.getpid()

    def released(self) -> None:
        """Nothing is held any more."""
        self._released = True

    def __repr__(self) -> str:
        return f"<Lock {', '.join(self.names)} trusted_for={self.trusted_for:.3f}>"


def entered() -> tuple[Lock, ...]:
    """The locks whose blocks this thread is in."""
    return tuple(lock for lock in ENTERED.get() if lock.is_mine)
