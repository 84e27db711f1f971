"""The leases of this process.

Owns registering, renewing and trusting leases, and the heartbeat thread that does it.

Authority
    A row of ``leases``. Whoever is executing something holds one; a pool keeps those that are free,
    as a registration is a statement and a claim should not pay for it each time.
States
    registered and renewed; *lost* (it was not renewed in time: the row may be gone, it is never
    used again); *abandoned* (a statement under it ended in doubt: it is not renewed any more, so
    that whatever it may own becomes free; as soon as the ledger answers, if nothing is executed
    under it); *spent* (a try of its claim was not answered, and may be executed when somebody else
    has let the run go: abandoned after the run that it holds).
Trust window
    From the start of the last successful renewal, for the lease's length less a margin, on the
    boot-time clock. The database starts counting later and counts longer, so that trust ends before
    anybody may bury the lease.
Term
    A buried lease never returns: renewal changes only rows that have not expired, and its thread
    registers a new one.
Failures
    No answer to a renewal: trust runs out by itself, the heartbeat goes on trying. It waits for no
    other table, and for nobody who has doubts: those have a thread of their own. A forked child
    starts with an empty pool. A process that exits cleanly deletes the leases nobody uses.

Must not know runs, tasks or Celery.
"""

from __future__ import annotations

import atexit
import os
import socket
import threading
from collections.abc import Callable
from uuid import uuid4
from weakref import WeakSet

from celery_idem import signals
from celery_idem.clock import SYSTEM, Clock
from celery_idem.doubts import Doubts, Undo
from celery_idem.errors import LedgerError
from celery_idem.ledger import Ledger, Owner
from celery_idem.real_threads import Bell, start_real_thread

#: The part of a lease's length for which it is not trusted any more: covers the time between the
#: end of trust and the owner noticing it, and drift between the clocks.
MARGIN = 1 / 6
#: Renewals in one length of a lease.
BEATS = 3

#: Made before any fork: tells the children of this parent from those of another container, where
#: host name and process ids may be the same.
PROCESS = uuid4().hex


class Lease:
    """The right to own runs, while it is renewed."""

    def __init__(self, lease_id: str, clock: Clock) -> None:
        self.id = lease_id
        self.lost = False
        self.abandoned = False
        self.spent = False
        self._clock = clock
        self._trusted_until = 0.0

    @property
    def trusted_for(self) -> float:
        """Seconds for which the lease is still trusted; 0.0 if it is lost or abandoned."""
        if self.lost or self.abandoned:
            return 0.0
        return self._trusted_until - self._clock.elapsed()

    def trust(self, until: float) -> None:
        self._trusted_until = until

    def __repr__(self) -> str:
        return f"<Lease {self.id} trusted_for={self.trusted_for:.3f}>"


