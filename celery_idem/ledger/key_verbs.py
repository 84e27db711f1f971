"""A key that names one run after another, and runs that are recorded before they are published.

A run that has ended may leave its key to another message (`celery_idem.policy.Scope`). The row of
the key is then that of its latest run, with the next fence; the earlier one is kept under the name
of its message, before the row changes hands: its copies, however late, find it there.

Owns these verbs, and what is put together from them. Must not know how they are stored.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from celery_idem.errors import LedgerUnavailable
from celery_idem.keys import RunKey
from celery_idem.ledger.records import Reservation
from celery_idem.ledger.rounds import ROUNDS, rounds
from celery_idem.run import Claim, ClaimOutcome, ClaimRequest, RunRow, RunState


class KeyVerbs(ABC):
    """Reservations, and keys that change hands."""

    @abstractmethod
    def read(self, key: RunKey) -> RunRow | None:
        """The run as it stands."""

    @abstractmethod
    def keep_apart(self, seen: RunRow) -> None:
        """Record the ended run `seen` also under the name of its message, unless it is there."""

    @abstractmethod
    def try_claim_again(self, request: ClaimRequest, seen: RunRow) -> tuple[int, int] | None:
        """Move the key of the ended run `seen` to ``running`` for another message.

        By compare-and-set on its fence and claim, not before ``free_after``, and not while its
        worker is about to send callbacks. Return (fence, attempts), or None.
        """

    @abstractmethod
    def try_reserve(self, reservation: Reservation) -> None:
        """Insert the run as ``scheduled``, unless the key is there."""

    @abstractmethod
    def try_reserve_again(self, reservation: Reservation, seen: RunRow) -> bool:
        """Move the key of the ended run `seen` to ``scheduled``, as `try_claim_again`."""

    @abstractmethod
    def try_rely_on(self, seen: RunRow) -> bool:
        """Keep the reservation `seen` from being cancelled: somebody else counts on it now."""

    @abstractmethod
    def cancel(self, reservation: Reservation) -> None:
        """Undo a reservation of the caller's that nobody has claimed or relies on."""

    @abstractmethod
    def leave(self, key: RunKey, task_id: str, *, followed: bool = False) -> None:
        """Forget the reservation that this message has of the key, if it was never claimed.

        Arguments:
            followed: also one that has followed a run which was claimed.
        """

    @abstractmethod
    def _settle(self, request: ClaimRequest, seen: RunRow) -> Claim | None:
        """The answer for a row that cannot simply be claimed; None to look again."""

    # -- put together from verbs ----------------------------------------------------------------

    def claim_of_other(self, request: ClaimRequest, seen: RunRow) -> Claim | None:
        """The answer for a key whose run is another message's; None to look again."""
        is_free = seen.leaves_key(request.free_after)
        if request.task_id is None or (request.free_after is None and not is_free):
            return self._settle(request, seen)
        own = self.read(request.key.of_message(request.task_id))
        if own is not None:
            was_skipped = own.state is RunState.SKIPPED and request.skip is not None
            return (
                Claim(ClaimOutcome.SKIPPED, error=request.skip)
                if was_skipped
                else Claim(ClaimOutcome.FINISHED, seen=own)
            )
        if not is_free:
            claim = self._settle(request, seen)
            # Its own message, when it comes again, tells its sender that it is dead.
            was_killed = claim is not None and claim.outcome is ClaimOutcome.KILLED
            return None if was_killed else claim
        if request.skip is not None:
            return Claim(ClaimOutcome.SKIPPED, error=request.skip)
        self.keep_apart(seen)
        won = self.try_claim_again(request, seen)
        return Claim(ClaimOutcome.CLAIMED, *won) if won else None

    def run_at(self, key: RunKey, fence: int, task_id: str | None) -> RunRow | None:
        """The caller's run, also if it has ended and its key has gone to another message since.

        Arguments:
            fence: of the caller's claim.
            task_id: of its message; None if its key goes to nobody else.
        """
        row = self.read(key)
        if task_id is None or row is None or row.fence == fence:
            return row
        return self.read(key.of_message(task_id)) or row

    def reserve(self, reservation: Reservation) -> RunRow | None:
        """Record a message that is about to be published; None if it is to be published.

        Else the run that has the key: of an earlier message, which is to be executed, is being
        executed, or was executed and has not left the key to others yet.

        Raises:
            LedgerUnavailable: the database did not answer; the reservation may be there.
        """
        key = reservation.key
        for _ in rounds():
            self.try_reserve(reservation)
            seen = self.read(key)
            if seen is None:
                continue
            if reservation.claim_id == seen.claim_id or reservation.task_id == seen.task_id:
                return None
            if not seen.leaves_key(reservation.free_after):
                if seen.may_be_cancelled and not self.try_rely_on(seen):
                    continue
                return seen
            self.keep_apart(seen)
            if self.try_reserve_again(reservation, seen):
                return None
        raise LedgerUnavailable(
            f"run {key} was changed by others in each of {ROUNDS} tries to reserve it",
            "publish again",
        )
