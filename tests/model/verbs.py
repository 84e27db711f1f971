"""The verbs of a ledger as functions from books to books.

What a statement does is not written down here: a real ledger in memory is opened on the books, its
verb is called, and it is closed again. Must not know who calls, or why.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

from celery_idem.keys import RunKey
from celery_idem.ledger import HANDOVER, Ledger, NewSlot, Retry, Unsent
from celery_idem.ledger.memory import MemoryLedger
from celery_idem.ledger.memory_tables import LeaseInMemory, RunInMemory
from celery_idem.run import RunRow, RunState
from tests.contract.stores import LONG, SettableClock
from tests.model.books import (
    DUE,
    LATER,
    NAMESPACES,
    SLOT,
    SOON,
    Books,
    Call,
    Fence,
    Place,
    Seen,
    Won,
    owner_of,
    seen_of,
)


def perform(ledger: Ledger, place: Place, siblings: bool, call: Call) -> Any:
    """Call the verb of a real ledger; its answer in the small form."""
    verb, *args = call
    key = place.key
    if verb in ("try_claim", "try_skip"):
        request = place.request(args[0])
        if verb == "try_skip":
            return ledger.try_skip(request, "late")
        won = ledger.try_claim(request)
        return won and Won(Fence(won[0]), won[1])
    if verb == "try_takeover":
        won = ledger.try_takeover(place.request(args[0]), place.run_row(args[1]))
        return won and Won(Fence(won[0]), won[1])
    if verb == "try_repair":
        fence = ledger.try_repair(place.request(args[0]), place.run_row(args[1]))
        return fence and Fence(fence)
    if verb == "try_kill":
        return ledger.try_kill(place.run_row(args[0]), "dead")
    if verb == "read":
        row = ledger.read(key)
        return row and seen_of(row)
    if verb in _OF_LEASES:
        return _OF_LEASES[verb](ledger, siblings, *args)
    return _OF_RUNS[verb](ledger, place, siblings, *args)


_OF_LEASES: dict[str, Callable[..., Any]] = {
    "register": lambda ledger, siblings, lease: ledger.register(
        lease, owner_of(lease, siblings), LONG
    ),
    "renew": lambda ledger, siblings, lease: lease in ledger.renew([lease], LONG),
    "bury": lambda ledger, siblings, lease: ledger.bury(lease),
    "bury_expired": lambda ledger, siblings: ledger.bury_expired(100) > 0,
    "release": lambda ledger, siblings, lease: ledger.release([lease]),
}


def _end(ledger: Ledger, place: Place, _: bool, fence: Fence, state: int, unsent: bool) -> bool:
    told = Unsent("7") if unsent else None
    return ledger.try_end(place.key, fence, RunState(state), None, told)


def _retry(ledger: Ledger, place: Place, _: bool, fence: Fence, number: int) -> bool:
    return ledger.try_retry(place.key, fence, Retry(number, 0.0, "{}", grace=LONG))


def _fail_of_child(ledger: Ledger, place: Place, siblings: bool, lease: str) -> bool:
    owner = owner_of(lease, siblings)
    return ledger.fail_of_child(place.key, owner.process, owner.pid, "time limit")


def _insert(ledger: Ledger, place: Place, _: bool, batch: str) -> bool:
    slot = NewSlot(place.key, NAMESPACES[0], "daily", place.task)
    return bool(ledger.insert_slots([slot], batch))


def _acquired(rows: list[RunRow], place: Place) -> tuple[Seen, ...]:
    return tuple(seen_of(row) for row in rows if row.key == place.key)


def _close(ledger: Ledger, place: Place, _: bool, batch: str, state: int) -> None:
    ledger.close_unclaimed([place.key], batch, RunState(state), "late")


_OF_RUNS: dict[str, Callable[..., Any]] = {
    "try_end": _end,
    "try_retry": _retry,
    "try_give_back": lambda ledger, place, _, fence: ledger.try_give_back(
        place.key, fence, "back", LONG
    ),
    "try_hold": lambda ledger, place, _, fence: ledger.try_hold(place.key, fence),
    "callbacks_sent": lambda ledger, place, _, fence: ledger.callbacks_sent(place.key, fence),
    "fail_of_child": _fail_of_child,
    "insert_slots": _insert,
    "acquire_due": lambda ledger, place, _, batch, space: _acquired(
        ledger.acquire_due(NAMESPACES[space], 10, batch), place
    ),
    "acquire_orphans": lambda ledger, place, _, batch, space: _acquired(
        ledger.acquire_orphans(NAMESPACES[space], 10, batch), place
    ),
    "published": lambda ledger, place, _, batch: ledger.published([place.key], batch, LONG),
    "close_unclaimed": _close,
}


class Statements:
    """The verbs of a ledger in memory; asked in the same books again and again."""

    def __init__(
        self,
        ledger: type[MemoryLedger] = MemoryLedger,
        entry: str | None = "daily",
        siblings: bool = True,
    ) -> None:
        self.place = Place(RunKey("shop:daily", SLOT), entry)
        self._class, self._siblings = ledger, siblings
        self._known: dict[tuple[Books, Call], tuple[Books, Any]] = {}

    def __call__(self, books: Books, call: Call) -> tuple[Books, Any]:
        known = self._known.get((books, call))
        if known is None:
            ledger = self._open(books)
            answer = perform(ledger, self.place, self._siblings, call)
            known = self._known[books, call] = (self._closed(ledger), answer)
        return known

    def _open(self, books: Books) -> MemoryLedger:
        clock = SettableClock()
        ledger = self._class(clock)
        for lease, alive in books.leases:
            ends = clock.now() + timedelta(seconds=LONG if alive else -1)
            ledger.tables.leases[lease] = LeaseInMemory(owner_of(lease, self._siblings), ends)
        if books.row is not None:
            row = replace(self.place.run_row(Seen(books.row)), lease_seconds=None)
            emit = {None: None, DUE: -1.0, SOON: HANDOVER, LATER: LONG}[books.row.emit]
            at = None if emit is None else clock.now() + timedelta(seconds=emit)
            ledger.tables.runs[self.place.key] = RunInMemory(row, at)
        return ledger

    def _closed(self, ledger: MemoryLedger) -> Books:
        run = ledger.tables.runs.get(self.place.key)
        leases = frozenset(
            (name, lease.expires_at > ledger.now()) for name, lease in ledger.tables.leases.items()
        )
        if run is None:
            return Books(None, leases)
        emit = None
        if run.next_emit_at is not None:
            left = (run.next_emit_at - ledger.now()).total_seconds()
            emit = DUE if left <= 0 else SOON if left <= HANDOVER else LATER
        row = seen_of(run.row, emit).row
        return Books(row._replace(fence=row.fence if row.fence else Fence(1)), leases)
