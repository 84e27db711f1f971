"""What a run is, and the run being executed here.

Owns the states of a run and the moves between them, the rows and answers that a ledger gives, and
`current_run`. Must not know how any of it is stored, or what Celery is.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum, IntEnum
from typing import Any, Protocol

from celery_idem.errors import IdemError, LeaseLost, NoCurrentRun
from celery_idem.keys import EPOCH, RunKey


class RunState(IntEnum):
    """Where a run stands. Stored as a small integer: never renumber."""

    #: Due: a beat recorded the slot; its message is, or is about to be, on its way.
    SCHEDULED = 0
    #: Published about once for a task that does not claim; nobody looks after it any more.
    EMITTED = 1
    #: Claimed; owned through a lease.
    RUNNING = 2
    #: The body asked for a retry; waits for the message of the retry.
    RETRYING = 3
    #: Finished.
    SUCCEEDED = 4
    #: The body raised, and there are no retries left.
    FAILED = 5
    #: Given up by the ledger: its owners died too often.
    DEAD = 6
    #: Never to be executed, for a recorded reason.
    SKIPPED = 7

    @property
    def final(self) -> bool:
        """True if no message ever moves the run again."""
        return self >= RunState.SUCCEEDED

    @property
    def label(self) -> str:
        return self.name.lower()


_S = RunState

#: Why a run is skipped whose slot came too late to be started.
TOO_LATE = "it was not started before its deadline"
#: Of a run that is ``scheduled`` again as nothing was executed under its claim.
UNANSWERED = "its claim was not answered"

#: The moves that exist; every guarded write of a ledger is one of them. RUNNING to RUNNING is a
#: takeover, RUNNING to SCHEDULED a claim that was given back.
TRANSITIONS: dict[RunState | None, frozenset[RunState]] = {
    None: frozenset({_S.SCHEDULED, _S.EMITTED, _S.RUNNING, _S.SKIPPED}),
    _S.SCHEDULED: frozenset({_S.EMITTED, _S.RUNNING, _S.SKIPPED}),
    _S.EMITTED: frozenset({_S.RUNNING, _S.SKIPPED}),
    _S.RUNNING: frozenset(
        {_S.RUNNING, _S.SCHEDULED, _S.RETRYING, _S.SUCCEEDED, _S.FAILED, _S.DEAD, _S.SKIPPED}
    ),
    _S.RETRYING: frozenset({_S.RUNNING, _S.SKIPPED}),
    _S.SUCCEEDED: frozenset(),
    _S.FAILED: frozenset(),
    _S.DEAD: frozenset(),
    _S.SKIPPED: frozenset(),
}


@dataclass(frozen=True, slots=True)
class RunRow:
    """A run as the ledger shows it; times by the database's clock, aware, in UTC.

    Attributes:
        retries: the retry number being executed, or awaited while `RETRYING`.
        attempts: claims of that retry number.
        fence: number of claims and takeovers so far; a write with an old fence is refused.
        lease_id: the lease that owns the run, while `RUNNING`.
        lease_seconds: seconds until that lease expires; None if its row is gone.
        error: why it failed, died or was skipped.
        callbacks_pending: it succeeded, and its links, chain or chord are not known to be sent.
        result: what they are to be sent with, or what was stored, as JSON.
        payload: a digest of the arguments with which it was claimed first, if they are compared.
        age: seconds since it was recorded.
        late: its deadline has passed.
    """

    key: RunKey
    state: RunState
    task: str
    namespace: str
    entry: str | None
    fence: int
    attempts: int
    retries: int
    task_id: str | None
    lease_id: str | None
    claim_id: str | None
    emit_count: int
    message: str | None
    error: str | None
    due_at: datetime | None
    deadline: datetime | None
    started_at: datetime | None
    finished_at: datetime | None
    callbacks_pending: bool = False
    result: str | None = None
    lease_seconds: float | None = None
    payload: str | None = None
    age: float = field(default=0.0, compare=False)
    late: bool = field(default=False, compare=False)

    @property
    def may_be_cancelled(self) -> bool:
        """True of a reservation whose publish may still fail, and that nobody else relies on."""
        return self.state is RunState.SCHEDULED and self.entry is None and not self.emit_count

    @property
    def never_begins(self) -> bool:
        """True if it has expired in its queue, and nothing of it was ever begun."""
        waits = self.state in (RunState.SCHEDULED, RunState.EMITTED) and self.late
        return (waits or self.state is RunState.SKIPPED) and not self.fence and self.entry is None

    def leaves_key(self, free_after: float | None) -> bool:
        """True if it has ended, and another message may have its key now.

        Not while its worker is about to send callbacks, of which the row tells.

        Arguments:
            free_after: seconds since its record; None: never.
        """
        if self.never_begins:
            return True
        if free_after is None or not self.state.final or self.age < free_after:
            return False
        return not self.callbacks_pending or self.lease_seconds is None

    def is_of_other(self, request: ClaimRequest) -> bool:
        """True if the run is that of a message with another task id, and so of another sender."""
        return self.task_id is not None and self.task_id != request.task_id

    def has_other_payload(self, payload: str | None, task_id: str | None) -> bool:
        """True if the run is known to be for other arguments than the message with this id."""
        # A message that comes again may have been changed by its body.
        if task_id is not None and self.task_id == task_id:
            return False
        return None not in (self.payload, payload) and self.payload != payload

    def is_closed_to(self, request: ClaimRequest) -> bool:
        """True if the run is not this message's to execute, to skip or to give up.

        It has other arguments; or another sender, and nothing is to begin by it any more.
        """
        is_unwanted = request.skip is not None and self.is_of_other(request)
        return is_unwanted or self.has_other_payload(request.payload, request.task_id)


class ClaimOutcome(Enum):
    """The ledger's answer to a claim. Only `CLAIMED` lets the body run."""

    #: This thread owns the run now.
    CLAIMED = "claimed"
    #: Another owner is executing it.
    RUNNING = "running"
    #: It waits for the message of a later retry.
    RETRYING = "retrying"
    #: It has ended: succeeded, failed, dead or skipped.
    FINISHED = "finished"
    #: Its owner was gone and it is not to be executed again: this claim has made it dead.
    KILLED = "killed"
    #: Nobody had begun it, and it was not to begin any more: this claim has skipped it.
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class ClaimRequest:
    """What a thread asks for when a message arrives.

    Attributes:
        claim_id: new for each delivery; recognises this claim after a lost answer.
        retries: the retry number of the message.
        abandon_on_crash: a run whose owner is gone is not to be executed again.
        expired, late, revoked: nothing is to begin by this message any more.
        payload: a digest of its arguments; a run with another one is not executed by it. None: not
            compared.
        free_after: seconds since its record after which a run that has ended leaves the key to this
            message, if it was another one's; None: never.
    """

    key: RunKey
    task: str
    namespace: str
    entry: str | None
    task_id: str | None
    retries: int
    lease_id: str
    claim_id: str
    max_attempts: int = 5
    abandon_on_crash: bool = False
    expired: bool = False
    late: bool = False
    revoked: bool = False
    payload: str | None = None
    free_after: float | None = None

    @property
    def skip(self) -> str | None:
        """Why a run that nobody has begun, or that waits for this retry, is to be skipped."""
        if self.revoked:
            return "it was revoked"
        if self.late:
            return TOO_LATE
        return "it was not started before it expired" if self.expired else None


