"""The kinds of ledger that the contract is tested on, and short names for what tests ask of them.

Owns how time passes for each of them, and how they are emptied. Must not know any one test.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Column, Table, and_, bindparam, delete, select, update

from celery_idem.clock import UTC
from celery_idem.keys import RunKey
from celery_idem.ledger import Ledger, NewSlot, Owner, Retry
from celery_idem.ledger.memory import MemoryLedger
from celery_idem.ledger.memory_tables import Tables
from celery_idem.ledger.schema import entries, leases, locks, metadata, runs
from celery_idem.ledger.sql import SqlLedger
from celery_idem.run import Claim, ClaimOutcome, ClaimRequest, RunRow, RunState

#: Seconds: much longer than a test takes, and less than that.
LONG, SHORT = 600.0, 300.0

NAMESPACE = "shop"
FIRST = datetime(2026, 3, 29, 1, 30, tzinfo=UTC)


def fresh(prefix: str) -> str:
    """A name that was not used before, in this process or another."""
    return f"{prefix}-{secrets.token_hex(8)}"


def wait_until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    """Ask again and again; fail after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.005)


@dataclass
class SettableClock:
    """A clock that stands still until a test moves it."""

    moment: datetime = FIRST + timedelta(days=1)

    def now(self) -> datetime:
        return self.moment

    def elapsed(self) -> float:
        return (self.moment - FIRST).total_seconds()

    def advance(self, seconds: float) -> None:
        self.moment += timedelta(seconds=seconds)


@dataclass
class Store:
    """One ledger under test."""

    name: str
    ledger: Ledger
    url: str = ""
    clock: SettableClock = field(default_factory=SettableClock)

    @classmethod
    def in_memory(cls) -> Store:
        clock = SettableClock()
        return cls("memory", MemoryLedger(clock), clock=clock)

    @classmethod
    def at(cls, name: str, url: str) -> Store:
        return cls(name, SqlLedger(url), url)

    @property
    def sql(self) -> SqlLedger:
        assert isinstance(self.ledger, SqlLedger)
        return self.ledger

    def clear(self) -> None:
        """Forget all runs, leases and the rest."""
        if isinstance(self.ledger, MemoryLedger):
            self.ledger.tables = Tables()
            return
        for table in metadata.sorted_tables:
            self.sql._run(delete(table))

    def let_pass(self, seconds: float) -> None:
        """Make the ledger believe that `seconds` have passed.

        A database's clock cannot be set: what is compared with it is moved instead, so that tests
        neither wait nor depend on the speed of the machine.
        """
        self.tick()
        if isinstance(self.ledger, MemoryLedger):
            self.clock.advance(seconds)
            return
        self._move(leases, leases.c.expires_at, seconds)
        self._move(runs, runs.c.next_emit_at, seconds)
        self._move(runs, runs.c.created_at, seconds)
        self._move(entries, entries.c.last_seen_at, seconds)
        self._move(locks, locks.c.ends_at, seconds)

    def tick(self) -> None:
        """Return when the ledger's clock has moved on."""
        self.clock.advance(0.001)
        now = self.ledger.now()
        if not isinstance(self.ledger, MemoryLedger):
            wait_until(lambda: self.ledger.now() > now)

    def _move(self, table: Table, column: Column[Any], seconds: float) -> None:
        keys = list(table.primary_key)
        moments = self.sql._run(select(*keys, column).where(column.is_not(None))).rows
        if not moments:
            return
        named = and_(*(key == bindparam(f"b_{key.name}") for key in keys))
        values = [
            {
                **{f"b_{key.name}": row[n] for n, key in enumerate(keys)},
                "b_moment": row[-1] - timedelta(seconds=seconds),
            }
            for row in moments
        ]
        self.sql._run(update(table).where(named).values({column: bindparam("b_moment")}), values)

    # -- short names ----------------------------------------------------------------------------

    def lease(self, seconds: float = LONG, pid: int = 1, process: str = "parent") -> str:
        """The id of a new lease."""
        lease_id = fresh("lease")
        self.ledger.register(lease_id, Owner("worker", "host", pid, process), seconds)
        return lease_id

    def claim(self, key: RunKey, *, lease: str | None = None, retries: int = 0) -> Claim:
        """Claim a run with a new claim id."""
        return self.ledger.claim(self.request(key, lease=lease, retries=retries))

    def request(self, key: RunKey, *, lease: str | None = None, retries: int = 0) -> ClaimRequest:
        return ClaimRequest(
            key=key,
            task="shop.bill",
            namespace=NAMESPACE,
            entry="daily",
            task_id=fresh("task"),
            retries=retries,
            lease_id=lease or self.lease(),
            claim_id=fresh("claim"),
        )

    def owned(self, key: RunKey | None = None, *, lease: str | None = None) -> tuple[RunKey, Claim]:
        """A run that was just claimed."""
        key = key or RunKey(fresh("run"))
        claim = self.claim(key, lease=lease)
        assert claim.outcome is ClaimOutcome.CLAIMED
        return key, claim

    def orphan(self, key: RunKey | None = None) -> tuple[RunKey, Claim]:
        """A running run whose lease is gone."""
        lease = self.lease()
        key, claim = self.owned(key, lease=lease)
        self.ledger.release([lease])
        return key, claim

    def row(self, key: RunKey) -> RunRow:
        row = self.ledger.read(key)
        assert row is not None
        return row

    def stand(self, key: RunKey) -> RunRow:
        """The row without what changes by itself."""
        return replace(self.row(key), lease_seconds=None)

    def scheduled(self, number: int = 1, batch: str | None = None) -> list[RunKey]:
        """New slots, recorded by `batch`."""
        slots = new_slots(number)
        keys = [slot.key for slot in slots]
        assert self.ledger.insert_slots(slots, batch or fresh("batch")) == set(keys)
        return keys

    def in_state(self, state: RunState | None) -> RunKey:
        """A run in this state, brought there by the verbs; None: unknown to the ledger."""
        if state is None:
            return RunKey(fresh("run"))
        if state in (RunState.SCHEDULED, RunState.EMITTED, RunState.SKIPPED):
            batch = fresh("batch")
            (key,) = self.scheduled(batch=batch)
            if state is not RunState.SCHEDULED:
                self.ledger.close_unclaimed([key], batch, state, "no reason")
            return key
        if state is RunState.DEAD:
            key, _ = self.orphan()
            assert self.ledger.try_kill(self.row(key), "died")
            return key
        key, claim = self.owned()
        if state is RunState.RETRYING:
            self.ledger.retry(key, claim.fence, Retry(1, 0.0, None))
        elif state is not RunState.RUNNING:
            self.ledger.end(key, claim.fence, state)
        return key


def new_slots(number: int, *, entry: str | None = None, claims: bool = True) -> list[NewSlot]:
    """Slots, a second apart, of an entry that no other test uses."""
    entry = entry or fresh("entry")
    slots = [FIRST + timedelta(seconds=n) for n in range(number)]
    return [
        NewSlot(RunKey.for_slot(NAMESPACE, entry, slot), NAMESPACE, entry, "shop.bill", claims)
        for slot in slots
    ]


def isolated(url: str, level: str) -> SqlLedger:
    """A ledger on PostgreSQL whose sessions begin with this isolation level."""
    value = level.replace(" ", "\\ ")
    options = {"connect_args": {"options": f"-c default_transaction_isolation={value}"}}
    return SqlLedger(url, engine_options=options)
