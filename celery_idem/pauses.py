"""Which entries are paused, as this beat knows it.

Owns how often the ledger is asked. While it is away, what it has said last holds. Must not know
slots.
"""

from __future__ import annotations

from celery_idem.clock import Clock
from celery_idem.config import Settings
from celery_idem.errors import LedgerError
from celery_idem.ledger import Ledger, Pause
from celery_idem.ledger.rows import entry_name
from celery_idem.outage import Outage, is_ledger_error

#: Seconds after which a pause is seen at the latest.
ROUND = 1.0


class Pauses:
    """The pauses of one app's entries."""

    def __init__(self, settings: Settings, ledger: Ledger, outage: Outage, clock: Clock) -> None:
        self._namespace = settings.namespace
        self._ledger = ledger
        self._outage = outage
        self._clock = clock
        self._found: dict[str, Pause] = {}
        self._look_at = float("-inf")

    def look(self) -> None:
        """Ask the ledger, if it is time."""
        if self._clock.elapsed() < self._look_at or self._outage.is_left_alone:
            return
        try:
            # It only reads: no proof that the ledger can be written.
            with self._outage.watch(is_ledger_error, proves=False):
                self._found = self._ledger.pauses(self._namespace)
        except LedgerError:
            return
        self._look_at = self._clock.elapsed() + ROUND

    def of(self, entry: str) -> Pause | None:
        """The last pause of an entry, whether it lasts or not."""
        return self._found.get(entry_name(self._namespace, entry)) if self._found else None
