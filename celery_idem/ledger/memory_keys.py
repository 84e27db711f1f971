"""The ledger in memory: keys that change hands, and reservations.

Owns the verbs of `key_verbs` on `memory_tables`, with the guards that the statements of `keys_sql`
have. Must not know why a key is free.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from celery_idem.keys import EPOCH, RunKey
from celery_idem.ledger.memory_emission import EmissionInMemory
from celery_idem.ledger.memory_tables import RunInMemory, new_row
from celery_idem.ledger.records import Reservation, skipped
from celery_idem.run import ClaimRequest, RunRow, RunState


class KeysInMemory(EmissionInMemory):
    """The verbs of keys that change hands."""

    def keep_apart(self, seen: RunRow) -> None:
        if seen.task_id is None:
            return
        with self._lock:
            key = seen.key.of_message(seen.task_id)
            seen = seen if seen.state.final else skipped(seen, self.clock.now())
            kept = RunInMemory(replace(seen, key=key), created_at=seen.started_at or EPOCH)
            self.tables.runs.setdefault(key, kept)

    def try_claim_again(self, request: ClaimRequest, seen: RunRow) -> tuple[int, int] | None:
        with self._lock:
            run = self._left(request, seen)
            if run is None:
                return self._won(request)
            run.row = new_row(
                request.key,
                request.namespace,
                request.task,
                None,
                state=RunState.RUNNING,
                fence=seen.fence + 1,
                attempts=1,
                retries=request.retries,
                lease_id=request.lease_id,
                claim_id=request.claim_id,
                task_id=request.task_id,
                payload=request.payload,
                started_at=self.clock.now(),
            )
            run.next_emit_at = None
            return run.row.fence, 1

    def try_reserve(self, reservation: Reservation) -> None:
        with self._lock:
            if reservation.key not in self.tables.runs:
                run = self.tables.runs[reservation.key] = RunInMemory(
                    self._reserved(reservation, 0), created_at=self.clock.now()
                )
                run.next_emit_at = self._after(reservation.due_in + reservation.grace)

    def try_reserve_again(self, reservation: Reservation, seen: RunRow) -> bool:
        with self._lock:
            run = self._left(reservation, seen)
            if run is None:
                return self._mine(reservation) is not None
            run.row = self._reserved(reservation, seen.fence)
            run.next_emit_at = self._after(reservation.due_in + reservation.grace)
            return True

    def try_rely_on(self, seen: RunRow) -> bool:
        with self._lock:
            run = self.tables.runs.get(seen.key)
            if run is None or not run.row.may_be_cancelled:
                return False
            if (run.row.fence, run.row.claim_id) != (seen.fence, seen.claim_id):
                return False
            run.row = replace(run.row, emit_count=1)
            return True

    def cancel(self, reservation: Reservation) -> None:
        with self._lock:
            run = self._mine(reservation)
            if run is not None and run.row.emit_count:
                return
            if run is not None and run.row.fence:
                self._close(run, "it could not be published")
            elif run is not None:
                del self.tables.runs[reservation.key]

    def leave(self, key: RunKey, task_id: str, *, followed: bool = False) -> None:
        with self._lock:
            run = self.tables.runs.get(key)
            if run is None or run.row.task_id != task_id:
                return
            if not run.row.fence:
                del self.tables.runs[key]
            elif followed and run.row.state is RunState.SCHEDULED:
                self._close(run, "its body begins under the name of its message")

    def _close(self, run: RunInMemory, why: str) -> None:
        run.created_at, run.next_emit_at = EPOCH, None
        self._finish(run, RunState.SKIPPED, why)

    def _left(self, by: ClaimRequest | Reservation, seen: RunRow) -> RunInMemory | None:
        """The run, as it was seen, if it leaves its key to somebody else; it is young again."""
        run = self.tables.runs.get(seen.key)
        if run is None:
            return None
        row = self._shown(run)
        is_same = (row.fence, row.claim_id) == (seen.fence, seen.claim_id)
        is_same = is_same and row.callbacks_pending == seen.callbacks_pending
        if not is_same or not row.leaves_key(by.free_after):
            return None
        run.created_at = self.clock.now()
        return run

    def _won(self, request: ClaimRequest) -> tuple[int, int] | None:
        """What an earlier try of the same claim has won, whose answer was lost."""
        run = self.tables.runs.get(request.key)
        if run and (run.row.claim_id, run.row.state) == (request.claim_id, RunState.RUNNING):
            return run.row.fence, run.row.attempts
        return None

    def _mine(self, reservation: Reservation) -> RunInMemory | None:
        run = self.tables.runs.get(reservation.key)
        own = (reservation.claim_id, RunState.SCHEDULED)
        return run if run and (run.row.claim_id, run.row.state) == own else None

    def _reserved(self, reservation: Reservation, fence: int) -> RunRow:
        return new_row(
            reservation.key,
            reservation.namespace,
            reservation.task,
            None,
            fence=fence,
            claim_id=reservation.claim_id,
            task_id=reservation.task_id,
            message=reservation.message,
            payload=reservation.payload,
            due_at=self.clock.now() + timedelta(seconds=reservation.due_in),
            deadline=reservation.deadline,
        )
