"""How code outside of Celery asks a ledger for one execution.

Owns the signatures of `Ledger.once` and `Ledger.idempotent`. What they do needs leases and bodies,
which are above a ledger: the package brings it (`bring`). Must not know how it is done.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime, timedelta, tzinfo
from typing import Any, ParamSpec, Protocol, TypeVar

from celery_idem.policy import OnCrash
from celery_idem.run import Run

P = ParamSpec("P")
R = TypeVar("R")

#: First part of the run keys, unless the caller names another one.
NAMESPACE = "once"


@dataclass(frozen=True, slots=True)
class Terms:
    """Under which conditions a run is owned, as the caller gave them."""

    namespace: str
    lease: float | timedelta
    max_attempts: int
    on_crash: OnCrash | str


class Outside(Protocol):
    """What is brought."""

    def once(
        self, ledger: Any, key: str, slot: datetime | None, terms: Terms
    ) -> AbstractContextManager[Run | None]: ...

    def idempotent(
        self,
        ledger: Any,
        every: str | float | timedelta,
        key: str | None,
        timezone: str | tzinfo,
        terms: Terms,
    ) -> Callable[[Callable[P, R]], Callable[P, R | None]]: ...

    def close(self, ledger: Any) -> None: ...


_brought: list[Outside] = []


def bring(outside: Outside) -> None:
    """From now on, ledgers do what `outside` does."""
    _brought[:] = [outside]


class OutsideVerbs:
    """What a process without Celery says to a ledger."""

    def once(
        self,
        key: str,
        *,
        slot: datetime | None = None,
        namespace: str = NAMESPACE,
        lease: float | timedelta = 60.0,
        max_attempts: int = 5,
        on_crash: OnCrash | str = OnCrash.RETRY,
    ) -> AbstractContextManager[Run | None]:
        """A block that one caller executes for this key and slot, wherever the others are.

        ``with ledger.once(key="report", slot=slot) as run:`` gives the claimed run, or None to all
        others: ``if run:`` belongs around the body. When the block ends, the run has succeeded;
        if it raises an `Exception`, the run has failed, and the exception goes on. A run whose
        process died is given to the next one who asks once its lease has ended.

        Arguments:
            key: what is to be done; with the slot, and in its namespace, the name of the run.
            slot: for which aware instant; None: once for ever.
            namespace: first part of the run key; not that of a Celery app in this database.
            lease: seconds for which an owner that was not heard of keeps its run.
            max_attempts: claims before a run whose owners keep dying is given up.
            on_crash: ``abandon``: a run whose owner died is given up at once.

        Raises:
            InvalidRunKey: no such key or slot is possible.
            ImproperlyConfigured: another argument is not possible.
            LedgerUnavailable: (on entry) the database did not answer; the body must not run.
            LeaseLost: (on entry) the lease ended while the run was claimed; (at the end) the run
                has another owner.
            LockNotAcquired: (at the end) the body met a critical section that was not free.
            ResultLost: (at the end) the body has ended its run and did not learn of it.
        """
        terms = Terms(namespace, lease, max_attempts, on_crash)
        return _brought[0].once(self, key, slot, terms)

    def idempotent(
        self,
        *,
        every: str | float | timedelta,
        key: str | None = None,
        timezone: str | tzinfo = "UTC",
        namespace: str = NAMESPACE,
        lease: float | timedelta = 60.0,
        max_attempts: int = 5,
        on_crash: OnCrash | str = OnCrash.RETRY,
    ) -> Callable[[Callable[P, R]], Callable[P, R | None]]:
        """A decorator: of all calls within one interval, in all processes, one is executed.

        The function returns None to the others. A call also executes earlier slots that somebody
        has begun and not ended, with the arguments of that call: a process died in them.

        Arguments:
            every: ``"10 minutes"``, seconds or a timedelta: intervals since the Unix epoch; or
                ``minute``, ``hour``, ``day``, ``week``, ``month``: of the calendar. The clock of
                the calling process tells in which one it is.
            key: as for `once`; module and name of the function if None.
            timezone: whose calendar it is, by name or as an object.
            namespace, lease, max_attempts, on_crash: as for `once`.

        Raises:
            ImproperlyConfigured: an argument is not possible, or the function is a coroutine or a
                generator, or has no name that other processes know.
            LedgerUnavailable, LeaseLost, LockNotAcquired, ResultLost: (in a call) as for `once`.
        """
        terms = Terms(namespace, lease, max_attempts, on_crash)
        return _brought[0].idempotent(self, every, key, timezone, terms)

    def _leave(self) -> None:
        """The ledger is about to close: nobody here owns anything in it any more."""
        for outside in _brought:
            outside.close(self)
