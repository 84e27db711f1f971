"""The ledger in memory: slots, their emission, and what beats agree on.

Owns the verbs of beats and of readers on `memory_tables`. Must not know schedules or messages.
"""

from __future__ import annotations

import os
import socket
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from celery_idem.keys import EPOCH, RunKey
from celery_idem.ledger import HANDOVER, HistoryLine, NewSlot, check_closing
from celery_idem.ledger.memory_pauses import PausesInMemory
from celery_idem.ledger.memory_tables import EntryInMemory, RunInMemory, slot_row
from celery_idem.ledger.records import REFRESH, LeaseCount, LiveBeat, counts_as_new
from celery_idem.ledger.rows import cut, entry_name, task_name
from celery_idem.run import RunRow, RunState

_OPEN = (RunState.SCHEDULED, RunState.RETRYING)


class EmissionInMemory(PausesInMemory):
    """The verbs of beats; `MemoryLedger` adds those of workers."""

    def _after(self, seconds: float) -> datetime:
        return self.clock.now() + timedelta(seconds=seconds)

    def _finish(self, run: RunInMemory | None, state: RunState, error: str | None) -> bool:
        if run is None:
            return False
        now = self.clock.now()
        run.row = replace(run.row, state=state, error=cut(error), finished_at=now)
        return True

    def _shown(self, run: RunInMemory) -> RunRow:
        lease = self.tables.leases.get(run.row.lease_id or "")
        left = (lease.expires_at - self.clock.now()).total_seconds() if lease else None
        age = (self.clock.now() - run.created_at).total_seconds()
        late = run.row.deadline is not None and run.row.deadline <= self.clock.now()
        return replace(run.row, lease_seconds=left, age=age, late=late)

    # -- emission -------------------------------------------------------------------------------

    def insert_slots(self, slots: Sequence[NewSlot], batch: str) -> set[RunKey]:
        with self._lock:
            for slot in slots:
                if slot.key not in self.tables.runs:
                    next_emit_at = self._after(HANDOVER) if slot.claims else None
                    row = slot_row(slot, batch)
                    self.tables.runs[slot.key] = RunInMemory(row, next_emit_at, self.clock.now())
            keys = {slot.key for slot in slots}
            return {key for key in keys if self.tables.runs[key].row.claim_id == batch}

    def given_back_before(self, namespace: str, slot: datetime) -> list[RunRow]:
        with self._lock:
            return [
                self._shown(run)
                for key, run in self.tables.runs.items()
                if run.row.namespace == namespace
                and run.row.fence
                and run.row.state is RunState.SCHEDULED
                and EPOCH < key.slot < slot
            ]

    def unfinished_before(self, namespace: str, task: str, slot: datetime) -> list[RunRow]:
        with self._lock:
            return [
                self._shown(run)
                for key, run in self.tables.runs.items()
                if (run.row.namespace, run.row.task) == (namespace, task)
                and run.row.fence
                and run.row.state in (RunState.RUNNING, RunState.SCHEDULED)
                and EPOCH < key.slot < slot
            ]

    def recorded(self, keys: Iterable[RunKey]) -> set[RunKey]:
        with self._lock:
            return {key for key in keys if key in self.tables.runs}

    def acquire_due(self, namespace: str, limit: int, batch: str) -> list[RunRow]:
        with self._lock:
            due = sorted(self._due(namespace), key=lambda found: found[0])[:limit]
            for _, run in due:
                run.row = replace(run.row, claim_id=batch)
                run.next_emit_at = self._after(HANDOVER)
            return [self._shown(run) for _, run in due]

    def _due(self, namespace: str) -> Iterator[tuple[datetime, RunInMemory]]:
        for run in self.tables.runs.values():
            due = run.next_emit_at
            waits = run.row.namespace == namespace and run.row.state in _OPEN
            if waits and due is not None and due <= self.clock.now():
                yield due, run

    def acquire_orphans(self, namespace: str, limit: int, batch: str) -> list[RunRow]:
        with self._lock:
            left = [run for run in self.tables.runs.values() if self._is_left(run, namespace)]
            for run in left[:limit]:
                run.row = replace(run.row, claim_id=batch)
                run.next_emit_at = self._after(HANDOVER)
            return [self._shown(run) for run in left[:limit]]

    def _is_left(self, run: RunInMemory, namespace: str) -> bool:
        row, due = run.row, run.next_emit_at
        return (
            (row.state is RunState.RUNNING or row.callbacks_pending)
            and row.lease_id not in self.tables.leases
            and row.namespace == namespace
            and (row.entry is not None or row.message is not None)
            and (due is None or due <= self.clock.now())
        )

    def published(self, keys: Iterable[RunKey], batch: str, grace: float) -> None:
        with self._lock:
            for run in self._held(keys, batch, list(RunState)):
                if run.next_emit_at is not None and run.next_emit_at <= self._after(HANDOVER):
                    run.row = replace(run.row, emit_count=run.row.emit_count + 1)
                    run.next_emit_at = self._after(grace)

    def close_unclaimed(
        self, keys: Iterable[RunKey], batch: str, state: RunState, error: str | None = None
    ) -> None:
        check_closing(state)
        with self._lock:
            if state is RunState.EMITTED:
                for run in self._held(keys, batch, (RunState.SCHEDULED,)):
                    run.row, run.next_emit_at = replace(run.row, state=state), None
            else:
                for run in self._held(keys, batch, _OPEN):
                    self._finish(run, state, error)
                    run.next_emit_at = None

    def _held(
        self, keys: Iterable[RunKey], batch: str, states: Collection[RunState]
    ) -> Iterator[RunInMemory]:
        for key in keys:
            run = self.tables.runs.get(key)
            if run and run.row.claim_id == batch and run.row.state in states:
                yield run

    def activate(
        self, namespace: str, entries: Iterable[tuple[str, str]]
    ) -> dict[tuple[str, str], datetime]:
        with self._lock:
            return {
                (name, print_): self._since((entry_name(namespace, name), print_))
                for name, print_ in entries
            }

    def _since(self, pair: tuple[str, str]) -> datetime:
        now = self.clock.now()
        found = self.tables.entries.get(pair)
        of_entry = (its for (name, _), its in self.tables.entries.items() if name == pair[0])
        latest = max((its.last_seen_at for its in of_entry), default=now)
        if found is None or counts_as_new(found.last_seen_at, latest):
            found = self.tables.entries[pair] = EntryInMemory(now, now)
        found.last_seen_at = now
        return found.active_since

    def last_seen(
        self, namespace: str, entries: Iterable[tuple[str, str]]
    ) -> dict[tuple[str, str], datetime]:
        with self._lock:
            found = {
                (name, print_): self.tables.entries.get((entry_name(namespace, name), print_))
                for name, print_ in entries
            }
            return {pair: its.last_seen_at for pair, its in found.items() if its}

    def mark_seen(self, namespace: str, entries: Iterable[tuple[str, str]]) -> None:
        with self._lock:
            for name, print_ in entries:
                found = self.tables.entries.get((entry_name(namespace, name), print_))
                if found and found.last_seen_at <= self._after(-REFRESH / 2):
                    found.last_seen_at = self.clock.now()

    def bury_expired(self, limit: int) -> int:
        with self._lock:
            now, leases = self.clock.now(), self.tables.leases
            expired = [name for name, lease in leases.items() if lease.expires_at <= now][:limit]
            for lease_id in expired:
                del leases[lease_id]
            return len(expired)

    def agreed_slot(self, namespace: str, entry: str, fingerprint: str) -> datetime | None:
        with self._lock:
            found = self.tables.entries.get((entry_name(namespace, entry), fingerprint))
            return found.agreed_slot if found else None

    def agree(
        self,
        namespace: str,
        entry: str,
        fingerprint: str,
        seen: datetime | None,
        slot: datetime,
    ) -> datetime | None:
        with self._lock:
            found = self.tables.entries.get((entry_name(namespace, entry), fingerprint))
            if found is None:
                return None
            if found.agreed_slot == seen:
                found.agreed_slot = slot
            return found.agreed_slot

    # -- what is known --------------------------------------------------------------------------

    def now(self) -> datetime:
        return self.clock.now()

    def record_tasks(self, namespace: str, tasks: Iterable[str]) -> None:
        with self._lock:
            self.tables.tasks.update({task_name(namespace, task): namespace for task in tasks})

    def known_tasks(self, namespace: str) -> set[str]:
        with self._lock:
            return {task for task, its in self.tables.tasks.items() if its == namespace}

    def record(
        self,
        kind: str,
        key: RunKey,
        *,
        task: str | None = None,
        task_id: str | None = None,
        detail: str | None = None,
        line: str | None = None,
    ) -> None:
        written = HistoryLine(
            at=self.clock.now(),
            kind=kind,
            key=key,
            task=task,
            task_id=task_id,
            host=socket.gethostname(),
            pid=os.getpid(),
            detail=cut(detail),
        )
        with self._lock:
            if line is None or line not in self.tables.lines:
                self.tables.history.append(written)
            if line is not None:
                self.tables.lines.add(line)

    def history(self, key: RunKey) -> list[HistoryLine]:
        with self._lock:
            return [line for line in self.tables.history if line.key == key]

    def counts(self) -> dict[str, int]:
        with self._lock:
            states = Counter(run.row.state.label for run in self.tables.runs.values())
            return dict(states) | Counter(line.kind for line in self.tables.history)

    def live_beats(self, namespace: str) -> list[LiveBeat]:
        with self._lock:
            now = self.clock.now()
            return sorted(
                LiveBeat(lease.owner.host, lease.owner.pid, lease.started_at)
                for lease in self.tables.leases.values()
                if (lease.owner.kind, lease.owner.namespace) == ("beat", namespace)
                and lease.expires_at > now
            )

    def lease_counts(self) -> dict[str, LeaseCount]:
        with self._lock:
            leases, now = self.tables.leases.values(), self.clock.now()
            found = Counter((lease.owner.kind, lease.expires_at > now) for lease in leases)
            return {
                kind: LeaseCount(found[kind, True], found[kind, False])
                for kind in {kind for kind, _ in found}
            }
