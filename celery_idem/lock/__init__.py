"""Named locks for critical sections, which let in nobody too many.

Owns taking, holding, waiting for and giving back locks in one process.

Authority
    Rows of ``locks``: one guarded statement takes a seat, and gives the fence. Redis, where there
    is one, only turns away those who would ask in vain (`celery_idem.lock.redis`).
States
    taken; released; *lost* (its lease is not trusted any more, or ``max_hold`` is over).
Trust window
    That of the lease under which the lock is held: the run's own in a task's body. With
    ``max_hold`` it ends so many seconds after the lock was asked for, by the holder's clock; by the
    database's, a little later.
Term
    A lock is free when it was released, when its lease is gone, or when ``max_hold`` is over.
Failures
    No answer from Redis: the row alone decides. No answer from the ledger: the lock may be held
    under the lease, which is therefore spent (`celery_idem.lease`).

Must not know tasks, runs or Celery.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from uuid import uuid4

from celery_idem import signals
from celery_idem.clock import SYSTEM
from celery_idem.errors import LedgerError, LockReentered
from celery_idem.lease import Lease, Leases
from celery_idem.ledger import LockRequest, Taken
from celery_idem.ledger.rows import lock_name
from celery_idem.lock.held import ENTERED, Lock, entered
from celery_idem.lock.redis import RedisFilter
from celery_idem.real_threads import start_real_thread

#: The part of ``max_hold`` after which others may get in: the clocks of holder and database drift.
DRIFT = 0.01
#: Seconds for which a name that Redis calls held is not asked for in the ledger again: Redis may
#: remember a holder who is dead.
DOUBT = 1.0
#: Seconds between two looks of one who waits: the first, which doubles, and the longest.
PAUSE, LONGEST_PAUSE = 0.02, 0.5
#: Names of which it is remembered when they were last asked for.
_MOST_NAMES = 10_000


class Locks:
    """The locks that this process holds.

    Arguments:
        leases: under which they are held.
        namespace: first part of every stored name.
        connect: makes a client of Redis; None if there is no Redis.
    """

    def __init__(
        self, leases: Leases, namespace: str, connect: Callable[[], object] | None = None
    ) -> None:
        self.leases = leases
        self._namespace = namespace
        self._redis = RedisFilter(connect) if connect else None
        # One of its own, as under gevent the heartbeat is another thread of the operating system.
        self._beats = RedisFilter(connect) if connect else None
        self._extends = False
        self._held: dict[str, list[Lock]] = {}
        self._asked: dict[str, float] = {}
        self._guard = threading.Lock()
        leases.followers.append(self._extend)

    # -- for the thread that wants them ----------------------------------------------------------

    def acquire(
        self,
        names: Sequence[str],
        lease: Lease,
        *,
        wait: float = 0.0,
        max_hold: float | None = None,
        seats: int = 1,
    ) -> Lock | str:
        """All of these locks, or the name of one that is not free.

        Raises:
            LockReentered: the caller holds one of them.
            LockLost: they were taken, but too late to be held for certain.
            LedgerError: the ledger did not answer.
        """
        names = sorted(set(names))
        inside = {it.name for lock in entered() for it in lock.taken.values()}
        for name in names:
            if self._stored(name) in inside:
                raise LockReentered(name)
        until, pause = SYSTEM.elapsed() + wait, PAUSE
        while True:
            started = SYSTEM.elapsed()
            found = self._take_all(names, lease, max_hold, seats)
            if not isinstance(found, str):
                return self._enter(Lock(found, lease, max_hold, started))
            left = until - SYSTEM.elapsed()
            if left <= 0:
                return found
            pause = self._wait(found, left, pause, seats)

    def release(self, lock: Lock) -> None:
        """Give locks back; one that cannot be given back is free when its lease has ended."""
        if not lock.is_mine:
            return
        with self._guard:
            held = self._held.get(lock.lease.id, [])
            if lock not in held:
                return
            held.remove(lock)
            if not held:
                del self._held[lock.lease.id]
        if lock.lost:
            signals.lock_lost(lock.names, lock.reason)
        lock.released()
        ENTERED.set(entered())
        self._give_back(lock.taken, lock.lease)

    def release_all(self, lease: Lease) -> None:
        """The body under this lease is over."""
        for lock in list(self._held.get(lease.id, ())):
            self.release(lock)

    # -- taking ----------------------------------------------------------------------------------

    def _enter(self, lock: Lock) -> Lock:
        if lock.lost:
            # The ledger was slow to answer: others may be in before the block begins.
            self._give_back(lock.taken, lock.lease)
            lock.check()
        with self._guard:
            self._held.setdefault(lock.lease.id, []).append(lock)
        ENTERED.set((*entered(), lock))
        return lock

    def _take_all(
        self, names: Sequence[str], lease: Lease, max_hold: float | None, seats: int
    ) -> dict[str, Taken] | str:
        taken: dict[str, Taken] = {}
        try:
            for name in names:
                found = self._take(self._stored(name), lease, max_hold, seats)
                if found is None:
                    self._give_back(taken, lease)
                    return name
                taken[name] = found
        except BaseException:
            # One may be held, as far as is known here.
            lease.spent = True
            self._give_back(taken, lease)
            raise
        return taken

    def _take(self, stored: str, lease: Lease, max_hold: float | None, seats: int) -> Taken | None:
        # Redis keeps one key for a name: no help where several may hold it.
        redis = self._redis if seats == 1 else None
        admitted = redis.claim(stored, lease.id, self.leases.seconds) if redis else None
        if admitted is False and not self._may_doubt(stored):
            return None
        taken = self.leases.ledger.take(
            LockRequest(
                stored,
                lease.id,
                uuid4().hex,
                seats,
                None if max_hold is None else max_hold * (1 + DRIFT),
                random.randrange(seats),
            )
        )
        if redis and taken is None and admitted:
            redis.release(stored, lease.id)
        elif redis and taken is not None and admitted is False:
            redis.put(stored, lease.id, self.leases.seconds)
        return taken

    def _may_doubt(self, stored: str) -> bool:
        """Whether the ledger is to be asked although Redis calls the lock held."""
        now = SYSTEM.elapsed()
        with self._guard:
            if now < self._asked.get(stored, -DOUBT) + DOUBT:
                return False
            if len(self._asked) >= _MOST_NAMES:
                self._asked.clear()
            self._asked[stored] = now
            return True

    def _wait(self, name: str, left: float, pause: float, seats: int) -> float:
        """Wait for a moment in which the lock may be free; the next pause."""
        if left >= 1 and seats == 1 and self._redis and self._redis.listen(self._stored(name)):
            return PAUSE
        time.sleep(min(left, pause * random.uniform(0.5, 1.0)))
        return min(2 * pause, LONGEST_PAUSE)

    def _stored(self, name: str) -> str:
        return lock_name(self._namespace, name)

    # -- giving back -----------------------------------------------------------------------------

    def _give_back(self, taken: dict[str, Taken], lease: Lease) -> None:
        for it in reversed(taken.values()):
            try:
                self.leases.ledger.release_seat(it)
            except LedgerError as exc:
                lease.spent = True
                signals.ledger_lost(f"Lock {it.name} is free only when its lease has ended", exc)
            except BaseException:
                lease.spent = True
                raise
            if self._redis:
                self._redis.release(it.name, lease.id)

    def _extend(self) -> None:
        """After the leases were renewed; in another thread, as Redis may not answer for a while."""
        if self._beats and self._held and not self._extends:
            self._extends = True
            try:
                start_real_thread(partial(self._extend_held, self._beats))
            except RuntimeError:  # There can be no more threads; the ledger knows who holds what.
                self._extends = False

    def _extend_held(self, redis: RedisFilter) -> None:
        try:
            with self._guard:
                held = [lock for locks in self._held.values() for lock in locks]
            for lock in held:
                for it in lock.taken.values():
                    if not lock.lost:
                        redis.extend(it.name, lock.lease.id, self.leases.seconds)
                    if not lock.is_mine:
                        # Released meanwhile, and perhaps set again just now.
                        redis.release(it.name, lock.lease.id)
        finally:
            self._extends = False

    def close(self) -> None:
        """Close the connections to Redis."""
        for redis in (self._redis, self._beats):
            if redis:
                redis.close()
