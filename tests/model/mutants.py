"""Ledgers in memory that each lack one guard of an owner's statement.

Owns nothing else: which search tells them from the real one stands in `mutations`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from celery_idem.keys import RunKey
from celery_idem.ledger import Retry
from celery_idem.ledger.memory import MemoryLedger
from celery_idem.ledger.memory_tables import RunInMemory
from celery_idem.run import Claim, ClaimRequest, RunRow, RunState

_UNCLAIMED = (RunState.SCHEDULED, RunState.EMITTED)


class _Claims(MemoryLedger):
    """Claims more than it may."""

    def lets(self, row: RunRow, request: ClaimRequest) -> bool:
        raise NotImplementedError

    def try_claim(self, request: ClaimRequest) -> tuple[int, int] | None:
        run = self.tables.runs.get(request.key)
        if run and self.lets(run.row, request):
            same = run.row.retries == request.retries
            return self._take(run, request, run.row.attempts + 1 if same else 1)
        return super().try_claim(request)


class ClaimsTheRunning(_Claims):
    def lets(self, row: RunRow, request: ClaimRequest) -> bool:
        return row.state is RunState.RUNNING


class ClaimsTheEnded(_Claims):
    def lets(self, row: RunRow, request: ClaimRequest) -> bool:
        return row.state.final


class ClaimsTwiceByOneClaim(_Claims):
    def lets(self, row: RunRow, request: ClaimRequest) -> bool:
        return row.state in _UNCLAIMED and row.retries <= request.retries


class ClaimsAnEarlierRetry(_Claims):
    def lets(self, row: RunRow, request: ClaimRequest) -> bool:
        return row.state in _UNCLAIMED and row.claim_id != request.claim_id


class ClaimsAnyRetryOfTheRetrying(_Claims):
    def lets(self, row: RunRow, request: ClaimRequest) -> bool:
        return row.state is RunState.RETRYING


class _Skips(MemoryLedger):
    states: tuple[RunState, ...] = ()

    def try_skip(self, request: ClaimRequest, error: str) -> bool:
        run = self.tables.runs.get(request.key)
        if run and run.row.state in self.states:
            return self._finish(run, RunState.SKIPPED, error)
        return super().try_skip(request, error)


class SkipsTheRunning(_Skips):
    states = (RunState.RUNNING,)


class SkipsTheEnded(_Skips):
    states = (RunState.SUCCEEDED,)


class ForgetsTheFence(MemoryLedger):
    """A claim and a takeover leave the fence as it is."""

    def _take(
        self, run: RunInMemory, request: ClaimRequest, attempts: int, *rest: Any
    ) -> tuple[int, int]:
        fence = max(1, run.row.fence)
        super()._take(run, request, attempts, *rest)
        run.row = replace(run.row, fence=fence)
        return fence, attempts


class CountsNoTakeover(MemoryLedger):
    def try_takeover(self, request: ClaimRequest, seen: RunRow) -> tuple[int, int] | None:
        return super().try_takeover(request, replace(seen, attempts=seen.attempts - 1))


# -- an owner that is gone -----------------------------------------------------------------------


class _Ownerless(MemoryLedger):
    """Sees an owner gone who is not, in one verb."""

    verb = "takeover"
    _in: str | None = None

    def lets(self, seen: RunRow) -> RunInMemory | None:
        raise NotImplementedError

    def _ownerless(self, seen: RunRow) -> RunInMemory | None:
        return self.lets(seen) if self._in == self.verb else super()._ownerless(seen)

    def try_takeover(self, request: ClaimRequest, seen: RunRow) -> tuple[int, int] | None:
        self._in = "takeover"
        return super().try_takeover(request, seen)

    def try_kill(self, seen: RunRow, error: str) -> bool:
        self._in = "kill"
        return super().try_kill(seen, error)


class TakesOverAnyLease(_Ownerless):
    """Nobody looks at the lease: neither who has read the row, nor the statement.

    One of the two is enough: a lease that was seen expired never returns, by the guard of `renew`.
    """

    def _settle(self, request: ClaimRequest, seen: RunRow) -> Claim | None:
        gone = None if seen.lease_seconds is None else -1.0
        return super()._settle(request, replace(seen, lease_seconds=gone))

    def lets(self, seen: RunRow) -> RunInMemory | None:
        return self._owned(seen.key, seen.fence)


class TakesOverAtAnyFence(_Ownerless):
    def lets(self, seen: RunRow) -> RunInMemory | None:
        # As one would write it by looking at the lease that was seen.
        run = self.tables.runs.get(seen.key)
        if run is None or run.row.state is not RunState.RUNNING:
            return None
        return run if seen.lease_id not in self.tables.leases else None


class TakesOverInAnyState(_Ownerless):
    def lets(self, seen: RunRow) -> RunInMemory | None:
        run = self.tables.runs.get(seen.key)
        fits = run is not None and run.row.fence == seen.fence
        return run if run and fits and run.row.lease_id not in self.tables.leases else None


class KillsAnyLease(TakesOverAnyLease):
    verb = "kill"


class KillsAtAnyFence(TakesOverAtAnyFence):
    verb = "kill"


class KillsInAnyState(TakesOverInAnyState):
    verb = "kill"


class LetsAnEarlierRetryTakeOver(MemoryLedger):
    def _settle(self, request: ClaimRequest, seen: RunRow) -> Claim | None:
        if seen.state is RunState.RUNNING and seen.lease_seconds is None:
            return self._inherit(request, seen)
        return super()._settle(request, seen)


class NeverGivesUp(MemoryLedger):
    def _inherit(self, request: ClaimRequest, seen: RunRow) -> Claim | None:
        return super()._inherit(replace(request, max_attempts=99), seen)


class DoesNotKnowItsClaim(MemoryLedger):
    def _settle(self, request: ClaimRequest, seen: RunRow) -> Claim | None:
        return super()._settle(replace(request, claim_id="another"), seen)


# -- endings -------------------------------------------------------------------------------------


class _Owned(MemoryLedger):
    """Takes a write that it may not, in one verb."""

    verb = "end"
    _in: str | None = None

    def lets(self, run: RunInMemory, fence: int) -> bool:
        raise NotImplementedError

    def _owned(self, key: RunKey, fence: int) -> RunInMemory | None:
        if self._in != self.verb:
            return super()._owned(key, fence)
        run = self.tables.runs.get(key)
        return run if run and self.lets(run, fence) else None

    def try_end(self, key: RunKey, fence: int, *rest: Any, **more: Any) -> bool:
        self._in = "end"
        return super().try_end(key, fence, *rest, **more)

    def try_retry(self, key: RunKey, fence: int, retry: Retry) -> bool:
        self._in = "retry"
        return super().try_retry(key, fence, retry)

    def try_give_back(self, key: RunKey, fence: int, *rest: Any) -> bool:
        self._in = "give back"
        return super().try_give_back(key, fence, *rest)


class EndsAtAnyFence(_Owned):
    def lets(self, run: RunInMemory, fence: int) -> bool:
        return run.row.state is RunState.RUNNING


class RetriesAtAnyFence(EndsAtAnyFence):
    verb = "retry"


class GivesBackAtAnyFence(EndsAtAnyFence):
    verb = "give back"


class EndsInAnyState(_Owned):
    def lets(self, run: RunInMemory, fence: int) -> bool:
        return run.row.fence == fence


class RetriesInAnyState(EndsInAnyState):
    verb = "retry"


class GivesBackInAnyState(EndsInAnyState):
    verb = "give back"


class TakesNoForLost(MemoryLedger):
    """An ending that changed nothing is never recognised as done by an earlier try."""

    def _must_be(self, key: RunKey, fence: int, *rest: Any) -> None:
        super()._must_be(key, -1, *rest)


class TakesNoForDone(MemoryLedger):
    """An ending that changed nothing is taken for done."""

    def _must_be(self, key: RunKey, fence: int, *rest: Any) -> None:
        return


class AsksWithoutWaiting(MemoryLedger):
    """Whether a COMMIT arrived is read without waiting for it."""

    def was_committed(self, key: RunKey, fence: int, task_id: str | None = None) -> bool:
        row = self.read(key)
        return row is not None and row.state is RunState.SUCCEEDED
