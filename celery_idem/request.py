"""The parent's verdicts: how a run ends that no pool process can end any more.

Owns the requests of idempotent tasks in the worker's main process. A hard time limit and
``revoke(terminate=True)`` end the child in mid-body and acknowledge the message; nobody else would
tell the ledger. The verdict names the run key and the lease of this parent's own child, so that it
never touches a run that somebody else owns.
A message that has expired or was revoked is no such case: it goes to a child as others do, as only
the ledger knows whether its run has begun, and is announced here if the child has skipped the run.
Must not know what a body does; runs nothing in the child.
"""

from __future__ import annotations

import atexit
import os
import time
from _thread import start_new_thread
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from functools import lru_cache, partial
from typing import Any, Literal
from uuid import uuid4

from billiard.exceptions import WorkerLostError
from celery.worker import state
from celery.worker.request import Request as CeleryRequest
from kombu.asynchronous import get_event_loop

from celery_idem import signals, skipping
from celery_idem.clock import SYSTEM
from celery_idem.config import Settings
from celery_idem.errors import IdemError
from celery_idem.lease import PROCESS
from celery_idem.member import Member
from celery_idem.naming import identify
from celery_idem.pausing import pause_if_asked
from celery_idem.run import ClaimRequest

#: Seconds within which a child that is to be killed is gone, and between two looks at it.
PATIENCE, PAUSE = 30.0, 0.1
#: Seconds for which the message of a dead child is held at most, until its leases are deleted.
HOLD = 2.0


class Request(CeleryRequest):
    """Celery's request, which also ends the run in the ledger where only the parent can."""

    #: The child's run is being failed: by its lease, which must not be deleted before.
    _is_failed = False

    def maybe_expire(self) -> Literal[True] | None:
        """Celery's answer for a message that runs without a claim; None for the others."""
        return None if self._is_claimed() else super().maybe_expire()

    def revoked(self) -> bool:
        """As `maybe_expire`; but the child learns that the message was revoked."""
        return not self._is_noted() and super().revoked() and not self._is_noted()

    def _is_noted(self) -> bool:
        return skipping.NOTE in self.delivery_info

    def _announce_revoked(self, reason: str, terminated: bool, signum: Any, expired: bool) -> None:
        if not terminated and self._is_claimed():
            note: Any = self.delivery_info
            note[skipping.NOTE] = True
            # The child is not to be killed over what it will not execute.
            self._terminate_on_ack = None
            return
        super()._announce_revoked(reason, terminated, signum, expired)  # type: ignore[misc]
        if terminated:
            self._fail("it was revoked and terminated", skip=True)

    def on_failure(self, exc_info: Any, *args: Any, **kwargs: Any) -> Any:
        exc = getattr(exc_info.exception, "exc", exc_info.exception)
        if isinstance(exc, skipping.Skipped):
            expired = exc.reason == "expired"
            return super()._announce_revoked(exc.reason, False, None, expired)  # type: ignore[misc]
        go_on = partial(super().on_failure, exc_info, *args, **kwargs)
        app: Any = self.app
        pid: Any = self.worker_pid
        died = isinstance(exc, WorkerLostError | SystemExit | KeyboardInterrupt)
        if not died or self._is_failed or not pid or _is_closing():
            return go_on()
        if not Settings.of(app).enabled:
            return go_on()
        if self._is_last_retry():
            # Celery is about to store its failure: no beat is to publish it again.
            self._fail(str(exc))
            return go_on()
        # Its message is about to be returned. What it owned is to be free before another worker has
        # it, which would otherwise put it back until the lease's end.
        _after(_releaser().submit(release_leases, app, pid), go_on)
        return None

    def _is_last_retry(self) -> bool:
        """True if a lost worker is answered by retries (Celery 5.7), and there are none left."""
        task: Any = self.task
        most = task.max_retries
        answered = getattr(task, "retry_on_worker_lost", False) and most is not None
        return bool(answered and (self.request_dict.get("retries") or 0) >= most)

    def on_timeout(self, soft: bool, timeout: float) -> None:
        super().on_timeout(soft, timeout)
        if not soft:
            self._fail(f"the hard time limit of {timeout:g} seconds was exceeded")

    def cancel(self, *args: Any, **kwargs: Any) -> None:
        """Celery's cold shutdown, or a lost broker: the child is killed, its message comes again.

        The pools threads and solo cannot kill. Celery's error about that would end the worker, in
        solo by way of the body, as its failure: the body goes on instead.
        """
        with suppress(NotImplementedError):
            super().cancel(*args, **kwargs)
            app: Any = self.app
            pid: Any = self.worker_pid
            if pid and _process(pid) == pid and Settings.of(app).enabled:
                # This may be called by a handler of signals, which must not wait for a lock.
                _CANCELLED.append((app, pid))
                start_new_thread(release_leases, (app, pid, PATIENCE))

    def _is_claimed(self) -> bool:
        """True if the child is going to ask the ledger for this message's run."""
        app: Any = self.app
        settings = Settings.of(app)
        return settings.enabled and _claim(self.task, self.request_dict, settings) is not None

    def _fail(self, error: str, skip: bool = False) -> None:
        # Never on this thread: it is the worker's event loop, and a database that does not answer
        # would stop the heartbeat to the broker.
        app: Any = self.app
        pid: Any = self.worker_pid
        if Settings.of(app).enabled and pid:
            self._is_failed = True
            request = dict(self.request_dict)
            _writer().submit(_fail, self.task, request, _process(pid), error, skip)


