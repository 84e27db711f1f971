"""The promises of locks hold in every history, and each rule and each guard is needed."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import pytest

from celery_idem.ledger import LockRequest, LockRow, Taken
from celery_idem.ledger.memory import MemoryLedger
from tests.model.histories import follow
from tests.model.lock_model import LockAlphabet, LockModel, LockRules

ALPHABETS = {
    alphabet.name: alphabet
    for alphabet in (
        # Deaths and leases that end; answers arrive.
        LockAlphabet("deaths", doubts=False, slow=True),
        LockAlphabet("doubts", crashes=False),
        # A statement arrives after its sender has given up, or repeated it.
        LockAlphabet("late", late=True, crashes=False, expiring=False),
        LockAlphabet("max_hold", hold=True, doubts=False, crashes=False, slow=True),
        # Three threads for two seats.
        LockAlphabet("seats", seats=2, threads=3, doubts=False, crashes=False, expiring=False),
    )
}

_MANY, _NEVER = "one too many is inside", LockModel.stuck


class TakesAtAnyFence(MemoryLedger):
    def try_take(self, request: LockRequest, seen: LockRow) -> int | None:
        for row in self.read_seats(request.name, seen.seat + 1):
            if row.seat == seen.seat and row.is_free:
                seen = row
        return super().try_take(request, seen)


class TakesWhatIsHeld(MemoryLedger):
    def read_seats(self, name: str, seats: int) -> list[LockRow]:
        return [replace(row, lease_id=None) for row in super().read_seats(name, seats)]

    def try_take(self, request: LockRequest, seen: LockRow) -> int | None:
        seat = self.tables.seats.get((request.name, seen.seat))
        if seat is not None and seat.fence == seen.fence:
            seat.lease_id = None
        return super().try_take(request, seen)


class DoesNotKnowWhatItHas(MemoryLedger):
    def read_seats(self, name: str, seats: int) -> list[LockRow]:
        return [replace(row, claim_id=None) for row in super().read_seats(name, seats)]

    def try_take(self, request: LockRequest, seen: LockRow) -> int | None:
        seat = self.tables.seats.get((request.name, seen.seat))
        return None if seat and not seen.fence else super().try_take(request, seen)


class ReleasesAtAnyFence(MemoryLedger):
    def release_seat(self, taken: Taken) -> bool:
        seat = self.tables.seats.get((taken.name, taken.seat))
        return super().release_seat(replace(taken, fence=seat.fence if seat else taken.fence))


class BuriesTheLiving(MemoryLedger):
    def read_seats(self, name: str, seats: int) -> list[LockRow]:
        rows = super().read_seats(name, seats)
        return [replace(row, lease_seconds=row.lease_seconds and -1.0) for row in rows]

    def bury(self, lease_id: str) -> None:
        self.tables.leases.pop(lease_id, None)


class DoesNotBury(MemoryLedger):
    """Nor does anybody else, in this search."""

    def bury(self, lease_id: str) -> None: ...


class IgnoresMaxHold(MemoryLedger):
    def try_take(self, request: LockRequest, seen: LockRow) -> int | None:
        return super().try_take(replace(request, max_hold=-1.0), seen)


class GivesTheSameFenceAgain(MemoryLedger):
    def try_take(self, request: LockRequest, seen: LockRow) -> int | None:
        fence = super().try_take(request, seen)
        if fence is not None and seen.fence:
            self.tables.seats[request.name, seen.seat].fence = seen.fence
        return fence


class Mutation(NamedTuple):
    name: str
    search: str
    broken: str
    ledger: type[MemoryLedger] = MemoryLedger
    rules: LockRules = LockRules()


def _guard(ledger: type[MemoryLedger], search: str, broken: str) -> Mutation:
    return Mutation(ledger.__name__, search, broken, ledger)


MUTATIONS = [
    _guard(TakesAtAnyFence, "late", _NEVER),
    _guard(TakesWhatIsHeld, "deaths", _MANY),
    _guard(DoesNotKnowWhatItHas, "doubts", _NEVER),
    _guard(ReleasesAtAnyFence, "deaths", "somebody else's lock is released"),
    _guard(BuriesTheLiving, "deaths", _MANY),
    _guard(DoesNotBury, "deaths", _NEVER),
    _guard(IgnoresMaxHold, "max_hold", _MANY),
    _guard(GivesTheSameFenceAgain, "deaths", _MANY),
    Mutation("checks_trust", "deaths", _MANY, rules=LockRules(checks_trust=False)),
    Mutation("trusts_no_longer", "deaths", _MANY, rules=LockRules(trusts_no_longer=False)),
    Mutation("spends", "doubts", _NEVER, rules=LockRules(spends=False)),
    Mutation("repeats", "doubts", _NEVER, rules=LockRules(repeats=False)),
]

#: Fewer scenes than a search has, at least: it must not become empty unnoticed.
SMALLEST = 1000


@pytest.mark.parametrize("alphabet", ALPHABETS.values(), ids=ALPHABETS)
def test_every_promise_of_a_lock_holds_in_every_history(alphabet: LockAlphabet) -> None:
    found = follow(LockModel(alphabet))
    assert not found.history, "\n".join(found.history)
    assert found.worlds > SMALLEST


@pytest.mark.parametrize("mutation", MUTATIONS, ids=[it.name for it in MUTATIONS])
def test_without_any_one_rule_or_guard_a_promise_of_locks_breaks(mutation: Mutation) -> None:
    found = follow(LockModel(ALPHABETS[mutation.search], mutation.ledger, mutation.rules))
    assert found.broken == mutation.broken, "\n".join(found.history)
