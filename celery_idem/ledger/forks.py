"""Databases and processes that fork.

SQLite keeps what this process has locked in its own memory, per file and not per connection. A
child takes that along: it finds locks of threads that it does not have, which never end, or takes
itself to hold the lock that keeps its parent from deleting the log that the child writes to. So no
connection may be open, and no statement under way, at the moment of a fork.

Of other databases, a child opens connections of its own and leaves the parent's alone. But while a
connection is being made, OpenSSL reads certificates under locks of the whole process; a child that
takes them along hangs in its own first connection. So none may be in the making.

Owns the locks that databases and forks share. Must not know the statements.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol
from weakref import WeakSet


class Closes(Protocol):
    """Something with connections of this process."""

    def close(self) -> None: ...


def _real_rlock() -> Any:
    """Also where gevent has replaced it: threads of the operating system share it."""
    if "gevent.monkey" in sys.modules:
        from gevent.monkey import get_original

        return get_original("threading", "RLock")()
    return threading.RLock()


class Gate:
    """Held by a statement while it runs, and by a fork. Statements on SQLite go one by one anyway.

    Reentrant, as a signal handler may use the ledger in the midst of a statement.
    """

    def __init__(self) -> None:
        self._lock = _real_rlock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *exc: object) -> None:
        self._lock.release()

    def renew(self) -> None:
        """Forget who held it: threads of the parent do not exist here."""
        self._lock = _real_rlock()


#: Seconds for which a fork waits for connections, and between two looks. Certificates are read in
#: moments; what takes longer is a server that does not answer, and holds no lock.
PATIENCE, PAUSE = 1.0, 0.005


class Connecting:
    """Around the making of a connection; several threads may be within at once, and no fork."""

    def __init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        """Forget who was within: threads of the parent do not exist here."""
        self._lock = _real_rlock()
        self._within = self._forks = 0

    def __enter__(self) -> None:
        while not self._let_in():
            time.sleep(PAUSE)

    def _let_in(self) -> bool:
        with self._lock:
            if self._forks:
                return False
            self._within += 1
            return True

    def __exit__(self, *exc: object) -> None:
        with self._lock:
            self._within -= 1

    def shut(self) -> None:
        """Let nobody in until `reopen`, and wait until nobody is within."""
        with self._lock:
            self._forks += 1
        deadline = time.monotonic() + PATIENCE
        while self._within and time.monotonic() < deadline:
            time.sleep(PAUSE)

    def reopen(self) -> None:
        with self._lock:
            self._forks -= 1


connecting = Connecting()
_gate = Gate()
_databases: WeakSet[Closes] = WeakSet()


def gate_of(database: Closes, dialect: str) -> AbstractContextManager[None]:
    """What each statement on this database is to be run in."""
    if dialect != "sqlite":
        return nullcontext()
    _databases.add(database)
    return _gate


def _before() -> None:
    connecting.shut()
    _gate.__enter__()
    for database in list(_databases):
        database.close()


def _after_in_parent() -> None:
    _gate.__exit__()
    connecting.reopen()


def _after_in_child() -> None:
    _gate.renew()
    connecting.renew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before, after_in_parent=_after_in_parent, after_in_child=_after_in_child
    )
