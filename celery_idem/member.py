"""What a process has of an app's ledger: its settings, its leases, what it has announced.

Owns the one `Member` per app and process, and the connections to Celery's signals that make it tidy
up. Must not know tasks or schedules.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary, ref

from celery import Celery
from celery.app import backends
from celery.signals import worker_process_shutdown, worker_shutdown

from celery_idem import signals
from celery_idem.checks import hidden
from celery_idem.config import DEFAULT_DATABASE_URL, Settings
from celery_idem.errors import ImproperlyConfigured
from celery_idem.lease import Leases, close_all
from celery_idem.ledger import Ledger
from celery_idem.lock import Locks
from celery_idem.lock.redis import TIMEOUT


class Member:
    """This process as a user of an app's ledger."""

    def __init__(self, app: Celery, settings: Settings) -> None:
        self.settings = settings
        self.pid = os.getpid()
        self.leases = Leases(self.make_ledger, settings.lease)
        self.locks = Locks(self.leases, settings.namespace, _connector(app, settings.redis_url))
        self._announced: set[str] = set()
        if settings.database_url == DEFAULT_DATABASE_URL:
            signals.default_database(DEFAULT_DATABASE_URL)

    @classmethod
    def of(cls, app: Celery) -> Member:
        """The member for `app`; made at first use, and anew in a forked child.

        Raises:
            ImproperlyConfigured: the settings cannot be used.
        """
        app = getattr(app, "_get_current_object", lambda: app)()
        member = _MEMBERS.get(app)
        if member is None or member.pid != os.getpid():
            with _LOCK:
                member = _MEMBERS.get(app)
                if member is None or member.pid != os.getpid():
                    member = _MEMBERS[app] = cls(app, Settings.of(app))
        return member

    def make_ledger(self) -> Ledger:
        """A new ledger with connections of its own."""
        return make_ledger(self.settings)

    def announce(self, *tasks: str) -> None:
        """Record, once per process, that `tasks` claim: beats may publish their slots again.

        Raises:
            LedgerError: the ledger could not be written.
        """
        new = set(tasks) - self._announced
        if new:
            self.leases.ledger.record_tasks(self.settings.namespace, new)
            self._announced |= new


def make_ledger(settings: Settings) -> Ledger:
    """The ledger that the settings name."""
    return Ledger.from_url(
        settings.database_url,
        schema=settings.database_schema,
        engine_options=settings.database_engine_options,
        create_tables=settings.create_tables,
    )


def _connector(app: Celery, url: str | None) -> Callable[[], Any] | None:
    """What makes a client of the Redis at `url`."""
    if url is None:
        return None
    # The app is the key by which its member is found: nothing of the member may keep it.
    known = ref(app)

    def connect() -> Any:
        app: Any = known()
        # Celery knows what may be in such a URL: sockets, TLS, the hosts of a Sentinel.
        by_url: Any = backends.by_url
        backend, rest = by_url(url, app.loader)
        try:
            made = backend(app=app, url=rest)
        except ValueError as exc:
            reason = f"Celery cannot use it: {' '.join(str(exc).split())}"
            raise ImproperlyConfigured("idem_redis_url", hidden(url), reason) from exc
        made.connparams.update(socket_timeout=TIMEOUT, socket_connect_timeout=TIMEOUT)
        return made.client

    return connect


_MEMBERS: WeakKeyDictionary[Celery, Member] = WeakKeyDictionary()
_LOCK = threading.Lock()


def _tidy_up(**_: Any) -> None:
    """A clean exit: what this process owned is free in moments, not after a lease."""
    close_all()


def _renew_lock() -> None:
    """Another thread of the parent may have held it at the fork."""
    global _LOCK
    _LOCK = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)

# A pool child ends by os._exit, without `atexit`; the parent, and the solo and threads pools, too
# when they are told to hurry.
worker_process_shutdown.connect(_tidy_up, weak=False)
worker_shutdown.connect(_tidy_up, weak=False)
