"""The ledger in the memory of one process, for tests.

Owns the same verbs with the same guards as the SQL ledger, each one step under one lock, by a clock
that a test can set. Nothing is kept when the process ends, and no other process sees it: it is no
place for the runs of a real project.
Must not know SQL.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

from celery_idem.errors import LedgerError
from celery_idem.keys import RunKey
from celery_idem.ledger.memory_keys import KeysInMemory
from celery_idem.ledger.memory_locks import LocksInMemory
from celery_idem.ledger.memory_tables import LeaseInMemory, RunInMemory, new_row
from celery_idem.ledger.records import Owner, Retry, Unsent, claimable
from celery_idem.ledger.rows import cut
from celery_idem.run import ClaimRequest, RunRow, RunState


class MemoryLedger(KeysInMemory, LocksInMemory):
    """See `celery_idem.ledger.Ledger`. `clock` stands for the database's clock."""

    # -- leases ---------------------------------------------------------------------------------

    def register(self, lease_id: str, owner: Owner, seconds: float) -> None:
        with self._lock:
            if lease_id in self.tables.leases and not self._alive(lease_id):
                raise LedgerError(f"lease {lease_id} is there already", "use a new id")
            lease = LeaseInMemory(owner, self._after(seconds), self.clock.now())
            self.tables.leases[lease_id] = lease

    def renew(self, lease_ids: Collection[str], seconds: float) -> set[str]:
        with self._lock:
            alive = {lease_id for lease_id in lease_ids if self._alive(lease_id)}
            for lease_id in alive:
                self.tables.leases[lease_id].expires_at = self._after(seconds)
            return alive

    def bury(self, lease_id: str) -> None:
        with self._lock:
            if not self._alive(lease_id):
                self.tables.leases.pop(lease_id, None)

    def release(self, lease_ids: Collection[str]) -> None:
        with self._lock:
            for lease_id in lease_ids:
                self.tables.leases.pop(lease_id, None)

    def _alive(self, lease_id: str) -> bool:
        lease = self.tables.leases.get(lease_id)
        return lease is not None and lease.expires_at > self.clock.now()

    def release_child(self, process: str, pid: int) -> None:
        with self._lock:
            for lease_id, lease in list(self.tables.leases.items()):
                if (lease.owner.process, lease.owner.pid) == (process, pid):
                    del self.tables.leases[lease_id]

    # -- runs -----------------------------------------------------------------------------------

    def read(self, key: RunKey) -> RunRow | None:
        with self._lock:
            run = self.tables.runs.get(key)
            return self._shown(run) if run else None

    def try_claim(self, request: ClaimRequest) -> tuple[int, int] | None:
        with self._lock:
            run = self.tables.runs.get(request.key)
            if run is None:
                row = new_row(request.key, request.namespace, request.task, request.entry)
                row = replace(row, payload=request.payload)
                run = self.tables.runs[request.key] = RunInMemory(row, created_at=self.clock.now())
            elif not claimable(run.row, request):
                return None
            same_retry = run.row.retries == request.retries
            attempts = run.row.attempts + 1 if same_retry else 1
            return self._take(run, request, attempts, request.payload)

    def try_takeover(self, request: ClaimRequest, seen: RunRow) -> tuple[int, int] | None:
        with self._lock:
            run = self._ownerless(seen)
            if run is None:
                return self._won(request)
            same_retry = request.retries == seen.retries
            return self._take(run, request, seen.attempts + 1 if same_retry else 1)

    def try_kill(self, seen: RunRow, error: str) -> bool:
        with self._lock:
            run = self._ownerless(seen)
            return self._finish(run, RunState.DEAD, error)

    def try_skip(self, request: ClaimRequest, error: str) -> bool:
        key, claim_id = request.key, request.claim_id
        with self._lock:
            run = self.tables.runs.get(key)
            if run is None:
                row = new_row(key, request.namespace, request.task, request.entry)
                run = RunInMemory(replace(row, retries=request.retries), None, self.clock.now())
                self.tables.runs[key] = run
            elif run.row.is_of_other(request) or not claimable(run.row, request):
                return (run.row.claim_id, run.row.state) == (claim_id, RunState.SKIPPED)
            run.row = replace(run.row, claim_id=claim_id, task_id=request.task_id)
            run.next_emit_at = None
            return self._finish(run, RunState.SKIPPED, error)

    def try_end(
        self,
        key: RunKey,
        fence: int,
        state: RunState,
        error: str | None,
        unsent: Unsent | None = None,
        stored: str | None = None,
    ) -> bool:
        with self._lock:
            run = self._owned(key, fence)
            if run and unsent:
                run.row = replace(run.row, callbacks_pending=True, result=unsent.result)
            if run and stored is not None:
                run.row = replace(run.row, result=stored)
            return self._finish(run, state, error)

    def keep_result(
        self, key: RunKey, fence: int, result: str | None, *, stored: bool = False
    ) -> None:
        with self._lock:
            run = self._ended(key, fence)
            if run and (stored or run.row.callbacks_pending):
                run.row = replace(run.row, result=result)

    def callbacks_sent(self, key: RunKey, fence: int, *, stored: bool = False) -> None:
        with self._lock:
            run = self._ended(key, fence)
            if run:
                kept = run.row.result if stored else None
                run.row = replace(run.row, callbacks_pending=False, result=kept)

    def let_go(self, key: RunKey, fence: int, message: str | None) -> None:
        with self._lock:
            run = self._ended(key, fence)
            if run:
                kept = message if run.row.message is None else run.row.message
                run.row = replace(run.row, lease_id=None, message=kept)
                run.next_emit_at = None

    def try_repair(self, request: ClaimRequest, seen: RunRow) -> int | None:
        with self._lock:
            run = self.tables.runs.get(seen.key)
            own = (request.lease_id, request.claim_id)
            if run and (run.row.lease_id, run.row.claim_id) == own:
                return run.row.fence  # By a try whose answer was lost.
            run = self._ended(seen.key, seen.fence)
            if run is None or run.row.lease_id in self.tables.leases:
                return None
            if seen.callbacks_pending and not run.row.callbacks_pending:
                return None
            fence = run.row.fence + 1
            run.row = replace(
                run.row, fence=fence, lease_id=request.lease_id, claim_id=request.claim_id
            )
            return fence

    def try_retry(self, key: RunKey, fence: int, retry: Retry) -> bool:
        with self._lock:
            run = self._owned(key, fence)
            if run is None:
                return False
            run.row = replace(
                run.row,
                state=RunState.RETRYING,
                lease_id=None,
                retries=retry.retries,
                attempts=0,
                emit_count=0,
                due_at=self._after(retry.due_in),
                message=retry.message,
                deadline=retry.deadline,
            )
            run.next_emit_at = self._after(retry.due_in + retry.grace)
            return True

    def try_give_back(
        self, key: RunKey, fence: int, error: str, seconds: float, message: str | None = None
    ) -> bool:
        with self._lock:
            run = self._owned(key, fence)
            if run is None:
                return False
            run.row = replace(
                run.row,
                state=RunState.SCHEDULED,
                lease_id=None,
                attempts=run.row.attempts - 1,
                error=cut(error),
                message=message if run.row.message is None else run.row.message,
            )
            run.next_emit_at = self._after(seconds)
            return True

    def transaction(self, key: RunKey, fence: int, **options: Any) -> Any:
        raise LedgerError("a ledger in memory has no transactions", "use one in a database")

    def session(self, connection: Any, factory: Any) -> Any:
        raise LedgerError("a ledger in memory has no sessions", "use one in a database")

    def finish_statement(
        self, key: RunKey, fence: int, paramstyle: str, awaited: bool = False
    ) -> Any:
        raise LedgerError("a ledger in memory has no statements", "use one in a database")

    def try_hold(self, key: RunKey, fence: int) -> bool:
        with self._lock:
            return self._owned(key, fence) is not None

    def fail_of_child(self, key: RunKey, process: str, pid: int, error: str) -> bool:
        with self._lock:
            run = self.tables.runs.get(key)
            if run is None or run.row.state is not RunState.RUNNING:
                return False
            lease = self.tables.leases.get(run.row.lease_id or "")
            if lease is None or (lease.owner.process, lease.owner.pid) != (process, pid):
                return False
            return self._finish(run, RunState.FAILED, error)

    def _owned(self, key: RunKey, fence: int) -> RunInMemory | None:
        run = self.tables.runs.get(key)
        if run is None or (run.row.state, run.row.fence) != (RunState.RUNNING, fence):
            return None
        return run

    def _ended(self, key: RunKey, fence: int) -> RunInMemory | None:
        run = self.tables.runs.get(key)
        return run if run and run.row.fence == fence and run.row.state.final else None

    def _ownerless(self, seen: RunRow) -> RunInMemory | None:
        run = self._owned(seen.key, seen.fence)
        return run if run and run.row.lease_id not in self.tables.leases else None

    def _take(
        self, run: RunInMemory, request: ClaimRequest, attempts: int, payload: str | None = None
    ) -> tuple[int, int]:
        run.row = replace(
            run.row,
            state=RunState.RUNNING,
            task=request.task,
            fence=run.row.fence + 1,
            attempts=attempts,
            retries=request.retries,
            lease_id=request.lease_id,
            claim_id=request.claim_id,
            task_id=request.task_id,
            payload=run.row.payload or payload,
            started_at=self.clock.now(),
        )
        run.next_emit_at = None
        return run.row.fence, attempts

    def twin(self) -> MemoryLedger:
        return self

    def close(self) -> None:
        """Nothing to give back but leases."""
        self._leave()
