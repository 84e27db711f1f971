"""The run ledger: who owns which run, decided by the database.

Owns what is put together from the verbs of the ledger, each of which is one guarded statement: it
stands here, so that every store behaves alike and a model can step through it. The verbs themselves
are in `verbs` (owners), `key_verbs` (keys that change hands), `beats` (beats and readers) and
`lock_verbs` (named locks); `outside` has what a process without Celery calls.

Authority
    The row of a run decides. A run in state ``running`` names a lease; whoever wants the run must
    find that lease's row gone.
Trust
    An owner may act as long as its lease is trusted (`celery_idem.lease`). The ledger never asks
    whether somebody is trusted: it buries leases that expired by its own clock, which is later.
Fences
    Each claim and takeover adds 1 to the run's fence. Every later write names run key, fence and
    the allowed states, so that a late owner changes nothing.
Lost answers
    A statement whose answer was lost is repeated. A claim recognises itself by its ``claim_id``;
    an ending by its own fence in the wanted state.
Failures
    `LedgerUnavailable` is raised when the database does not answer. How the statement ended is
    then unknown: the caller abandons its lease.

Must not know Celery, schedules or messages; SQL stays in the modules below this one.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

from celery_idem.errors import LeaseLost, LedgerUnavailable, ResultLost
from celery_idem.keys import RunKey
from celery_idem.ledger.beats import BeatVerbs
from celery_idem.ledger.key_verbs import KeyVerbs
from celery_idem.ledger.lock_verbs import LockRequest, LockRow, LockVerbs, Taken
from celery_idem.ledger.outside import OutsideVerbs
from celery_idem.ledger.records import (
    HANDOVER,
    LAPSE,
    REFRESH,
    HistoryLine,
    LeaseCount,
    LiveBeat,
    NewSlot,
    Owner,
    Pause,
    Reservation,
    Retry,
    Unsent,
    check_closing,
    claimable,
)
from celery_idem.ledger.rounds import ROUNDS, rounds
from celery_idem.ledger.verbs import OwnerVerbs
from celery_idem.run import Claim, ClaimOutcome, ClaimRequest, RunRow, RunState

__all__ = [
    "HANDOVER",
    "LAPSE",
    "REFRESH",
    "HistoryLine",
    "LeaseCount",
    "Ledger",
    "LiveBeat",
    "LockRequest",
    "LockRow",
    "NewSlot",
    "Owner",
    "Pause",
    "Reservation",
    "Retry",
    "Taken",
    "Unsent",
    "check_closing",
    "claimable",
]


class Ledger(OwnerVerbs, KeyVerbs, BeatVerbs, LockVerbs, OutsideVerbs):
    """The tables that record runs, and the only way to change them.

    Make one with `Ledger.from_url`. Safe to share between threads; a forked process opens its own
    connections.
    """

    @classmethod
    def from_url(
        cls,
        url: str,
        *,
        schema: str | None = None,
        engine_options: Mapping[str, Any] | None = None,
        create_tables: bool = True,
    ) -> Ledger:
        """The ledger in the database at `url`.

        Arguments:
            url: SQLAlchemy URL of PostgreSQL, MariaDB, MySQL or SQLite.
            schema: schema of the tables; None for the connection's default.
            engine_options: further arguments of `sqlalchemy.create_engine`.
            create_tables: create the tables at first use if they are absent.

        Raises:
            ImproperlyConfigured: the URL or an option cannot be used.
        """
        from celery_idem.ledger.sql import SqlLedger

        return SqlLedger(
            url, schema=schema, engine_options=engine_options, create_tables=create_tables
        )

    @abstractmethod
    def twin(self) -> Ledger:
        """A ledger of the same tables with connections of its own."""

    # -- put together from verbs ----------------------------------------------------------------

    def claim(self, request: ClaimRequest) -> Claim:
        """Become the owner of a run, or learn why not.

        Raises:
            LedgerUnavailable: the database did not answer; the run may be claimed under the
                request's lease, which must be abandoned.
        """
        for _ in rounds():
            claim = self._take_or_skip(request)
            if claim:
                return claim
            seen = self.read(request.key)
            if seen is None or claimable(seen, request):
                continue
            settle = self.claim_of_other if seen.is_of_other(request) else self._settle
            claim = settle(request, seen)
            if claim:
                return claim
        # Not an answer: the message must come again, as it may be the only one.
        raise LedgerUnavailable(
            f"run {request.key} was changed by others in each of {ROUNDS} tries to claim it",
            "it is tried again when the message comes again",
        )

    def _take_or_skip(self, request: ClaimRequest) -> Claim | None:
        """Take, or skip, a run that nobody owns; None if it is not such a run."""
        if request.skip is None:
            won = self.try_claim(request)
            return Claim(ClaimOutcome.CLAIMED, *won) if won else None
        skipped = self.try_skip(request, request.skip)
        return Claim(ClaimOutcome.SKIPPED, error=request.skip) if skipped else None

    def _settle(self, request: ClaimRequest, seen: RunRow) -> Claim | None:
        """The answer for a row that cannot simply be claimed; None to look again."""
        if seen.state is not RunState.RUNNING or seen.is_closed_to(request):
            return _answer(seen)
        if seen.claim_id == request.claim_id:
            return Claim(ClaimOutcome.CLAIMED, seen.fence, seen.attempts)
        if (seen.lease_seconds or 0.0) > 0 or request.retries < seen.retries:
            return Claim(ClaimOutcome.RUNNING, seen=seen)
        if seen.lease_seconds is not None and seen.lease_id:
            self.bury(seen.lease_id)
        return self._inherit(request, seen)

    def _inherit(self, request: ClaimRequest, seen: RunRow) -> Claim | None:
        """Take over from an owner that is gone, unless the run is not to be executed again."""
        same_retry = request.retries == seen.retries
        if request.revoked:
            return self._kill(seen, f"its owner is gone, and {request.skip}")
        if request.abandon_on_crash:
            return self._kill(seen, "its owner is gone, and on_crash is 'abandon'")
        if same_retry and seen.attempts >= request.max_attempts:
            return self._kill(seen, f"its owners are gone after {seen.attempts} attempts")
        won = self.try_takeover(request, seen)
        return Claim(ClaimOutcome.CLAIMED, *won, taken_over=True) if won else None

    def _kill(self, seen: RunRow, error: str) -> Claim | None:
        return (
            Claim(ClaimOutcome.KILLED, seen=seen, error=error)
            if self.try_kill(seen, error)
            else None
        )

    def end(
        self,
        key: RunKey,
        fence: int,
        state: RunState,
        error: str | None = None,
        unsent: Unsent | None = None,
        stored: str | None = None,
        task_id: str | None = None,
    ) -> None:
        """End the caller's claim: the run is now in `state`.

        Arguments:
            unsent: what is to be sent now; given until `callbacks_sent`.
            stored: its result, as JSON, to be kept for good.
            task_id: of its message, if the key may go to another one.

        Raises:
            LeaseLost: the run belongs to somebody else; nothing was changed.
            ResultLost: a transaction of the caller has ended the run as succeeded.
            LedgerUnavailable: the database did not answer.
        """
        if not self.try_end(key, fence, state, error, unsent, stored):
            self._must_be(key, fence, state, task_id)

    def retry(self, key: RunKey, fence: int, retry: Retry) -> None:
        """End the caller's claim: the run waits for `retry`, which may be published now.

        Raises:
            LeaseLost: the run belongs to somebody else; nothing was changed.
            ResultLost: a transaction of the caller has ended the run as succeeded.
            LedgerUnavailable: the database did not answer.
        """
        if not self.try_retry(key, fence, retry):
            self._must_be(key, fence, RunState.RETRYING)

    def give_back(
        self, key: RunKey, fence: int, error: str, seconds: float, message: str | None = None
    ) -> bool:
        """End the caller's claim: the run is ``scheduled`` again, as its message was put back.

        It is published again if nobody claims it within `seconds`. False if the run belongs to
        somebody else.

        Arguments:
            message: JSON of its message, for a run that has no other.

        Raises:
            LedgerUnavailable: the database did not answer.
        """
        if self.try_give_back(key, fence, error, seconds, message):
            return True
        row = self.read(key)
        return row is not None and (row.fence, row.state) == (fence, RunState.SCHEDULED)

    def _must_be(
        self, key: RunKey, fence: int, state: RunState, task_id: str | None = None
    ) -> None:
        # No row changed: either a try whose answer was lost did it, or we are late.
        row = self.run_at(key, fence, task_id)
        if row is None:
            raise LeaseLost(key.text, fence, "the run is not in the ledger any more")
        if (row.fence, row.state) == (fence, RunState.SUCCEEDED) and state is not row.state:
            # By a transaction of the body, which has not learned that it was committed.
            raise ResultLost(key.text)
        if row.fence != fence or row.state is not state:
            raise LeaseLost(
                key.text, fence, f"the ledger has it {row.state.label} at fence {row.fence}"
            )

    def repair(self, request: ClaimRequest, seen: RunRow) -> int | None:
        """Become the one who does what the dead owner of an ended run has left undone.

        Returns:
            The new fence; None if that owner lives, or somebody else does it.

        Raises:
            LedgerUnavailable: the database did not answer.
        """
        if (seen.lease_seconds or 0.0) > 0:
            return None
        if seen.lease_seconds is not None and seen.lease_id:
            self.bury(seen.lease_id)
        return self.try_repair(request, seen)

    def was_committed(self, key: RunKey, fence: int, task_id: str | None = None) -> bool:
        """Whether a transaction of the caller's whose COMMIT was not answered has ended the run.

        Arguments:
            task_id: as in `end`.

        Raises:
            LedgerUnavailable: the database did not answer.
        """
        if self.try_hold(key, fence):
            return False
        row = self.run_at(key, fence, task_id)
        return row is not None and (row.fence, row.state) == (fence, RunState.SUCCEEDED)


def _answer(seen: RunRow) -> Claim:
    """What a run is that cannot be claimed."""
    if seen.state.final:
        return Claim(ClaimOutcome.FINISHED, seen=seen)
    is_running = seen.state is RunState.RUNNING
    return Claim(ClaimOutcome.RUNNING if is_running else ClaimOutcome.RETRYING, seen=seen)
