"""What the holder of a named lock says to the ledger.

Owns the signatures of these verbs, the promise of each, and how they are put together into taking a
lock. A lock lives as its holder's lease does: it is free when it was released, or when that lease
is gone. Must not know how locks are stored.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from celery_idem.ledger.rounds import rounds


@dataclass(frozen=True, slots=True)
class LockRequest:
    """What a thread asks for.

    Attributes:
        name: stored name of the lock.
        lease_id: the lease under which it is to be held.
        claim_id: new for each request; recognises it after a lost answer.
        seats: how many may hold the lock at once.
        max_hold: seconds after which it is free whatever its holder does; None for no such bound.
        first_seat: the seat that is tried first.
    """

    name: str
    lease_id: str
    claim_id: str
    seats: int = 1
    max_hold: float | None = None
    first_seat: int = 0


@dataclass(frozen=True, slots=True)
class LockRow:
    """A seat of a lock as the ledger shows it, by the database's clock.

    Attributes:
        fence: grows with each taking; 0 for a seat that was never taken.
        lease_id: its holder's lease; None once it was released.
        lease_seconds: seconds until that lease expires; None if its row is gone.
        ends_in: seconds until its holder's ``max_hold`` is over; None if there is no such bound.
    """

    seat: int
    fence: int = 0
    lease_id: str | None = None
    claim_id: str | None = None
    lease_seconds: float | None = None
    ends_in: float | None = None

    @property
    def is_free(self) -> bool:
        """True if nobody holds it, and nobody is about to: only taking it changes that."""
        ended = self.ends_in is not None and self.ends_in <= 0
        return self.lease_id is None or self.lease_seconds is None or ended


@dataclass(frozen=True, slots=True)
class Taken:
    """A seat of a lock that was taken.

    Attributes:
        fence: larger than that of every earlier holder of the seat.
    """

    name: str
    seat: int
    fence: int


class LockVerbs(ABC):
    """Named locks."""

    @abstractmethod
    def bury(self, lease_id: str) -> None:
        """Delete the lease if it has expired by the database's clock."""

    @abstractmethod
    def read_seats(self, name: str, seats: int) -> list[LockRow]:
        """The first `seats` seats of a lock; without those that were never taken."""

    @abstractmethod
    def try_take(self, request: LockRequest, seen: LockRow) -> int | None:
        """Take a free seat by compare-and-set on the fence seen.

        Returns:
            The new fence; None if nothing was changed.
        """

    @abstractmethod
    def release_seat(self, taken: Taken) -> bool:
        """Give a seat of this fence back; False if it has another holder, or none."""

    @abstractmethod
    def held_locks(self) -> list[tuple[str, LockRow]]:
        """Every seat that was not released: stored name of the lock, and the seat."""

    def take(self, request: LockRequest) -> Taken | None:
        """Take a seat of a lock, or learn that all are held.

        Raises:
            LedgerUnavailable: the database did not answer; a seat may be held under the request's
                lease, which must not be used for anything else.
        """
        for _ in rounds():
            lost_one = False
            for seen in self._seats(request):
                if seen.lease_id == request.lease_id and seen.claim_id == request.claim_id:
                    return Taken(request.name, seen.seat, seen.fence)  # Its answer was lost.
                if not seen.is_free:
                    continue
                fence = self.try_take(request, seen)
                if fence is not None:
                    return Taken(request.name, seen.seat, fence)
                lost_one = True
            if not lost_one:
                break
        return None

    def _seats(self, request: LockRequest) -> list[LockRow]:
        """Every seat, the wanted one first; leases that have expired are buried."""
        known = {row.seat: row for row in self.read_seats(request.name, request.seats)}
        order = [(request.first_seat + n) % request.seats for n in range(request.seats)]
        found = []
        for seat in order:
            row = known.get(seat, LockRow(seat))
            if row.lease_id and (row.lease_seconds or 0.0) <= 0 and not row.is_free:
                self.bury(row.lease_id)
                row = next(
                    it for it in self.read_seats(request.name, request.seats) if it.seat == seat
                )
            found.append(row)
        return found
