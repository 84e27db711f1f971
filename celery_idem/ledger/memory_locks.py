"""The ledger in memory: named locks.

Owns the verbs of locks on `memory_tables`, with the guards that the statements of `locks` have.
Must not know what is done under a lock.
"""

from __future__ import annotations

from datetime import timedelta

from celery_idem.keys import EPOCH
from celery_idem.ledger.lock_verbs import LockRequest, LockRow, Taken
from celery_idem.ledger.memory_pauses import PausesInMemory
from celery_idem.ledger.memory_tables import SeatInMemory
from celery_idem.ledger.rows import micros


class LocksInMemory(PausesInMemory):
    """The verbs of locks."""

    def read_seats(self, name: str, seats: int) -> list[LockRow]:
        with self._lock:
            return [
                self._shown_seat(number, seat)
                for (its, number), seat in sorted(self.tables.seats.items(), key=lambda it: it[0])
                if its == name and number < seats
            ]

    def try_take(self, request: LockRequest, seen: LockRow) -> int | None:
        with self._lock:
            place = (request.name, seen.seat)
            seat = self.tables.seats.get(place)
            if seat is None and seen.fence:
                return None
            if seat is None:
                fence = micros((self.clock.now() - EPOCH).total_seconds())
                seat = self.tables.seats[place] = SeatInMemory(fence, None, None)
            elif not seen.fence:
                own = seat.claim_id == request.claim_id and seat.lease_id is not None
                return seat.fence if own else None
            elif seat.fence != seen.fence or not self._shown_seat(seen.seat, seat).is_free:
                return None
            else:
                seat.fence += 1
            seat.lease_id, seat.claim_id = request.lease_id, request.claim_id
            hold = request.max_hold
            seat.ends_at = None if hold is None else self.clock.now() + timedelta(seconds=hold)
            return seat.fence

    def release_seat(self, taken: Taken) -> bool:
        with self._lock:
            seat = self.tables.seats.get((taken.name, taken.seat))
            if seat is None or seat.fence != taken.fence or seat.lease_id is None:
                return False
            seat.lease_id = seat.ends_at = None
            return True

    def held_locks(self) -> list[tuple[str, LockRow]]:
        with self._lock:
            return [
                (name, self._shown_seat(number, seat))
                for (name, number), seat in sorted(self.tables.seats.items(), key=lambda it: it[0])
                if seat.lease_id is not None
            ]

    def _shown_seat(self, number: int, seat: SeatInMemory) -> LockRow:
        lease, now = self.tables.leases.get(seat.lease_id or ""), self.clock.now()
        left = None if lease is None else (lease.expires_at - now).total_seconds()
        ends_in = None if seat.ends_at is None else (seat.ends_at - now).total_seconds()
        return LockRow(number, seat.fence, seat.lease_id, seat.claim_id, left, ends_in)