class Leases:
    """The leases that this process holds in one ledger.

    Arguments:
        make_ledger: makes a ledger; called for the heartbeat's own, whose connection no other
            thread (or, under gevent, no other OS thread) ever touches.
        seconds: length of a lease.
        kind: what the process is, for people who read the table.
    """

    def __init__(
        self,
        make_ledger: Callable[[], Ledger],
        seconds: float,
        kind: str = "worker",
        clock: Clock = SYSTEM,
    ) -> None:
        self.ledger = make_ledger()
        self.seconds = seconds
        self.kind = kind
        #: Called by the heartbeat after each renewal; they must neither raise nor wait.
        self.followers: list[Callable[[], None]] = []
        self._make_ledger = make_ledger
        self._clock = clock
        self._doubts = Doubts(make_ledger, clock)
        self._reset()
        _ALL.add(self)

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._idle: list[Lease] = []
        self._held: set[Lease] = set()
        self._heartbeat: Heartbeat | None = None
        self._doubts.forget()

    # -- for the thread that executes something --------------------------------------------------

    def acquire(self) -> Lease:
        """A trusted lease for the caller alone.

        Raises:
            LedgerError: none could be registered.
        """
        self._ensure_heartbeat()
        lease = self._from_pool() or self._register()
        with self._lock:
            self._held.add(lease)
        return lease

    def give_back(self, lease: Lease) -> None:
        """Nothing is executed under `lease` any more, and no ending is in doubt."""
        lease.abandoned = lease.abandoned or lease.spent
        with self._lock:
            self._held.discard(lease)
            if not (lease.lost or lease.abandoned):
                self._idle.append(lease)

    def abandon(self, lease: Lease) -> None:
        """A statement under `lease` ended in doubt: never renew it, so that it ends by itself."""
        lease.abandoned = True
        with self._lock:
            self._held.discard(lease)

    def take_back(self, lease: Lease, undo: Undo | None = None) -> None:
        """A statement under `lease` ended in doubt, and nothing is executed under it.

        What it owns would stand still for as long as the lease has left.

        Arguments:
            undo: called as soon as the ledger answers, if that is before the lease's end.
        """
        self.abandon(lease)

        def let_go(ledger: Ledger) -> None:
            if undo is not None:
                undo(ledger)
            ledger.release([lease.id])

        self._doubts.add(let_go, self.seconds)

    def _from_pool(self) -> Lease | None:
        while True:
            with self._lock:
                if not self._idle:
                    return None
                lease = self._idle.pop()
            if lease.trusted_for > 0:
                return lease
            # The heartbeat fell behind (a suspended machine, a long C call): ask the database.
            self._renew([lease], self.ledger)
            if lease.trusted_for > 0:
                return lease

    def _register(self) -> Lease:
        lease = Lease(uuid4().hex, self._clock)
        started = self._clock.elapsed()
        owner = Owner(self.kind, socket.gethostname(), os.getpid(), PROCESS)
        self.ledger.register(lease.id, owner, self.seconds)
        self._trust(lease, started)
        return lease

    def _trust(self, lease: Lease, started: float) -> None:
        lease.trust(started + self.seconds * (1 - MARGIN))

    # -- for the heartbeat -----------------------------------------------------------------------

    def renew_all(self, ledger: Ledger) -> None:
        """Renew every lease that is not lost; mark those that could not be as lost."""
        with self._lock:
            leases = [*self._idle, *self._held]
        if leases:
            self._renew(leases, ledger)
        for follow in self.followers:
            follow()

    def _renew(self, leases: list[Lease], ledger: Ledger) -> None:
        wanted = [lease for lease in leases if not (lease.lost or lease.abandoned)]
        started = self._clock.elapsed()
        alive = ledger.renew([lease.id for lease in wanted], self.seconds)
        for lease in wanted:
            if lease.id in alive:
                self._trust(lease, started)
            elif not lease.abandoned:  # And deleted, since it was asked for.
                lease.lost = True
                signals.lease_lost(lease.id, "it had ended when it was to be renewed")
                # What it owned is free now rather than when somebody asks for it.
                ledger.bury(lease.id)
        with self._lock:
            self._idle = [lease for lease in self._idle if not lease.lost]

    def _ensure_heartbeat(self) -> None:
        if self._heartbeat is None:
            with self._lock:
                if self._heartbeat is None:
                    self._heartbeat = Heartbeat(self, self._make_ledger, self.seconds / BEATS)

    # -- the end ---------------------------------------------------------------------------------

    def retire(self) -> None:
        """Renew nothing any more: nobody can use these leases, and they end by themselves.

        Neither a lock nor a statement, so that a finalizer may call it at any place.
        """
        heartbeat, self._heartbeat = self._heartbeat, None
        if heartbeat is not None:
            heartbeat.stop()

    def close(self) -> None:
        """Delete the leases that nobody uses and stop the heartbeat, if nothing is executed.

        Leases of bodies that still run are kept and renewed: they end with the process.
        """
        with self._lock:
            idle, self._idle = self._idle, []
            heartbeat = self._heartbeat
            if heartbeat is not None and not self._held:
                self._heartbeat = None
                heartbeat.stop()
        try:
            self.ledger.release([lease.id for lease in idle])
            self._doubts.settle(self.ledger)
        except LedgerError as exc:
            signals.ledger_lost("Leases of this process are not deleted, they expire", exc)
        finally:
            self.ledger.close()


class Heartbeat:
    """A real thread of the operating system that renews the leases of this process.

    Under gevent, a patched thread would not run while a body computes, and the lease would end.
    """

    def __init__(self, leases: Leases, make_ledger: Callable[[], Ledger], interval: float) -> None:
        self._leases = leases
        self._make_ledger = make_ledger
        self._interval = interval
        self._end = Bell()
        start_real_thread(self._run)

    def stop(self) -> None:
        self._end.ring()

    def _run(self) -> None:
        ledger: Ledger | None = None
        lost = False
        pause = self._interval
        while not self._end.wait(pause):
            try:
                ledger = ledger or self._make_ledger()
                self._leases.renew_all(ledger)
                if lost:
                    signals.ledger_found("Heartbeat")
                lost, pause = False, self._interval
            except Exception as exc:
                if not lost:
                    signals.ledger_lost("Heartbeat: leases are not renewed", exc)
                lost, pause = True, min(1.0, self._interval)
        if ledger is not None:
            ledger.close()


_ALL: WeakSet[Leases] = WeakSet()


def _forget_in_child() -> None:
    for leases in list(_ALL):
        leases._reset()


def close_all() -> None:
    """Delete the free leases of this process: it is about to exit."""
    for leases in list(_ALL):
        leases.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)
atexit.register(close_all)
