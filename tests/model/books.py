"""What the ledger knows in the model.

Owns the small form in which rows, requests and answers are
kept, so that worlds can be compared; and the names and fences in them, which can be exchanged.
Must not know what a statement does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from typing import Any, NamedTuple

from celery_idem.clock import UTC
from celery_idem.keys import RunKey
from celery_idem.ledger import Owner
from celery_idem.ledger.memory_tables import new_row
from celery_idem.run import ClaimRequest, RunRow, RunState
from tests.contract.stores import LONG

#: When a message is to be published again: now, within the handover, or later.
DUE, SOON, LATER = 0, 1, 2
#: Claims of one retry number before the run is given up.
MAX_ATTEMPTS = 2
#: What stands for a lease that is gone, and for a claim of which nobody knows any more.
GONE, OLD = "gone", "old"
NAMESPACES = ("shop", "another")
SLOT = datetime(2026, 3, 29, 1, 30, tzinfo=UTC)
RUNNING, RETRYING = RunState.RUNNING.value, RunState.RETRYING.value
WAITING = (RunState.SCHEDULED.value, RETRYING)


class Fence(int):
    """A fence. Only equality counts: 1 is the row's, 0 any earlier one."""


class Row(NamedTuple):
    """The run, as far as it matters."""

    state: int
    fence: Fence = Fence(1)
    attempts: int = 0
    retries: int = 0
    lease: str | None = None
    claim: str | None = None
    emit: int | None = None
    pending: bool = False
    message: bool = False
    emitted: int = 0

    @property
    def final(self) -> bool:
        return RunState(self.state).final


class Seen(NamedTuple):
    """A row that was read; `left` is 1 while its lease holds, 0 if it has expired, else None."""

    row: Row
    left: int | None = None


class Ask(NamedTuple):
    """A request for a claim."""

    lease: str
    claim: str
    number: int = 0
    expired: bool = False


class Won(NamedTuple):
    fence: Fence
    attempts: int


class Books(NamedTuple):
    """All that the ledger knows: the run, and leases, of which some have expired."""

    row: Row | None = None
    leases: frozenset[tuple[str, bool]] = frozenset()

    def alive(self, lease: str | None) -> bool:
        return (lease, True) in self.leases

    def has(self, lease: str | None) -> bool:
        return (lease, True) in self.leases or (lease, False) in self.leases


#: A verb and what it is told: names as `str`, fences as `Fence`, `Ask`, `Seen` and numbers.
Call = tuple[Any, ...]


def exchanged(value: Any, name: Callable[[str], str], fence: Callable[[int], int]) -> Any:
    """The same with other names and fences."""
    if isinstance(value, Fence):
        return Fence(fence(value))
    if isinstance(value, str):
        return name(value)
    if isinstance(value, Ask):
        return value._replace(lease=name(value.lease), claim=name(value.claim))
    if isinstance(value, Won):
        return value._replace(fence=Fence(fence(value.fence)))
    if isinstance(value, Seen):
        row = value.row
        lease, claim = row.lease and name(row.lease), row.claim and name(row.claim)
        row = row._replace(fence=Fence(fence(row.fence)), lease=lease, claim=claim)
        return value._replace(row=row)
    if isinstance(value, tuple):
        return tuple(exchanged(each, name, fence) for each in value)
    return value


class Place(NamedTuple):
    """Which run the calls are about."""

    key: RunKey
    entry: str | None = "daily"
    task: str = "shop.bill"

    def request(self, ask: Ask) -> ClaimRequest:
        return ClaimRequest(
            self.key,
            self.task,
            NAMESPACES[0],
            self.entry,
            self.key.task_id,
            ask.number,
            ask.lease,
            ask.claim,
            max_attempts=MAX_ATTEMPTS,
            expired=ask.expired,
        )

    def run_row(self, seen: Seen) -> RunRow:
        row = seen.row
        found = new_row(
            self.key,
            NAMESPACES[0],
            self.task,
            self.entry,
            state=RunState(row.state),
            fence=int(row.fence),
            attempts=row.attempts,
            retries=row.retries,
            lease_id=row.lease,
            claim_id=row.claim,
            emit_count=row.emitted,
            message="{}" if row.message else None,
            callbacks_pending=row.pending,
        )
        left = {1: LONG, 0: -LONG, None: None}[seen.left]
        return replace(found, lease_seconds=left)


def seen_of(row: RunRow, emit: int | None = None) -> Seen:
    left = None if row.lease_seconds is None else int(row.lease_seconds > 0)
    shown = Row(
        row.state.value,
        Fence(row.fence),
        row.attempts,
        row.retries,
        row.lease_id,
        row.claim_id,
        emit,
        bool(row.callbacks_pending),
        row.message is not None,
        row.emit_count,
    )
    return Seen(shown, left)


def ask_of(request: ClaimRequest) -> Ask:
    return Ask(request.lease_id, request.claim_id, request.retries, request.expired)


def owner_of(lease: str, siblings: bool) -> Owner:
    """Leases are called ``{thread}.{number}``; threads are children of one parent, or of two."""
    thread = int(lease[0])
    pid, process = (1 + thread, "parent") if siblings else (1, f"parent {thread}")
    return Owner("worker", "host", pid, process)
