"""That a beat ticks, for whoever asks.

Owns a lease of kind ``beat``, which is renewed from the tick and from nowhere else: of a beat that
hangs, it ends. Nothing is owned through it. Must not know what a beat does.
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from uuid import uuid4

from celery_idem.clock import Clock
from celery_idem.errors import LedgerError
from celery_idem.lease import PROCESS
from celery_idem.ledger import Ledger, Owner
from celery_idem.outage import Outage, is_ledger_error

#: Seconds without a tick after which a beat is not healthy any more: longer than a round may take
#: in which it waits for a broker and a database.
LASTS = 60.0
#: Renewals in this time.
RENEWALS = 6


class Presence:
    """The lease of one beat.

    Arguments:
        seconds: its length.
    """

    def __init__(
        self, namespace: str, ledger: Ledger, outage: Outage, clock: Clock, seconds: float = LASTS
    ) -> None:
        self._namespace = namespace
        self._ledger = ledger
        self._outage = outage
        self._clock = clock
        self._seconds = seconds
        self._lease_id = ""
        self._renew_at = float("-inf")

    def tell(self) -> None:
        """The beat ticks: say so, if it is time."""
        now = self._clock.elapsed()
        if now < self._renew_at or self._outage.is_left_alone:
            return
        try:
            with self._outage.watch(is_ledger_error):
                self._renew()
        except LedgerError:
            return
        self._renew_at = now + self._seconds / RENEWALS

    def _renew(self) -> None:
        # A lease that has ended never returns.
        if self._lease_id and self._ledger.renew([self._lease_id], self._seconds):
            return
        self._lease_id = uuid4().hex
        owner = Owner("beat", socket.gethostname(), os.getpid(), PROCESS, self._namespace)
        self._ledger.register(self._lease_id, owner, self._seconds)

    def leave(self) -> None:
        """The beat ends."""
        if self._lease_id and not self._outage.away:
            with suppress(LedgerError):
                self._ledger.release([self._lease_id])
