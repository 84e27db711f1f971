"""One run outside of Celery: claimed, executed, ended.

Owns what the block of `Ledger.once` does, and how its end follows from what its body did. A "no" of
the ledger is None: exceptions are for faults. Must not know who calls, or how often.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from functools import partial
from types import TracebackType
from uuid import uuid4

from celery_idem import signals
from celery_idem.ending import Transactions, error_of, persist
from celery_idem.errors import (
    Contended,
    IdemError,
    LeaseLost,
    LedgerError,
    LockLost,
    LockNotAcquired,
    ResultLost,
)
from celery_idem.holding import GRACE, claimed, owning, take_back
from celery_idem.keys import RunKey
from celery_idem.lease import Lease
from celery_idem.ledger import Ledger
from celery_idem.once.party import Job, Party
from celery_idem.policy import OnContended
from celery_idem.run import CURRENT, Claim, ClaimOutcome, ClaimRequest, Run, RunState


class Block(AbstractContextManager["Run | None"]):
    """The run `key` of a ledger; see `Ledger.once`. Not a decorator: a "no" must be looked at.

    Attributes:
        claim: the ledger's answer, once the block was entered.
    """

    def __init__(self, ledger: Ledger, job: Job, key: RunKey) -> None:
        self.job = job
        self.key = key
        self.claim: Claim | None = None
        self._of = ledger
        self._stack: ExitStack | None = None

    def __enter__(self) -> Run | None:
        if self._stack is not None:
            raise RuntimeError("this block is in use: call once() for each one")
        self._party = Party.of(self._of, self.job.lease)
        self._leases = self._party.leases
        self._ledger = self._leases.ledger
        with ExitStack() as stack:
            run = self._claim(stack)
            self._stack = stack.pop_all()
        return run

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool | None:
        assert self._stack is not None
        stack, self._stack = self._stack, None
        return stack.__exit__(kind, error, trace)

    # -- the claim -------------------------------------------------------------------------------

    def _claim(self, stack: ExitStack) -> Run | None:
        lease = self._party.acquire()
        request, claim = claimed(
            self._leases,
            lease,
            partial(self._request, lease),
            lambda request, _: take_back(self._leases, lease, request),
        )
        self.claim = claim
        lease.spent = claim.doubtful
        if claim.outcome is not ClaimOutcome.CLAIMED:
            self._leases.give_back(lease)
            self._decline(claim)
            return None
        if lease.trusted_for <= 0:
            take_back(self._leases, lease, request)
            raise LeaseLost(self.key.text, claim.fence, "its lease ended while it was claimed")
        run = self._make_run(claim, lease)
        stack.enter_context(self._body(run, lease))
        if claim.taken_over:
            self._record("takeover", f"fence {run.fence}, attempt {run.attempt}")
        signals.claimed(self.job, run, claim.taken_over)
        return run

    def _request(self, lease: Lease) -> ClaimRequest:
        return ClaimRequest(
            key=self.key,
            task=self.job.name,
            namespace=self.job.namespace,
            entry=None,
            task_id=None,
            retries=0,
            lease_id=lease.id,
            claim_id=uuid4().hex,
            max_attempts=self.job.max_attempts,
            abandon_on_crash=self.job.abandon,
        )

    def _make_run(self, claim: Claim, lease: Lease) -> Run:
        return Run(
            key=self.key,
            task=self.job.name,
            fence=claim.fence,
            attempt=claim.attempts,
            retries=0,
            tenure=lease,
            books=Transactions(self.job, self._ledger, self.job.lease),
            locks=self._party.locks(self.job.namespace),
        )

    def _decline(self, claim: Claim) -> None:
        if claim.outcome is ClaimOutcome.KILLED:
            signals.given_up(self.job, self.key, str(claim.error))
            return
        if claim.outcome is ClaimOutcome.FINISHED and claim.seen is not None:
            reason = f"its run has ended: {claim.seen.state.label}"
        else:
            reason = "its run is being executed"
        self._record("duplicate", reason)
        signals.duplicate(self.job, self.key, None, reason)

    # -- the body --------------------------------------------------------------------------------

    @contextmanager
    def _body(self, run: Run, lease: Lease) -> Iterator[None]:
        with owning(run, lease, self._leases, self._party.locks(self.job.namespace)):
            token = CURRENT.set(run)
            try:
                yield
            except Exception as exc:
                self._ended_by(run, exc)
                raise
            except BaseException:
                if not run.ended:
                    self._let_go(lease)
                raise
            finally:
                CURRENT.reset(token)
            if not run.ended:
                self.end(run, RunState.SUCCEEDED)
                signals.succeeded(self.job, run)

    def _ended_by(self, run: Run, exc: Exception) -> None:
        """Bring an exception of the body into the ledger; the caller raises it on."""
        if run.ended:
            return
        of_run = isinstance(exc, LeaseLost) and exc.key == run.key.text
        if of_run or (isinstance(exc, LockLost) and run.tenure.trusted_for <= 0):
            assert isinstance(exc, IdemError)
            # The run may still be ours, or nobody's: whoever asks next finds out.
            self._lose(run, exc)
        elif isinstance(exc, Contended):
            self._contended(run, exc)
        else:
            error = error_of(exc)
            # What the body raised is what the caller is to see; the log has the rest.
            with suppress(LeaseLost, LedgerError):
                self.end(run, RunState.FAILED, error)
                signals.failed(self.job, run.key, error)

    def _contended(self, run: Run, exc: Contended) -> None:
        """The run cannot enter a critical section: the next one who asks has it, or nobody."""
        reason = str(exc)
        if exc.then == OnContended.SKIP:
            self.end(run, RunState.SKIPPED, reason)
            signals.skipped(self.job, run.key, reason)
        else:
            self._write(run, lambda: self._give_back(run, reason))
        raise LockNotAcquired(exc.name, exc.waited) from None

    def _let_go(self, lease: Lease) -> None:
        """The body was torn down with its process: the run is for others at once."""
        self._leases.abandon(lease)
        with suppress(LedgerError):
            self._ledger.release([lease.id])

    # -- the end ---------------------------------------------------------------------------------

    def end(self, run: Run, state: RunState, error: str | None = None) -> None:
        """End the run, and wait for the database if it is away.

        Raises:
            LeaseLost: it has another owner.
            ResultLost: a statement of the body has ended it.
            LedgerError: the database refused the write.
        """
        self._write(run, lambda: self._ledger.end(run.key, run.fence, state, error))

    def _write(self, run: Run, write: Callable[[], None]) -> None:
        try:
            persist(run, write, eager=False)
        except ResultLost:
            run.ended = True
            raise
        except IdemError as exc:
            self._lose(run, exc)
            raise
        run.ended = True

    def _give_back(self, run: Run, error: str) -> None:
        if not self._ledger.give_back(run.key, run.fence, error, GRACE):
            raise LeaseLost(run.key.text, run.fence, "it was taken over")

    def _lose(self, run: Run, exc: IdemError) -> None:
        run.ended = True
        assert isinstance(run.tenure, Lease)
        self._leases.abandon(run.tenure)
        if isinstance(exc, LeaseLost):
            self._record("refused", str(exc))
            signals.refused(self.job, run.key, str(exc))
        else:
            signals.ledger_lost(f"Run {run.key} has ended, which could not be recorded", exc)

    def _record(self, kind: str, detail: str) -> None:
        try:
            self._ledger.record(kind, self.key, task=self.job.name, detail=detail)
        except LedgerError as exc:
            # The history is for people; what it tells of was decided by the run's row.
            signals.ledger_lost(f"The history has no line for {kind} of {self.key}", exc)
