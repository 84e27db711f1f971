"""What an owner says to the ledger, one guarded statement each.

Owns the signatures of these verbs and the promise of each; a store makes them true, and what is put
together from them stands in `celery_idem.ledger.Ledger`. Must not know how they are stored.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection
from contextlib import AbstractContextManager
from typing import Any

from celery_idem.keys import RunKey
from celery_idem.ledger.records import Owner, Retry, Unsent
from celery_idem.run import ClaimRequest, RunRow, RunState


class OwnerVerbs(ABC):
    """Leases, claims and endings."""

    # -- leases ---------------------------------------------------------------------------------

    @abstractmethod
    def register(self, lease_id: str, owner: Owner, seconds: float) -> None:
        """Insert a lease that expires after `seconds`. `lease_id` was never used before."""

    @abstractmethod
    def renew(self, lease_ids: Collection[str], seconds: float) -> set[str]:
        """Prolong those of `lease_ids` that have not expired; return these."""

    @abstractmethod
    def bury(self, lease_id: str) -> None:
        """Delete the lease if it has expired by the database's clock."""

    @abstractmethod
    def release(self, lease_ids: Collection[str]) -> None:
        """Delete leases of the caller under which nothing is executed any more."""

    @abstractmethod
    def release_child(self, process: str, pid: int) -> None:
        """Delete the leases of a child of the caller that is known to be dead."""

    # -- runs -----------------------------------------------------------------------------------

    @abstractmethod
    def read(self, key: RunKey) -> RunRow | None:
        """The run as it stands, with the remaining seconds of its lease; None if unknown."""

    @abstractmethod
    def try_claim(self, request: ClaimRequest) -> tuple[int, int] | None:
        """Insert the run as ``running``, or move it there from ``scheduled``, ``emitted`` or the
        awaited ``retrying``. Return its (fence, attempts), or None if the row was not claimable.

        A ``claim_id`` claims a run once: repeated after its claim has ended, it changes nothing.
        """

    @abstractmethod
    def try_takeover(self, request: ClaimRequest, seen: RunRow) -> tuple[int, int] | None:
        """Continue a running run whose lease is gone, by compare-and-set on the fence seen."""

    @abstractmethod
    def try_kill(self, seen: RunRow, error: str) -> bool:
        """Make a running run whose lease is gone ``dead``, by compare-and-set on the fence."""

    @abstractmethod
    def try_skip(self, request: ClaimRequest, error: str) -> bool:
        """Insert the run as ``skipped``, or move it there from where `try_claim` would claim it.

        True, too, if an earlier try of the same ``claim_id`` has done it.
        """

    @abstractmethod
    def try_end(
        self,
        key: RunKey,
        fence: int,
        state: RunState,
        error: str | None,
        unsent: Unsent | None = None,
        stored: str | None = None,
    ) -> bool:
        """Move a running run of this fence to `state`; False if nothing was changed."""

    @abstractmethod
    def try_retry(self, key: RunKey, fence: int, retry: Retry) -> bool:
        """Move a running run of this fence to ``retrying``; False if nothing was changed."""

    @abstractmethod
    def try_give_back(
        self, key: RunKey, fence: int, error: str, seconds: float, message: str | None = None
    ) -> bool:
        """Move a running run of this fence back to ``scheduled``; False if nothing was changed.

        Arguments:
            message: JSON of its message, for a run that has no other.
        """

    @abstractmethod
    def fail_of_child(self, key: RunKey, process: str, pid: int, error: str) -> bool:
        """Move a running run whose lease belongs to this dead child to ``failed``."""

    # -- what follows the end -------------------------------------------------------------------

    @abstractmethod
    def keep_result(
        self, key: RunKey, fence: int, result: str | None, *, stored: bool = False
    ) -> None:
        """The result of an ended run of this fence, until its callbacks have been sent.

        Arguments:
            stored: keep it for good, whether there are callbacks or not.
        """

    @abstractmethod
    def callbacks_sent(self, key: RunKey, fence: int, *, stored: bool = False) -> None:
        """The callbacks of an ended run of this fence have been sent.

        Arguments:
            stored: its result is kept for good.
        """

    @abstractmethod
    def let_go(self, key: RunKey, fence: int, message: str | None) -> None:
        """Own an ended run of this fence no more: its callbacks are for somebody else to send.

        Arguments:
            message: JSON of its message, for a run that has no other.
        """

    @abstractmethod
    def try_repair(self, request: ClaimRequest, seen: RunRow) -> int | None:
        """Take an ended run whose lease is gone, by compare-and-set on the fence; the new one."""

    # -- an owner's own transaction --------------------------------------------------------------

    @abstractmethod
    def transaction(
        self,
        key: RunKey,
        fence: int,
        *,
        isolation_level: str | None,
        idle: float,
        awaited: bool = False,
    ) -> AbstractContextManager[Any]:
        """A connection in a transaction, whose COMMIT also ends the claim as ``succeeded``.

        It is committed where the block ends, and rolled back if the block raises.

        Arguments:
            isolation_level: as SQLAlchemy names it; None for the database's own.
            idle: seconds after which the database may end the transaction if nothing is executed.
            awaited: callbacks are sent after the run, see `Unsent`; `keep_result` tells with what.

        Raises:
            LeaseLost: the run belongs to somebody else; the transaction was rolled back.
            CommitUnknown: the COMMIT was not answered, see `was_committed`; its cause is why.
        """

    @abstractmethod
    def session(self, connection: Any, factory: Any) -> AbstractContextManager[Any]:
        """A session of SQLAlchemy's ORM on a connection of `transaction`."""

    @abstractmethod
    def finish_statement(
        self, key: RunKey, fence: int, paramstyle: str, awaited: bool = False
    ) -> tuple[str, Any]:
        """What `transaction` does before its COMMIT, as SQL and parameters for another connection.

        Arguments:
            paramstyle: how the parameters are marked (PEP 249).
        """

    @abstractmethod
    def try_hold(self, key: RunKey, fence: int) -> bool:
        """Whether the run is running at this fence, once other transactions have let it go."""
