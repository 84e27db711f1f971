"""Ledgers in memory that each lack one guard of what follows an end, of leases or of children.

Owns nothing else: which search tells them from the real one stands in `mutations`.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from celery_idem.keys import RunKey
from celery_idem.ledger.memory import MemoryLedger
from celery_idem.run import Claim, ClaimRequest, RunRow, RunState


class ToldOfCallbacksAtAnyFence(MemoryLedger):
    def callbacks_sent(self, key: RunKey, fence: int, *, stored: bool = False) -> None:
        super().callbacks_sent(key, self.tables.runs[key].row.fence)


class _Repairs(MemoryLedger):
    def lets(self, seen: RunRow) -> bool:
        return True

    def try_repair(self, request: ClaimRequest, seen: RunRow) -> int | None:
        run = self.tables.runs[seen.key]
        if not self.lets(seen):
            return super().try_repair(request, seen)
        fence = run.row.fence + 1
        lease_id, claim_id = request.lease_id, request.claim_id
        run.row = replace(run.row, fence=fence, lease_id=lease_id, claim_id=claim_id)
        return fence


class RepairsAtAnyFence(_Repairs):
    def lets(self, seen: RunRow) -> bool:
        row = self.tables.runs[seen.key].row
        return seen.lease_id not in self.tables.leases and row.callbacks_pending


class RepairsWhatIsDone(_Repairs):
    def lets(self, seen: RunRow) -> bool:
        row = self.tables.runs[seen.key].row
        return row.fence == seen.fence and row.lease_id not in self.tables.leases


# -- leases and children -------------------------------------------------------------------------


class RenewsTheBuried(MemoryLedger):
    def renew(self, lease_ids: Collection[str], seconds: float) -> set[str]:
        alive = super().renew(lease_ids, seconds)
        return alive | {lease_id for lease_id in lease_ids if lease_id not in self.tables.leases}


class RenewsTheExpired(MemoryLedger):
    def renew(self, lease_ids: Collection[str], seconds: float) -> set[str]:
        there = {lease_id for lease_id in lease_ids if lease_id in self.tables.leases}
        for lease_id in there:
            self.tables.leases[lease_id].expires_at = self._after(seconds)
        return there


class BuriesTheLiving(MemoryLedger):
    """Whoever meets a running run buries its lease."""

    def _settle(self, request: ClaimRequest, seen: RunRow) -> Claim | None:
        gone = None if seen.lease_seconds is None else -1.0
        return super()._settle(request, replace(seen, lease_seconds=gone))

    def bury(self, lease_id: str) -> None:
        self.release([lease_id])


class BuriesAllTheLiving(MemoryLedger):
    def bury_expired(self, limit: int) -> int:
        self.release(list(self.tables.leases))
        return 0


class _Children(MemoryLedger):
    def lets(self, row: RunRow, process: str, pid: int) -> bool:
        raise NotImplementedError

    def fail_of_child(self, key: RunKey, process: str, pid: int, error: str) -> bool:
        run = self.tables.runs.get(key)
        if run and self.lets(run.row, process, pid):
            return self._finish(run, RunState.FAILED, error)
        return super().fail_of_child(key, process, pid, error)


class FailsOfAnyChild(_Children):
    def lets(self, row: RunRow, process: str, pid: int) -> bool:
        lease = self.tables.leases.get(row.lease_id or "")
        running = row.state is RunState.RUNNING
        return running and lease is not None and lease.owner.process == process


class FailsOfAnyParent(_Children):
    def lets(self, row: RunRow, process: str, pid: int) -> bool:
        lease = self.tables.leases.get(row.lease_id or "")
        return row.state is RunState.RUNNING and lease is not None and lease.owner.pid == pid


class FailsInAnyState(_Children):
    def lets(self, row: RunRow, process: str, pid: int) -> bool:
        lease = self.tables.leases.get(row.lease_id or "")
        return lease is not None and (lease.owner.process, lease.owner.pid) == (process, pid)