@lru_cache
def _writer() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=1, thread_name_prefix="celery_idem")


def _fail(task: Any, request: dict[str, Any], pid: int, error: str, skip: bool) -> None:
    """End the run of a child that is being killed.

    Arguments:
        skip: it is not to be executed either if the child had not claimed it. After a time limit a
            slot that was not claimed in time is published again.
    """
    try:
        claim = _claim(task, request, Settings.of(task.app))
        if claim is not None:
            _fail_claimed(task, claim, request, pid, error, skip)
    except IdemError as exc:
        signals.ledger_lost(f"Task {task.name}[{request['id']}]: {error}, but not recorded", exc)
        return
    if pid != os.getpid():
        # What else it owned: a lock is not to be held for a lease longer.
        release_leases(task.app, pid)


def _fail_claimed(
    task: Any, claim: ClaimRequest, request: dict[str, Any], pid: int, error: str, skip: bool
) -> None:
    ledger = Member.of(task.app).leases.ledger
    deadline = SYSTEM.elapsed() + PATIENCE
    while True:
        # Asked before the write: a child that is still there may make its claim after it.
        gone = not _is_there(pid) or SYSTEM.elapsed() > deadline
        # The next run of a key that is free at once must not meet a body that is still there.
        may_fail = gone or task._idem_terms.free_after is None
        if may_fail and ledger.fail_of_child(claim.key, PROCESS, pid, error):
            signals.failed(task, claim.key, error)
            pause_if_asked(ledger, claim.namespace, request, claim.key, error)
            return
        if gone:
            break
        time.sleep(PAUSE)
    if skip and ledger.try_skip(claim, error):
        signals.skipped(task, claim.key, error)


@lru_cache
def _releaser() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=2, thread_name_prefix="celery_idem_release")


def release_leases(app: Any, pid: int, patience: float = HOLD) -> None:
    """Delete the leases of a child of this process that has died, once it is known to be gone.

    Arguments:
        patience: seconds after which it is left alone: its leases expire by themselves.
    """
    deadline = SYSTEM.elapsed() + patience
    while _is_there(pid):
        if SYSTEM.elapsed() > deadline:
            return
        time.sleep(PAUSE)
    try:
        Member.of(app).leases.ledger.release_child(PROCESS, pid)
    except IdemError as exc:
        signals.ledger_lost(f"Leases of the dead pool process {pid} are not deleted", exc)


#: The apps and pids of children that were killed by `Request.cancel`.
_CANCELLED: list[tuple[Any, Any]] = []


@atexit.register
def _release_cancelled() -> None:
    """A worker ends before it hears of the death of a child that its cold shutdown has killed."""
    for app, pid in _CANCELLED:
        if not _is_there(pid):
            release_leases(app, pid)


def _is_closing() -> bool:
    """True if the event loop is about to end: nothing can be done later."""
    return state.should_terminate not in (None, False)


def _after(future: Future[None], go_on: Callable[[], Any]) -> None:
    """Call `go_on` on this thread when `future` is done, or has taken too long."""
    hub: Any = get_event_loop()
    deadline = SYSTEM.elapsed() + HOLD
    if hub is None:
        wait([future], timeout=HOLD)
        go_on()
        return

    def look() -> None:
        if future.done() or SYSTEM.elapsed() > deadline:
            go_on()
        else:
            hub.call_later(PAUSE, look)

    look()


def _process(pid: int) -> int:
    """The process whose lease it is: this one for greenlets, whose numbers no process has."""
    return pid if pid < 2**31 else os.getpid()


def _is_there(pid: int) -> bool:
    """True while a child runs: one that nobody has waited for yet does nothing any more."""
    try:
        if hasattr(os, "waitid"):
            return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
        os.kill(pid, 0)
    except OSError:
        return False
    return True


def _claim(task: Any, request: dict[str, Any], settings: Settings) -> ClaimRequest | None:
    """The claim that the child makes for this message; None if it makes none."""
    try:
        found = identify(task, request, request, settings)
    except Exception:  # Also what a callable of the project's raises: the child refuses it then.
        return None
    if found.key is None:
        return None
    return ClaimRequest(
        key=found.key,
        task=task.name,
        namespace=settings.namespace,
        entry=found.stamp.entry if found.stamp else None,
        task_id=request["id"],
        retries=request.get("retries") or 0,
        lease_id="",
        claim_id=uuid4().hex,
    )