@dataclass(frozen=True, slots=True)
class Claim:
    """The answer to a claim: a "no" is a value, never an exception.

    Attributes:
        taken_over: the previous owner's lease had ended, and this claim continued its run.
        seen: the row as it was found, if it was not claimed.
        error: why it is dead, if this claim killed it.
        doubtful: a try of this claim was not answered, and may be executed after this answer.
    """

    outcome: ClaimOutcome
    fence: int = 0
    attempts: int = 0
    taken_over: bool = False
    seen: RunRow | None = None
    error: str | None = None
    doubtful: bool = False


class Tenure(Protocol):
    """The right under which a run is executed: a lease."""

    @property
    def lost(self) -> bool:
        """True once the lease is known to have ended."""

    @property
    def trusted_for(self) -> float:
        """Seconds for which the lease is still trusted; 0.0 or less: no longer."""


class Books(Protocol):
    """Where a body can end its own run; `Run` has the descriptions."""

    def transaction(self, run: Run, isolation_level: str | None) -> AbstractContextManager[Any]: ...

    def session(
        self, run: Run, factory: Any, isolation_level: str | None
    ) -> AbstractContextManager[Any]: ...

    def finish_statement(self, run: Run, paramstyle: str) -> tuple[str, Any]: ...


@dataclass(slots=True)
class Run:
    """A claimed run, seen from its body.

    Attributes:
        key: the run key.
        entry: name of the schedule entry, if a beat made the run.
        task: name of the task.
        fence: number of this claim; larger than that of every earlier owner of the run.
        attempt: claims of this retry number, from 1; more than 1 after a crash.
        retries: Celery's retry number.
    """

    key: RunKey
    task: str
    fence: int
    attempt: int
    retries: int
    tenure: Tenure
    books: Books | None = field(default=None, repr=False)
    #: Where its body takes locks (`celery_idem.lock.Locks`).
    locks: object = field(default=None, repr=False)
    entry: str | None = None
    task_id: str | None = None
    #: The claim was ended by a retry, a hand-back or a transaction: nothing more may be written.
    ended: bool = field(default=False, repr=False)
    #: Why the ledger could not be told of a retry: whether it was, is for the message to find out.
    doubt: IdemError | None = field(default=None, repr=False)

    @property
    def slot(self) -> datetime | None:
        """The nominal instant (UTC) of the run, or None if it belongs to no slot."""
        return None if self.key.slot == EPOCH else self.key.slot

    @property
    def trusted_for(self) -> float:
        """Seconds for which this thread may still act as the owner, by its own estimate."""
        return 0.0 if self.ended or self.tenure.lost else max(0.0, self.tenure.trusted_for)

    def check(self) -> None:
        """Raise `LeaseLost` if this thread can no longer be sure to own the run.

        Call it before an effect that cannot be taken back, in bodies that may take longer than
        the lease.
        """
        if self.ended:
            raise LeaseLost(
                self.key.text, self.fence, "its claim has ended: by retry() or with its transaction"
            )
        if self.tenure.lost or self.tenure.trusted_for <= 0:
            raise LeaseLost(self.key.text, self.fence, "its lease was not renewed in time")

    # -- transactional mode ----------------------------------------------------------------------

    def transaction(self, isolation_level: str | None = None) -> AbstractContextManager[Any]:
        """A SQLAlchemy Connection to the ledger's database, whose COMMIT contains the run's end.

        What is written through it and ``succeeded`` become visible together or not at all: such
        effects take place exactly once, if business tables and ledger are in one database. The
        block commits when it ends and rolls back if it raises; leave both to it. The run has ended
        with it: what the body does afterwards changes nothing in the ledger.

        Arguments:
            isolation_level: as SQLAlchemy names it; the database's default if None. SQLite begins
                with BEGIN IMMEDIATE whatever it is.

        Raises:
            LeaseLost: the run has another owner; everything was rolled back.
            ResultLost: the run had ended, by `finish_statement`; everything was rolled back.
            LedgerError: no such level, the database does not answer, or the body itself has ended
                the transaction.
            SQLAlchemyError: a statement or the COMMIT failed, and everything was rolled back: the
                run is still owned, and the block may be tried again.
        """
        return self._books().transaction(self, isolation_level)

    def session(
        self, factory: Any = None, isolation_level: str | None = None
    ) -> AbstractContextManager[Any]:
        """As `transaction`, with a Session of SQLAlchemy's ORM.

        Arguments:
            factory: a `sessionmaker` or a subclass of `Session`. The session works in savepoints:
                its own `commit` and `rollback` do not end the transaction.
        """
        return self._books().session(self, factory, isolation_level)

    def finish_statement(self, paramstyle: str = "format") -> tuple[str, Any]:
        """The statement that ends the run, and its parameters, for a connection of the body's own.

        Execute it as the last one of a transaction in the ledger's database, by Django's cursor or
        a driver's. If it changes no row, the run has another owner: roll back.

        Arguments:
            paramstyle: how the driver marks parameters (PEP 249): ``format`` for ``%s``, as
                psycopg, PyMySQL and Django take it; ``qmark`` for sqlite3.
        """
        return self._books().finish_statement(self, paramstyle)

    def _books(self) -> Books:
        self.check()
        assert self.books is not None
        return self.books


CURRENT: ContextVar[Run | None] = ContextVar("celery_idem_current_run", default=None)


def current_run() -> Run:
    """The run that is being executed by the caller.

    Raises:
        NoCurrentRun: no claimed run is being executed here.
    """
    run = CURRENT.get()
    if run is None:
        raise NoCurrentRun
    return run
