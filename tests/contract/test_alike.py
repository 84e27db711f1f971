"""All ledgers answer alike to any history of verbs, also if every answer is lost once.

The ledger in memory says what must come out. The database is asked twice: as it is, and through a
connection on which each statement is executed, its answer lost, and executed again.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import pytest
from sqlalchemy import update

from celery_idem.errors import LeaseLost, ResultLost
from celery_idem.keys import RunKey
from celery_idem.ledger import HANDOVER, Ledger, NewSlot, Owner, Reservation, Retry
from celery_idem.ledger.memory import MemoryLedger
from celery_idem.ledger.schema import leases
from celery_idem.ledger.sql import SqlLedger
from celery_idem.run import ClaimOutcome, ClaimRequest, RunState
from tests.contract.stores import FIRST, LONG, Store, fresh

pytestmark = pytest.mark.slow

T = TypeVar("T")

KEYS = range(2)
LEASES = range(3)
SENDERS = range(2)


def lose_answers(ledger: SqlLedger) -> None:
    """Execute every statement twice, as after a lost answer."""
    repeat = ledger.database.repeat

    def twice(once: Callable[[], T]) -> T:
        repeat(once)
        return repeat(once)

    ledger.database.repeat = twice  # type: ignore[method-assign]


@dataclass
class World:
    """One ledger, and the names under which it knows the same things as the others."""

    store: Store
    prefix: str = field(default_factory=lambda: fresh("world"))
    requests: dict[int, ClaimRequest] = field(default_factory=dict)
    lives: dict[int, int] = field(default_factory=lambda: dict.fromkeys(LEASES, 0))
    reservations: dict[int, Reservation] = field(default_factory=dict)
    turns: dict[int, int] = field(default_factory=lambda: dict.fromkeys(KEYS, 0))
    batches: int = 0

    @property
    def ledger(self) -> Ledger:
        return self.store.ledger

    def key(self, number: int) -> RunKey:
        return RunKey(f"{self.prefix}:{self.turns[number]}.{number}", FIRST)

    def lease(self, number: int) -> str:
        """The present life of a lease; a lease that is gone never returns."""
        return f"{self.prefix}/{number}.{self.lives[number]}"

    def batch(self) -> str:
        return f"{self.prefix}/batch {self.batches}"

    def start(self) -> None:
        for number in LEASES:
            self.register(number)

    def register(self, number: int) -> None:
        self.lives[number] += 1
        owner = Owner("worker", "host", number, self.prefix)
        self.ledger.register(self.lease(number), owner, LONG)

    # -- what may happen ------------------------------------------------------------------------

    def claim(
        self,
        number: int,
        lease: int,
        retries: int,
        abandon: bool,
        sender: int,
        free_after: float | None,
        expired: bool = False,
    ) -> object:
        request = ClaimRequest(
            key=self.key(number),
            task="shop.bill",
            namespace=self.prefix,
            entry=None,
            task_id=f"task {sender}",
            retries=retries,
            lease_id=self.lease(lease),
            claim_id=fresh("claim"),
            max_attempts=3,
            abandon_on_crash=abandon,
            expired=expired,
            free_after=free_after,
        )
        claim = self.ledger.claim(request)
        if claim.outcome is ClaimOutcome.CLAIMED:
            self.requests[number] = request
        if claim.outcome is ClaimOutcome.KILLED:
            return ClaimOutcome.FINISHED, 0, 0  # As a try whose answer was lost finds it.
        return claim.outcome, claim.fence, claim.attempts

    def reserve(self, number: int, sender: int, free_after: float | None) -> object:
        reservation = Reservation(
            key=self.key(number),
            namespace=self.prefix,
            task="shop.bill",
            task_id=f"task {sender}",
            claim_id=fresh("reservation"),
            message="{}",
            free_after=free_after,
        )
        self.reservations[number] = reservation
        seen = self.ledger.reserve(reservation)
        return seen and (seen.state, seen.fence, seen.entry or seen.task_id)

    def cancel(self, number: int) -> object:
        if number in self.reservations:
            self.ledger.cancel(self.reservations[number])
        return None

    def leave(self, number: int, sender: int) -> object:
        self.ledger.leave(self.key(number), f"task {sender}")
        return None

    def claim_again(self, number: int) -> object:
        """The last claim that won, repeated: at once, or long after it has ended."""
        if number not in self.requests:
            return None
        claim = self.ledger.claim(self.requests[number])
        return claim.outcome, claim.fence, claim.attempts

    def end(self, number: int, behind: int, state: RunState) -> object:
        return self._ending(number, behind, lambda k, f: self.ledger.end(k, f, state, "why"))

    def retry(self, number: int, behind: int, retries: int) -> object:
        retry = Retry(retries, 0.0, "{}", grace=0.0)
        return self._ending(number, behind, lambda k, f: self.ledger.retry(k, f, retry))

    def give_back(self, number: int, behind: int) -> object:
        return self._ending(number, behind, lambda k, f: self.ledger.give_back(k, f, "why", 0.0))

    def _ending(self, number: int, behind: int, ending: Callable[[RunKey, int], object]) -> object:
        row = self.ledger.read(self.key(number))
        try:
            return ending(self.key(number), row.fence - behind if row else 1)
        except (LeaseLost, ResultLost) as exc:
            return type(exc)

    def fail_of_child(self, number: int, lease: int) -> object:
        self.ledger.fail_of_child(self.key(number), self.prefix, lease, "time limit")
        return None

    def expire(self, number: int) -> object:
        lease = self.lease(number)
        if isinstance(self.ledger, MemoryLedger):
            if found := self.ledger.tables.leases.get(lease):
                found.expires_at = self.ledger.now()
        else:
            past = update(leases).where(leases.c.id == lease).values(expires_at=FIRST)
            self.store.sql._run(past)
        return None

    def renew(self) -> object:
        """As the heartbeat does: what is lost is replaced by a new lease."""
        alive = self.ledger.renew([self.lease(number) for number in LEASES], LONG)
        lost = [number for number in LEASES if self.lease(number) not in alive]
        for number in lost:
            self.register(number)
        return lost

    def bury(self, number: int) -> object:
        self.ledger.bury(self.lease(number))
        return None

    def release(self, number: int) -> object:
        self.ledger.release([self.lease(number)])
        return None

    def insert(self, number: int, claims: bool) -> object:
        self.batches += 1
        slot = NewSlot(self.key(number), self.prefix, "daily", "shop.bill", claims)
        return len(self.ledger.insert_slots([slot], self.batch()))

    def acquire(self) -> object:
        self.batches += 1
        self.store.let_pass(HANDOVER)
        rows = self.ledger.acquire_due(self.prefix, 10, self.batch())
        return sorted((row.key.text[-1], row.state, row.emit_count) for row in rows)

    def published(self) -> object:
        keys = [self.key(number) for number in KEYS]
        self.ledger.published(keys, self.batch(), 60.0)
        return None

    def close(self, number: int, state: RunState) -> object:
        self.ledger.close_unclaimed([self.key(number)], self.batch(), state, "late")
        return None

    def another(self, number: int) -> object:
        """Go on with a new run."""
        self.turns[number] += 1
        self.requests.pop(number, None)
        self.reservations.pop(number, None)
        return None

    # -- what came out --------------------------------------------------------------------------

    def runs(self) -> list[object]:
        keys = [self.key(number) for number in KEYS]
        apart = [key.of_message(f"task {sender}") for key in keys for sender in SENDERS]
        rows = [self.ledger.read(key) for key in keys + apart]
        return [
            row
            and (
                *(row.state, row.fence, row.attempts, row.retries, row.emit_count, row.error),
                *(row.message, row.entry or row.task_id, row.result, row.payload),
                row.lease_id and row.lease_id.removeprefix(self.prefix),
                row.lease_seconds is not None and row.lease_seconds > 0,
                row.finished_at is not None,
            )
            for row in rows
        ]


Chance = random.Random
ENDS = (RunState.SUCCEEDED, RunState.FAILED)
CLOSINGS = (RunState.EMITTED, RunState.SKIPPED)


def _key(chance: Chance) -> int:
    return chance.choice(KEYS)


def _lease(chance: Chance) -> int:
    return chance.choice(LEASES)


def _behind(chance: Chance) -> int:
    return chance.choice([0, 0, 0, 1])


def _sender(chance: Chance) -> int:
    return chance.choice(SENDERS)


def _free_after(chance: Chance) -> float | None:
    return chance.choice([None, 0.0, 0.0])


def _retries(chance: Chance) -> int:
    return chance.choice([0, 0, 0, 1, 1, 2])


def _asked(chance: Chance) -> tuple[int, int, int]:
    return _key(chance), _lease(chance), _retries(chance)


#: (How often, verb, its arguments.)
STEPS: list[tuple[int, str, Callable[[Chance], tuple[Any, ...]]]] = [
    (8, "claim", lambda c: (*_asked(c), c.random() < 0.1, _sender(c), _free_after(c))),
    (1, "claim", lambda c: (*_asked(c), c.random() < 0.5, _sender(c), _free_after(c), True)),
    (3, "reserve", lambda c: (_key(c), _sender(c), _free_after(c))),
    (1, "cancel", lambda c: (_key(c),)),
    (1, "leave", lambda c: (_key(c), _sender(c))),
    (3, "claim_again", lambda c: (_key(c),)),
    (2, "end", lambda c: (_key(c), _behind(c), c.choice(ENDS))),
    (3, "retry", lambda c: (_key(c), _behind(c), _retries(c))),
    (3, "give_back", lambda c: (_key(c), _behind(c))),
    (1, "fail_of_child", lambda c: (_key(c), _lease(c))),
    (2, "expire", lambda c: (_lease(c),)),
    (2, "renew", lambda c: ()),
    (2, "bury", lambda c: (_lease(c),)),
    (1, "release", lambda c: (_lease(c),)),
    (2, "insert", lambda c: (_key(c), c.random() < 0.7)),
    (3, "acquire", lambda c: ()),
    (3, "published", lambda c: ()),
    (1, "close", lambda c: (_key(c), c.choice(CLOSINGS))),
    # Runs end, or become emitted: go on with new ones.
    (1, "another", lambda c: (_key(c),)),
]
WEIGHTS = [step[0] for step in STEPS]


@pytest.mark.sample("*-0")
@pytest.mark.parametrize("seed", range(3))
def test_any_history_has_one_outcome(database: Store, seed: int) -> None:
    doubtful = replace(database, ledger=SqlLedger(database.url))
    lose_answers(doubtful.sql)
    worlds = [World(Store.in_memory()), World(database), World(doubtful)]
    for world in worlds:
        world.start()
    chance = random.Random(seed)
    history = []
    for _ in range(150):
        ((_, name, draw),) = chance.choices(STEPS, WEIGHTS)
        arguments = draw(chance)
        history.append((name, *arguments))
        expected, *found = [getattr(world, name)(*arguments) for world in worlds]
        assert found == [expected, expected], history
        expected, *found = [world.runs() for world in worlds]
        assert found == [expected, expected], history
    doubtful.ledger.close()
