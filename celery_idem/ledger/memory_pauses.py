"""The ledger in memory: entries that are paused.

Owns the verbs of pauses on `memory_tables`, and the lock and the clock of all verbs. Must not know
schedules.
"""

from __future__ import annotations

import threading
from dataclasses import replace

from celery_idem.clock import SYSTEM, Clock
from celery_idem.ledger import Ledger, Pause
from celery_idem.ledger.memory_tables import Tables
from celery_idem.ledger.rows import cut, entry_name


class PausesInMemory(Ledger):
    """The verbs of pauses; `EmissionInMemory` adds those of beats."""

    def __init__(self, clock: Clock = SYSTEM) -> None:
        self.clock = clock
        self.tables = Tables()
        self._lock = threading.Lock()

    def pause(
        self, namespace: str, entry: str, *, by: str | None = None, note: str | None = None
    ) -> Pause:
        name = entry_name(namespace, entry)
        with self._lock:
            found = self.tables.pauses.get(name)
            if found is None or not found[1].lasts:
                made = Pause(self.clock.now(), None, by, cut(note))
                found = self.tables.pauses[name] = (namespace, made)
            return found[1]

    def resume(self, namespace: str, entry: str) -> Pause | None:
        name = entry_name(namespace, entry)
        with self._lock:
            _, found = self.tables.pauses.get(name, (namespace, None))
            if found is not None and found.lasts:
                found = replace(found, resumed_at=self.clock.now())
                self.tables.pauses[name] = (namespace, found)
            return found

    def pauses(self, namespace: str) -> dict[str, Pause]:
        with self._lock:
            found = self.tables.pauses.items()
            return {name: pause for name, (its, pause) in found if its == namespace}

    def is_known_entry(self, namespace: str, entry: str) -> bool:
        with self._lock:
            return any(name == entry_name(namespace, entry) for name, _ in self.tables.entries)
