"""Critical sections: code that one at a time executes, wherever it runs.

Owns `critical_section`, and under which lease its locks are held: that of the run in whose body it
stands, else one of its own. Must not know how a lock is taken.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ContextDecorator
from types import TracebackType
from typing import Any

from celery import Celery, current_app

from celery_idem import checks
from celery_idem.config import DEFAULT_DATABASE_URL, Settings
from celery_idem.errors import Contended, ImproperlyConfigured, LockNotAcquired
from celery_idem.lease import Lease
from celery_idem.lock import Locks
from celery_idem.lock.held import Lock
from celery_idem.member import Member
from celery_idem.policy import OnContended
from celery_idem.run import CURRENT, Run

#: The longest wait and hold, in seconds.
_LONGEST = 366 * 86_400.0


class CriticalSection(ContextDecorator):
    """See `critical_section`. Each use as a context manager or a decorator is a section anew."""

    def __init__(
        self,
        names: Iterable[str] | str,
        wait: float,
        max_hold: float | None,
        concurrency: int,
        on_contended: OnContended | str,
        app: Celery | None = None,
    ) -> None:
        where = "of critical_section"
        self.names = checks.lock_names(f"names {where}", names)
        self.wait = checks.seconds(0, _LONGEST)(f"wait {where}", wait)
        self.max_hold = checks.seconds_or_none(0.001, _LONGEST)(f"max_hold {where}", max_hold)
        self.concurrency = checks.whole(1)(f"concurrency {where}", concurrency)
        self.on_contended = checks.choice(OnContended)(f"on_contended {where}", on_contended)
        if app is not None and not isinstance(app, Celery):
            raise ImproperlyConfigured(f"app {where}", app, "it must be a Celery app, or None")
        self.app = app
        self._lock: Lock | None = None
        self._leave: tuple[Locks, Lease | None] | None = None

    def of(self, names: Iterable[str]) -> CriticalSection:
        """The same for other names."""
        return CriticalSection(
            names, self.wait, self.max_hold, self.concurrency, self.on_contended, self.app
        )

    def _recreate_cm(self) -> CriticalSection:
        return self.of(self.names)

    def __enter__(self) -> Lock:
        if self._leave is not None:
            raise RuntimeError("this critical section is in use: make one for each block")
        run = self._run()
        if run is not None:
            assert isinstance(run.locks, Locks) and isinstance(run.tenure, Lease)
            return self._enter(run.locks, run.tenure, None, run)
        member = Member.of(self.app or _current_app())
        own = member.leases.acquire()
        try:
            return self._enter(member.locks, own, own, None)
        except BaseException:
            member.leases.give_back(own)
            raise

    def _enter(self, locks: Locks, lease: Lease, own: Lease | None, run: Run | None) -> Lock:
        found = locks.acquire(
            self.names, lease, wait=self.wait, max_hold=self.max_hold, seats=self.concurrency
        )
        if isinstance(found, Lock):
            self._lock, self._leave = found, (locks, own)
            return found
        if run is None or self.on_contended is OnContended.RAISE:
            raise LockNotAcquired(found, self.wait)
        raise Contended(found, self.wait, self.on_contended)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._lock is not None and self._leave is not None
        (locks, own), lock = self._leave, self._lock
        self._leave = self._lock = None
        try:
            locks.release(lock)
        finally:
            if own is not None:
                locks.leases.give_back(own)

    def _run(self) -> Run | None:
        """The run in whose body the section stands, while it is one."""
        run = CURRENT.get()
        return None if run is None or run.ended or self.app is not None else run


def _current_app() -> Any:
    """The current app, if it is one of the project.

    Celery's is that of a thread: where nobody has called `set_default`, other threads have one
    that knows no settings, and its ledger would be a file that nobody else uses.
    """
    proxy: Any = current_app
    app = proxy._get_current_object()
    settings = Settings.of(app)
    if settings.database_url == DEFAULT_DATABASE_URL:
        raise ImproperlyConfigured(
            "app of critical_section",
            None,
            f"the current app here, {app.main!r}, has no idem_database_url: pass app=, or "
            "call app.set_default() where it is made",
        )
    return app


def critical_section(
    names: Iterable[str] | str,
    *,
    wait: float = 0.0,
    max_hold: float | None = None,
    concurrency: int = 1,
    on_contended: OnContended | str = OnContended.RETRY,
    app: Celery | None = None,
) -> CriticalSection:
    """A block, or a decorated function, that no two execute at once under the same name.

    ``with critical_section("stock:42") as lock:`` works in the body of an idempotent task, where
    the lock lives as the run's lease does, and anywhere else, under a lease of its own.

    Arguments:
        names: one name or several, which are taken all or none.
        wait: seconds to wait for them; 0: not at all, as a waiting task blocks a worker.
        max_hold: seconds after which others may get in, although the block goes on.
        concurrency: how many may be in the section at once. All must give the same number.
        on_contended: what becomes of the run that cannot get in. Outside of an idempotent task's
            body `LockNotAcquired` is raised in any case.
        app: whose ledger and namespace; the current app if None.

    Raises:
        ImproperlyConfigured: an argument is not possible, or (on entry) no app of the project is
            known here.
        LockNotAcquired: (on entry) somebody else holds a lock.
        LockReentered: (on entry) the caller is in this section already.
        LedgerError: (on entry) the ledger did not answer.
    """
    return CriticalSection(names, wait, max_hold, concurrency, on_contended, app)
