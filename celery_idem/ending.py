"""How a body that is over gets its end into the ledger.

Owns patience with a database that is away, as nobody else knows how the body ended, and the
transactions by which a body ends its own run: what they wrote and the end are committed together.
Must not know messages, nor what an end means for them.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from celery.exceptions import SoftTimeLimitExceeded
from kombu.utils.encoding import safe_repr

from celery_idem import signals
from celery_idem.errors import (
    CommitUnknown,
    LeaseLost,
    LedgerError,
    LedgerUnavailable,
    ResultLost,
)
from celery_idem.ledger import Ledger
from celery_idem.run import Run

#: Seconds between two tries: the first pause, which doubles, and the longest.
PAUSE, LONGEST_PAUSE = 0.1, 2.0


def persist(run: Run, write: Callable[[], None], eager: bool) -> None:
    """Write an ending of `run`, again and again until the ledger has answered.

    The body is over, and how it ended is known here alone: giving up would run it a second time.
    Its lease may end meanwhile; the fence then tells whether the run has found another owner.

    Arguments:
        eager: the caller of the task waits: only as long as the lease is trusted.

    Raises:
        LeaseLost: the run belongs to somebody else.
        LedgerError: the ledger refused the write, or did not answer an eager one.
    """
    pause, told = PAUSE, False
    while True:
        try:
            write()
            break
        except SoftTimeLimitExceeded:
            # It interrupts once, and the body was over before: learn how the write ended.
            continue
        except LedgerUnavailable as exc:
            if eager and run.tenure.trusted_for <= 0:
                raise
            if not told:
                signals.ledger_lost(f"Run {run.key} has ended, which is not recorded yet", exc)
                told = True
        with suppress(SoftTimeLimitExceeded):
            time.sleep(pause * random.uniform(0.5, 1.0))
        pause = min(LONGEST_PAUSE, pause * 2)
    if told:
        signals.ledger_found(f"Run {run.key}")


def error_of(exc: BaseException) -> str:
    """What the ledger keeps of an exception of the body, whatever its ``__str__`` does."""
    try:
        text = str(exc)
    except Exception:
        text = safe_repr(exc)
    return f"{type(exc).__name__}: {text}"


class Transactions:
    """What `Run.transaction` and its kin do.

    Arguments:
        sender: whose run it is: a task, for signals.
        ledger: where the run is.
        idle: seconds after which the database may end a transaction that does nothing.
        awaited: callbacks are sent after the run.
        eager: see `persist`.

    Attributes:
        used: the body may have ended its run.
    """

    def __init__(
        self,
        sender: Any,
        ledger: Ledger,
        idle: float,
        awaited: bool = False,
        eager: bool = False,
    ) -> None:
        self.used = False
        self._sender = sender
        self._ledger = ledger
        self._idle = idle
        self._awaited = awaited
        self._eager = eager
        self._open = False

    @contextmanager
    def transaction(self, run: Run, isolation_level: str | None) -> Iterator[Any]:
        run.check()
        if self._open:
            raise LedgerError(f"run {run.key} has a transaction already", "use that one")
        self._open, self.used, over = True, True, False
        try:
            with self._ledger.transaction(
                run.key,
                run.fence,
                isolation_level=isolation_level,
                idle=self._idle,
                awaited=self._awaited,
            ) as connection:
                yield connection
                over = True
        except CommitUnknown as exc:
            if not self._was_committed(run):
                assert exc.__cause__ is not None
                raise exc.__cause__ from None
        except SoftTimeLimitExceeded:
            # It interrupts once: if not the body, then perhaps what comes after the COMMIT.
            if not (over and self._was_committed(run)):
                raise
        except LeaseLost as exc:
            if over and self._was_committed(run):
                # By a statement of `finish_statement`, most probably.
                run.ended = True
                raise ResultLost(run.key.text) from exc
            raise
        finally:
            self._open = False
        run.ended = True
        signals.succeeded(self._sender, run)

    @contextmanager
    def session(self, run: Run, factory: Any, isolation_level: str | None) -> Iterator[Any]:
        with (
            self.transaction(run, isolation_level) as connection,
            self._ledger.session(connection, factory) as session,
        ):
            yield session

    def finish_statement(self, run: Run, paramstyle: str) -> tuple[str, Any]:
        run.check()
        self.used = True
        return self._ledger.finish_statement(run.key, run.fence, paramstyle, self._awaited)

    def _was_committed(self, run: Run) -> bool:
        answers: list[bool] = []
        persist(
            run,
            lambda: answers.append(self._ledger.was_committed(run.key, run.fence, run.task_id)),
            self._eager,
        )
        return answers[-1]
