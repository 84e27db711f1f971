"""Ledgers in memory that each lack one guard of a beat's statement.

Owns nothing else: which search tells them from the real one stands in `mutations`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime

from celery_idem.keys import RunKey
from celery_idem.ledger import HANDOVER, NewSlot
from celery_idem.ledger.memory import MemoryLedger
from celery_idem.ledger.memory_tables import RunInMemory, slot_row
from celery_idem.run import RunState

_WAITING = (RunState.SCHEDULED, RunState.RETRYING)
_Due = Iterator[tuple[datetime, RunInMemory]]


class InsertsOver(MemoryLedger):
    """A slot that is there already is inserted again."""

    def insert_slots(self, slots: Sequence[NewSlot], batch: str) -> set[RunKey]:
        for slot in slots:
            self.tables.runs[slot.key] = RunInMemory(slot_row(slot, batch), self._after(HANDOVER))
        return {slot.key for slot in slots}


class InsertsForAll(MemoryLedger):
    """Whoever else has inserted a slot, it is for this batch to publish."""

    def insert_slots(self, slots: Sequence[NewSlot], batch: str) -> set[RunKey]:
        super().insert_slots(slots, batch)
        return {slot.key for slot in slots}


class AcquiresBeforeItIsDue(MemoryLedger):
    def _due(self, namespace: str) -> _Due:
        for run in self.tables.runs.values():
            if run.row.namespace == namespace and run.row.state in _WAITING and run.next_emit_at:
                yield run.next_emit_at, run


class AcquiresInAnyState(MemoryLedger):
    def _due(self, namespace: str) -> _Due:
        for run in self.tables.runs.values():
            due = run.next_emit_at
            if run.row.namespace == namespace and due and due <= self.clock.now():
                yield due, run


class AcquiresForAnother(MemoryLedger):
    def _due(self, namespace: str) -> _Due:
        yield from super()._due("shop")


class _Left(MemoryLedger):
    lease, state, due, content = True, True, True, True

    def _is_left(self, run: RunInMemory, namespace: str) -> bool:
        row, at = run.row, run.next_emit_at
        return (
            row.namespace == namespace
            and (not self.state or row.state is RunState.RUNNING or row.callbacks_pending)
            and (not self.lease or row.lease_id not in self.tables.leases)
            and (not self.content or row.entry is not None or row.message is not None)
            and (not self.due or at is None or at <= self.clock.now())
        )


class RecoversFromTheLiving(_Left):
    lease = False


class RecoversInAnyState(_Left):
    state = False


class RecoversAgainAtOnce(_Left):
    due = False


class RecoversWhatIsWithTheBroker(_Left):
    content = False


class RecoversForAnother(MemoryLedger):
    def _is_left(self, run: RunInMemory, namespace: str) -> bool:
        return super()._is_left(run, "shop")


class _Held(MemoryLedger):
    """Lets a batch change what it may not, in one verb."""

    verb = "published"
    batch, state, later = True, True, True
    _in: str | None = None

    def _held(
        self, keys: Iterable[RunKey], batch: str, states: Collection[RunState]
    ) -> Iterator[RunInMemory]:
        if self._in != self.verb:
            yield from super()._held(keys, batch, states)
            return
        for key in keys:
            run = self.tables.runs.get(key)
            fits = run is not None and (not self.batch or run.row.claim_id == batch)
            if run and fits and (not self.state or run.row.state in states):
                yield run

    def published(self, keys: Iterable[RunKey], batch: str, grace: float) -> None:
        self._in = "published"
        if self.later:
            super().published(keys, batch, grace)
            return
        for run in self._held(keys, batch, list(RunState)):
            run.row = replace(run.row, emit_count=run.row.emit_count + 1)
            run.next_emit_at = self._after(grace)

    def close_unclaimed(
        self, keys: Iterable[RunKey], batch: str, state: RunState, error: str | None = None
    ) -> None:
        self._in = "close"
        super().close_unclaimed(keys, batch, state, error)


class ReportsForAnother(_Held):
    batch = False


class ReportsTwice(_Held):
    later = False


class ClosesForAnother(_Held):
    verb, batch = "close", False


class ClosesTheRunning(_Held):
    verb, state = "close", False
