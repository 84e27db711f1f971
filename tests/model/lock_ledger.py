"""The verbs of a ledger about locks, as functions from scenes to scenes.

What a statement does is not written down here: a real ledger in memory is opened on the scene, its
verb is called, and it is closed again; `Ledger.take` is stepped statement by statement. Must not
know who calls, or why.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from celery_idem.errors import LedgerUnavailable
from celery_idem.ledger import LockRequest, LockRow, Taken
from celery_idem.ledger.memory import MemoryLedger
from celery_idem.ledger.memory_tables import LeaseInMemory, SeatInMemory
from tests.contract.stores import LONG, SettableClock
from tests.model.books import owner_of
from tests.model.lock_scene import NAME, NOW, Scene, Seat, aged
from tests.model.replay import LOST, Answered, Next


class _Replaying(Answered):
    """The verbs of locks."""

    def read_seats(self, name: str, seats: int) -> list[LockRow]:
        return list(self._ask("read_seats", seats))

    def try_take(self, request: LockRequest, seen: LockRow) -> Any:
        return self._ask("try_take", request, seen)

    def bury(self, lease_id: str) -> None:
        self._ask("bury", lease_id)


class LockLedger:
    """A class of ledgers, asked in the same scenes again and again."""

    def __init__(self, ledger: type[MemoryLedger]) -> None:
        self._class = ledger
        self._replaying: Any = type("ReplayingLocks", (_Replaying, ledger), {})
        self._replayed: dict[Any, Any] = {}
        self._executed: dict[Any, Any] = {}

    def replay(self, request: LockRequest, answers: tuple[Any, ...]) -> Any:
        """The next statement of `Ledger.take` as a tuple, or what it has returned, or `LOST`."""
        known = (request, answers)
        if known not in self._replayed:
            ledger = self._replaying()
            ledger.answers = list(answers)
            try:
                found = ledger.take(request)
            except Next as next_:
                found = next_.call
            except LedgerUnavailable:
                found = LOST
            self._replayed[known] = found
        return self._replayed[known]

    def execute(self, scene: Scene, call: tuple[Any, ...]) -> tuple[Scene, Any]:
        """What a statement makes of a scene, and its answer."""
        known = (scene.seats, scene.leases, call)
        if known not in self._executed:
            ledger = self._open(scene)
            answer = self._perform(ledger, *call)
            self._executed[known] = (*self._closed(ledger, scene), answer)
        seats, leases, moved, answer = self._executed[known]
        after = scene._replace(seats=seats, leases=leases)
        after = aged(after, moved) if moved else after
        return after, answer

    @staticmethod
    def _perform(ledger: MemoryLedger, verb: str, *rest: Any) -> Any:
        if verb == "read_seats":
            return tuple(ledger.read_seats(NAME, rest[0]))
        if verb == "bury":
            return ledger.bury(rest[0])
        if verb == "release":
            return ledger.release_seat(Taken(NAME, *rest))
        return None if ledger.try_take(*rest) is None else NOW

    def _open(self, scene: Scene) -> MemoryLedger:
        clock = SettableClock()
        ledger = self._class(clock)
        for lease, alive in scene.leases:
            ends = clock.now() + timedelta(seconds=LONG if alive else -1)
            ledger.tables.leases[lease] = LeaseInMemory(owner_of(lease, True), ends)
        for number, seat in enumerate(scene.seats):
            if seat is not None:
                left = {None: None, 1: LONG, 0: -1.0}[seat.ends]
                at = None if left is None else clock.now() + timedelta(seconds=left)
                ledger.tables.seats[NAME, number] = SeatInMemory(
                    seat.fence, seat.lease, seat.claim, at
                )
        return ledger

    @staticmethod
    def _closed(ledger: MemoryLedger, scene: Scene) -> tuple[Any, Any, set[int]]:
        """The seats and leases, and which seats have got another fence."""
        seats: list[Seat | None] = []
        now = ledger.now()
        moved = set()
        for number, before in enumerate(scene.seats):
            it = ledger.tables.seats.get((NAME, number))
            if it is None:
                seats.append(None)
                continue
            if before is not None and it.fence != before.fence:
                moved.add(number)
            ends = None if it.ends_at is None else int(it.ends_at > now)
            seats.append(Seat(NOW, it.lease_id, it.claim_id, ends))
        leases = frozenset(
            (name, lease.expires_at > now) for name, lease in ledger.tables.leases.items()
        )
        return tuple(seats), leases, moved
