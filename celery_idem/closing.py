"""How an ending of the body becomes an ending of its run.

Owns which state follows from what the body returned or raised, and what becomes of a message whose
run could not be ended. Must not know how a run is claimed.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NoReturn

from celery.exceptions import Ignore, Reject, Retry
from kombu.utils.encoding import safe_repr

from celery_idem import messages, signals, skipping
from celery_idem.aftermath import has_callbacks, message_of, tell_when_sent, unsent
from celery_idem.delivery import Delivery, soon
from celery_idem.ending import Transactions, error_of, persist
from celery_idem.errors import (
    Contended,
    IdemError,
    LeaseLost,
    LedgerError,
    LedgerUnavailable,
    LockLost,
    LockNotAcquired,
    ResultLost,
)
from celery_idem.holding import GRACE
from celery_idem.keys import RunKey, Stamp
from celery_idem.lease import Lease
from celery_idem.ledger import Retry as AwaitedRetry
from celery_idem.ledger import Unsent
from celery_idem.policy import OnContended
from celery_idem.replaying import stored
from celery_idem.run import Run, RunState


class Closing(Delivery):
    """A delivery whose body was executed."""

    def _succeeded(self, run: Run, result: Any) -> None:
        """Bring the result of the body into the ledger; the caller returns it."""
        awaited, stores = has_callbacks(self.request), bool(self._option("store_result"))
        text = stored(self.task, run.key, result) if stores else None
        left = (unsent(result) if text is None else Unsent(text)) if awaited else None
        if not run.ended:
            self._write(
                run,
                lambda: self.ledger.end(
                    *(run.key, run.fence, RunState.SUCCEEDED),
                    unsent=left,
                    stored=text,
                    task_id=run.task_id,
                ),
            )
            signals.succeeded(self.task, run)
        if text is not None or left is not None:
            self._keep(run, text, left)
        if awaited:
            tell_when_sent(self.request, self.ledger, run.key, run.fence, stored=text is not None)

    def _keep(self, run: Run, text: str | None, left: Unsent | None) -> None:
        """Add the result to a run that its body has ended before it returned."""
        result = left.result if left is not None else text
        if isinstance(run.books, Transactions) and run.books.used:
            try:
                self.ledger.keep_result(run.key, run.fence, result, stored=text is not None)
            except LedgerError as exc:
                signals.ledger_lost(f"Run {run.key}: its result is not kept", exc)

    def _ended_by(self, run: Run, exc: BaseException) -> None:
        """Bring an exception of the body into the ledger; the caller raises it on."""
        if run.ended:
            return
        if run.doubt is not None and not isinstance(run.doubt, ResultLost):
            self._lose(run, run.doubt)
        of_run = isinstance(exc, LeaseLost) and exc.key == run.key.text
        if of_run or (isinstance(exc, LockLost) and run.tenure.trusted_for <= 0):
            assert isinstance(exc, IdemError)
            # The run may still be ours, or nobody's: its message decides when it comes again.
            self._lose(run, exc)
        if isinstance(exc, Retry) and self.request.is_eager and _detail(exc, "sig") is not None:
            self._await_eager_retry(run, exc)
        elif isinstance(exc, Contended):
            self._contended(run, exc)
        elif isinstance(exc, Ignore):
            self._end(run, RunState.SUCCEEDED, f"the body raised {safe_repr(exc)}")
        elif isinstance(exc, Reject) and _detail(exc, "requeue"):
            self._give_back(run, f"the body rejected the message: {_detail(exc, 'reason')}")
        else:
            # A Retry that `Task.retry` did not make has published nothing: nobody would retry it.
            error = error_of(exc)
            self._end(run, RunState.FAILED, error)
            signals.failed(self.task, run.key, error)
            self._pause_entry(run.key, error)

    def _not_begun(self, run: Run, exc: LedgerUnavailable) -> None:
        """The database went away between the claim and the body: no failure of that one."""
        self._give_back(run, str(exc))
        if not self.request.is_eager:
            self._put_back(run.key, soon(), str(exc))

    def _await_eager_retry(self, run: Run, exc: Retry) -> None:
        retry = AwaitedRetry(run.retries + 1, 0.0, None)
        self._write(run, lambda: self.ledger.retry(run.key, run.fence, retry))
        signals.retried(self.task, run, run.retries + 1)

    def _contended(self, run: Run, exc: Contended) -> NoReturn:
        """The run cannot enter a critical section: it comes again, or is skipped."""
        reason = str(exc)
        if exc.then == OnContended.SKIP:
            self._end(run, RunState.SKIPPED, reason)
            signals.skipped(self.task, run.key, reason)
            raise skipping.Skipped(reason)
        self._give_back(run, reason)
        if self.request.is_eager:
            raise LockNotAcquired(exc.name, exc.waited) from None
        self._put_back(run.key, soon() if exc.seconds is None else exc.seconds, reason)

    def _give_back(self, run: Run, error: str) -> None:
        # A key that others have must not wait for a message that only the broker has.
        message = self._message(run.key) if self.is_shared else None

        def write() -> None:
            if not self.ledger.give_back(run.key, run.fence, error, GRACE, message):
                raise LeaseLost(run.key.text, run.fence, "it was taken over")

        self._write(run, write)

    def _message(self, key: RunKey) -> str | None:
        # The worker may have made its key, of arguments that the body has changed since.
        stamp = self.stamp or Stamp(key)
        headers = stamp.write(self.request.headers, self.task.name, self.settings.signing_key)
        return message_of(self.task, headers={**headers, messages.HEADER_PUT_BACK: 1})

    def _end(self, run: Run, state: RunState, error: str | None = None) -> None:
        end = partial(self.ledger.end, run.key, run.fence, state, error, task_id=run.task_id)
        self._write(run, end)

    def _write(self, run: Run, write: Callable[[], None]) -> None:
        """End the claim by `write`; if that is refused, the message comes again and finds out."""
        try:
            persist(run, write, self.request.is_eager)
        except ResultLost:
            # A statement of `Run.finish_statement` was committed, and the body did not learn of it.
            run.ended = True
            raise
        except IdemError as exc:
            self._lose(run, exc)
        run.ended = True

    def _lose(self, run: Run, exc: IdemError) -> NoReturn:
        run.ended = True
        assert isinstance(run.tenure, Lease)
        self.leases.abandon(run.tenure)
        if isinstance(exc, LeaseLost):
            self._record("refused", run.key, str(exc))
            signals.refused(self.task, run.key, str(exc))
        self._put_back(run.key, self.settings.lease, str(exc))


def _detail(exc: BaseException, name: str) -> Any:
    """An attribute of one of Celery's exceptions, which its type stubs do not know."""
    return getattr(exc, name, None)
