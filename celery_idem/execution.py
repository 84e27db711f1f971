"""One delivery of a message: claimed, run, ended.

Owns what an arriving message gets, row by row (the guarantees in the documentation list them). A
"no" of the ledger ends in `Ignore`: the tracer acknowledges the message, and stores, signals and
counts nothing.
Must not know schedulers, nor how a ledger stores anything.
"""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import Any, NoReturn
from uuid import uuid4

from celery import states
from celery.exceptions import Ignore, SoftTimeLimitExceeded

from celery_idem import messages, signals, skipping
from celery_idem.aftermath import has_callbacks, is_awaited, is_left_undone, made_up
from celery_idem.closing import Closing
from celery_idem.delivery import soon
from celery_idem.ending import Transactions
from celery_idem.errors import (
    DuplicateRun,
    IdemError,
    KeyReused,
    LedgerError,
    LedgerUnavailable,
    RunDead,
)
from celery_idem.holding import claimed, owning, take_back
from celery_idem.keys import RunKey
from celery_idem.lease import Lease
from celery_idem.locking import section_of
from celery_idem.naming import payload_of
from celery_idem.overlapping import alone
from celery_idem.overriding import execute
from celery_idem.passing import executing
from celery_idem.policy import OnCrash, OnDatabaseError, OnDuplicate
from celery_idem.replaying import replayed
from celery_idem.run import CURRENT, Claim, ClaimOutcome, ClaimRequest, Run, RunRow, RunState

#: What says that the run is that of another message.
_SEEN = (ClaimOutcome.RUNNING, ClaimOutcome.RETRYING, ClaimOutcome.FINISHED)


