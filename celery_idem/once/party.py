"""What a process has of a ledger outside of Celery: its leases, its locks.

Owns the one `Party` per ledger, process and length of a lease, and the terms under which runs are
owned. Must not know how a run is executed.
"""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from dataclasses import dataclass
from weakref import WeakKeyDictionary, finalize

from celery_idem import checks
from celery_idem.errors import LedgerError
from celery_idem.lease import Lease, Leases
from celery_idem.ledger import Ledger
from celery_idem.ledger.outside import Terms
from celery_idem.lock import Locks
from celery_idem.policy import OnCrash

#: Leases of dead processes that a new one deletes.
_MOST_BURIED = 1000


@dataclass(frozen=True, slots=True)
class Job:
    """What is to be done, and on which terms; the sender of signals.

    Attributes:
        name: the key that the caller gave.
    """

    name: str
    namespace: str
    lease: float
    max_attempts: int
    abandon: bool


def job_of(name: str, terms: Terms, where: str) -> Job:
    """The job of these terms.

    Raises:
        ImproperlyConfigured: one of them is not possible.
    """
    on_crash = checks.choice(OnCrash)(f"on_crash of {where}", terms.on_crash)
    return Job(
        name,
        checks.namespace(f"namespace of {where}", terms.namespace),
        checks.seconds(1, 86_400)(f"lease of {where}", terms.lease),
        checks.whole(1)(f"max_attempts of {where}", terms.max_attempts),
        on_crash is OnCrash.ABANDON,
    )


class Party:
    """This process as one of those that share a ledger."""

    def __init__(self, ledger: Ledger, lease: float) -> None:
        self.pid = os.getpid()
        # Of a twin, as nothing here may keep `ledger` itself, by which the party is found.
        self.leases = Leases(ledger.twin().twin, lease, kind="once")
        self._locks: dict[str, Locks] = {}
        self._has_looked = False

    @classmethod
    def of(cls, ledger: Ledger, lease: float) -> Party:
        """The party for `ledger`; made at first use, and anew in a forked child."""
        with _LOCK:
            parties = _PARTIES.get(ledger)
            if parties is None:
                parties = _PARTIES[ledger] = {}
                # A ledger that nobody has closed, and that nobody can use any more.
                finalize(ledger, _retire, parties).atexit = False
            party = parties.get(lease)
            if party is None or party.pid != os.getpid():
                party = parties[lease] = cls(ledger, lease)
            return party

    def acquire(self) -> Lease:
        """A lease for the caller alone.

        Raises:
            LedgerError: none could be registered.
        """
        lease = self.leases.acquire()
        if not self._has_looked:
            self._has_looked = True
            # Where no beats are at work, nobody else deletes those of processes that have died.
            with suppress(LedgerError):
                self.leases.ledger.bury_expired(_MOST_BURIED)
        return lease

    def locks(self, namespace: str) -> Locks:
        """Where bodies of this namespace take locks."""
        with _LOCK:
            if namespace not in self._locks:
                self._locks[namespace] = Locks(self.leases, namespace)
            return self._locks[namespace]


_PARTIES: WeakKeyDictionary[Ledger, dict[float, Party]] = WeakKeyDictionary()
_LOCK = threading.Lock()


def leave(ledger: Ledger) -> None:
    """Delete the leases that nobody uses, and close their connections."""
    with _LOCK:
        parties = _PARTIES.pop(ledger, {})
    for party in parties.values():
        if party.pid == os.getpid():
            party.leases.close()


def _retire(parties: dict[float, Party]) -> None:
    for party in parties.values():
        party.leases.retire()


def _renew_lock() -> None:
    """Another thread of the parent may have held it at the fork."""
    global _LOCK
    _LOCK = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)