class Execution(Closing):
    """One delivery of a message to a task, from claim to end."""

    def execute(self, args: Any, kwargs: Any) -> Any:
        key = self._key()
        if key is None:
            return execute(self.task, args, kwargs)
        self._renew_if_returned_often(key)
        if self.is_shared and skipping.is_unwanted(self.request):
            self._leave_key(key)
        try:
            self.member.announce(self.task.name)
            lease = self.leases.acquire()
        except IdemError as exc:
            return self._unclaimed(key, exc, args, kwargs)
        except SoftTimeLimitExceeded:
            # The body has not begun: nothing is lost if the message comes again.
            self._put_back(key, soon(), "its time limit ended before it was claimed")
        try:
            request, claim = self._claim(key, lease)
        except LedgerError as exc:
            return self._unclaimed(key, exc, args, kwargs)
        lease.spent = claim.doubtful
        if claim.outcome is not ClaimOutcome.CLAIMED:
            try:
                return self._not_claimed(request, claim, lease)
            finally:
                self.leases.give_back(lease)
        if lease.trusted_for <= 0:
            self._take_back(lease, request)
            self._put_back(key, soon(), "its lease ended while it was claimed")
        run = self._make_run(key, claim, lease)
        with owning(run, lease, self.leases, self.member.locks):
            return self._run(run, claim.taken_over, args, kwargs)

    def _leave_queue(self) -> None:
        """It waits no longer: another message may, from now on."""
        key = self.waits_as
        if key is None:
            return
        try:
            self.ledger.leave(key, self.request.id, followed=True)
        except LedgerError as exc:
            # Published again, as nobody claims it, a copy will.
            signals.ledger_lost(f"Run {key} seems to wait still", exc)

    def _leave_key(self, key: RunKey) -> None:
        """Nothing is to begin by this message: the key is free for others, if it has not begun."""
        with suppress(LedgerError):  # The claim meets the same, and deals with it.
            self.ledger.leave(key, self.request.id)
            if self.ledger.read(key) is None:
                signals.skipped(self.task, key, "nothing is to begin by its message any more")
                raise skipping.skipped(self.request)

    def _claim(self, key: RunKey, lease: Lease) -> tuple[ClaimRequest, Claim]:
        """What was asked, and the answer."""
        make_request = partial(self._request, key, lease)
        try:
            return claimed(self.leases, lease, make_request, partial(self._give_up, lease))
        except SoftTimeLimitExceeded:
            self._put_back(key, soon(), "its time limit ended while it was claimed")

    def _give_up(self, lease: Lease, request: ClaimRequest, exc: BaseException) -> None:
        """The claim was not answered."""
        runs = self._option("on_database_error") == OnDatabaseError.RUN
        # The body begins all the same: a claim that stands keeps others away, for a lease.
        if not (runs and isinstance(exc, LedgerError)) or skipping.is_unwanted(self.request):
            self._take_back(lease, request)

    def _take_back(self, lease: Lease, request: ClaimRequest) -> None:
        """The message of this claim comes again; unless it is a call, which fails."""
        expires = self.is_shared and self.request.expires
        if self.request.is_eager or expires:
            # No other message could have the key as long as this one is waited for.
            self.leases.take_back(lease)
            return
        message = None
        if self.is_shared:
            # A key that others have must not wait for a message that only the broker has.
            with suppress(Exception):
                message = self._message(request.key)
        take_back(self.leases, lease, request, message)

    # -- which run it is -------------------------------------------------------------------------

    def _request(self, key: RunKey, lease: Lease) -> ClaimRequest:
        return ClaimRequest(
            key=key,
            task=self.task.name,
            namespace=self.settings.namespace,
            entry=self.stamp.entry if self.stamp else None,
            task_id=self.request.id,
            retries=self.request.retries,
            lease_id=lease.id,
            claim_id=uuid4().hex,
            max_attempts=self._option("max_attempts"),
            abandon_on_crash=self._option("on_crash") == OnCrash.ABANDON,
            expired=skipping.is_expired(self.request),
            late=skipping.is_late(self.request),
            revoked=skipping.is_revoked(self.request),
            payload=payload_of(self.task, self.stamp, self.waits_as or key, self.request),
            free_after=self.task._idem_terms.free_after if self.is_shared else None,
        )

    def _make_run(self, key: RunKey, claim: Claim, lease: Lease) -> Run:
        return Run(
            key=key,
            task=self.task.name,
            fence=claim.fence,
            attempt=claim.attempts,
            retries=self.request.retries,
            tenure=lease,
            books=Transactions(
                self.task,
                self.ledger,
                self.settings.lease,
                has_callbacks(self.request),
                eager=self.request.is_eager,
            ),
            locks=self.member.locks,
            entry=self.stamp.entry if self.stamp else None,
            task_id=self.request.id,
        )

    # -- the body --------------------------------------------------------------------------------

    def _run(self, run: Run, taken_over: bool, args: Any, kwargs: Any) -> Any:
        token = CURRENT.set(run)
        has_begun = False
        try:
            if taken_over:
                self._record("takeover", run.key, f"fence {run.fence}, attempt {run.attempt}")
            signals.claimed(self.task, run, taken_over)
            self._store_started()
            own = alone(self.stamp, run, self.member.locks, self.settings.namespace)
            with own, section_of(self.task._idem_lock, args, kwargs):
                self._leave_queue()
                has_begun = True
                messages.keep_arguments(self.request)
                with executing(self.request):
                    result = execute(self.task, args, kwargs)
        except BaseException as exc:
            if _ends_the_worker(exc) or self._is_limit(exc):
                raise  # Its parent, or the next one who has the message, finds the run.
            if isinstance(exc, LedgerUnavailable) and not has_begun:
                self._not_begun(run, exc)
            self._ended_by(run, exc)
            raise
        finally:
            CURRENT.reset(token)
        self._succeeded(run, result)
        return result

    def _is_limit(self, exc: BaseException) -> bool:
        """True for the hard time limit of greenlets: their parent ends the run, and knows which."""
        hard = self.request.timelimit[0] if self.request.timelimit else None
        of_greenlets = type(exc).__module__.partition(".")[0] in ("gevent", "eventlet")
        is_base = not isinstance(exc, Exception)
        return of_greenlets and is_base and bool(hard or self.task.time_limit)

    def _store_started(self) -> None:
        request = self.request
        ignored = self.task.ignore_result or request.ignore_result
        if not self.task._idem_track_started or request.is_eager or ignored:
            return  # As Celery's tracer.
        meta = {"pid": self.member.pid, "hostname": request.hostname}
        try:
            self.task.backend.store_result(request.id, meta, states.STARTED, request=request)
        except SoftTimeLimitExceeded:
            raise
        except Exception as exc:
            # No reason for the run to fail, whose body has not begun.
            signals.started_not_stored(self.task, request.id, exc)

    # -- no claim --------------------------------------------------------------------------------

    def _not_claimed(self, request: ClaimRequest, claim: Claim, lease: Lease) -> Any:
        """A copy is a no-op, or comes again, or does what a dead worker has left undone."""
        key, seen = request.key, claim.seen
        if claim.outcome not in (ClaimOutcome.RUNNING, ClaimOutcome.RETRYING):
            self._leave_queue()
        is_seen = self.is_shared and claim.outcome in _SEEN
        if is_seen and seen is not None and seen.is_of_other(request):
            return self._of_other(
                key, claim, seen, seen.has_other_payload(request.payload, request.task_id)
            )
        if seen is None or claim.outcome is not ClaimOutcome.FINISHED:
            self._decline(key, claim)
        left = seen.lease_seconds or 0.0
        redelivered = self._is_redelivered()
        # Another copy than the one that was with a worker which lives says nothing.
        may_be_dead = left <= 0 or redelivered
        if not (may_be_dead and is_left_undone(self.task, self.request, seen, redelivered)):
            self._decline(key, claim)
        if left > 0:
            self._await_owner(key, left, "its worker has not told its result yet")
        try:
            fence = self.ledger.repair(self._request(key, lease), seen)
        except (LedgerError, SoftTimeLimitExceeded) as exc:
            # The repair may stand: a lease that is renewed would keep others from it.
            self.leases.take_back(lease)
            self._put_back(key, soon(), str(exc))
        if fence is None:
            self._decline(key, claim)
        self._record("repair", key, f"fence {fence}")
        signals.repaired(self.task, key)
        stores = bool(self._option("store_result"))
        return made_up(self.ledger, self.request, seen, fence, stored=stores)

    def _decline(self, key: RunKey, claim: Claim) -> NoReturn:
        """The run is somebody else's, or over: this copy is a no-op, or comes again."""
        if claim.outcome is ClaimOutcome.KILLED:
            # As a failure, and once: somebody may wait for the result.
            signals.died(self.task, key, str(claim.error))
            self._pause_entry(key, str(claim.error))
            raise RunDead(key.text, str(claim.error))
        if claim.outcome is ClaimOutcome.SKIPPED:
            signals.skipped(self.task, key, str(claim.error))
            raise skipping.skipped(self.request)
        seen = claim.seen
        reason = _reason(claim.outcome, seen)
        if seen is not None and self._is_redelivered():
            if seen.state is RunState.SKIPPED and skipping.is_unwanted(self.request):
                # By this very message, perhaps, whose worker died before it could announce it.
                raise skipping.skipped(self.request)
            if claim.outcome is ClaimOutcome.RUNNING:
                # It is this message that was with the owner: without it nobody would notice that
                # the owner is dead.
                self._await_owner(key, seen.lease_seconds or 0.0, reason, seen.retries)
            if claim.outcome is ClaimOutcome.RETRYING and self.request.retries < seen.retries:
                due_in = messages.seconds_until(None, seen.due_at)
                self._put_back(key, due_in, reason, seen.retries)
        self._note_duplicate(key, reason)
        # The tracer acknowledges the message and stores, signals and counts nothing.
        raise Ignore(reason)

    def _of_other(self, key: RunKey, claim: Claim, seen: RunRow, is_mistaken: bool) -> Any:
        """What the sender of this message gets, whose key was that of an earlier one.

        Arguments:
            is_mistaken: it has other arguments.
        """
        reason = _reason(claim.outcome, seen)
        if is_mistaken:
            self._note_duplicate(key, f"{reason}, with other arguments")
            raise KeyReused(key.text, reason, seen.task_id)
        policy = OnDuplicate(self._option("on_duplicate"))
        replays = policy is OnDuplicate.REPLAY and is_awaited(self.task, self.request)
        if replays and not seen.state.final:
            # It comes again until there is a result; or takes the run over, should its owner die.
            self._put_back(key, soon(), reason)
        self._note_duplicate(key, reason)
        if replays:
            return replayed(key, seen, reason)
        if policy is OnDuplicate.RAISE and is_awaited(self.task, self.request):
            raise DuplicateRun(key.text, reason, seen.task_id)
        raise Ignore(reason)

    def _note_duplicate(self, key: RunKey, reason: str) -> None:
        self._record("duplicate", key, reason)
        signals.duplicate(self.task, key, self.request.id, reason)

    def _unclaimed(self, key: RunKey, exc: IdemError, args: Any, kwargs: Any) -> Any:
        if self._option("on_database_error") == OnDatabaseError.RUN:
            if skipping.is_unwanted(self.request):
                raise skipping.skipped(self.request)
            signals.ledger_lost(f"Run {key} is executed without a claim", exc)
            return execute(self.task, args, kwargs)
        if self.request.is_eager:
            raise exc
        self._put_back(key, soon(), str(exc))


def _ends_the_worker(exc: BaseException) -> bool:
    """True for what ends a process, thread or greenlet, rather than a body."""
    if isinstance(exc, SystemExit | KeyboardInterrupt | GeneratorExit):
        return True
    # Its package may be absent, and is not to be loaded for this.
    return any(kind.__name__ == "GreenletExit" for kind in type(exc).__mro__)


def _reason(outcome: ClaimOutcome, seen: RunRow | None) -> str:
    if outcome is ClaimOutcome.RUNNING:
        return "its run is being executed"
    if seen is not None and seen.state is RunState.SCHEDULED:
        return "its run waits for its message"
    if outcome is ClaimOutcome.RETRYING:
        return f"its run waits for retry {seen.retries if seen else '?'}"
    return f"its run has ended: {seen.state.label if seen else '?'}"
