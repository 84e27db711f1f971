"""The ledger on a SQL database: entries that people, or failed runs, have paused.

Owns the statements of pauses. A pause that has ended stays until the next one takes its place. Must
not know what a beat makes of it.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from sqlalchemy import Table, bindparam, null, select, update

from celery_idem.ledger import Ledger
from celery_idem.ledger.database import Answer
from celery_idem.ledger.dialects import db_now
from celery_idem.ledger.records import Pause
from celery_idem.ledger.rows import cut, entry_name
from celery_idem.ledger.schema import entries, pauses

_ONE = pauses.c.entry == bindparam("b_entry")

#: Not one that lasts: what is told is when it began, and why.
_PAUSE_AGAIN = (
    update(pauses)
    .where(_ONE, pauses.c.resumed_at.is_not(None))
    .values(
        paused_at=db_now(),
        paused_by=bindparam("b_by"),
        note=bindparam("b_note"),
        resumed_at=null(),
    )
)

_RESUME = update(pauses).where(_ONE, pauses.c.resumed_at.is_(None)).values(resumed_at=db_now())

_READ = select(pauses).where(_ONE)

_ALL = select(pauses).where(pauses.c.namespace == bindparam("b_namespace"))

_KNOWN = select(entries.c.entry).where(entries.c.entry == bindparam("b_entry")).limit(1)


class PausesSql(Ledger):
    """The verbs of pauses; `EntriesSql` adds those of entries."""

    @abstractmethod
    def _run(self, statement: Any, parameters: Any = None) -> Answer: ...

    @abstractmethod
    def _insert_if_absent(self, table: Table, rows: list[dict[str, Any]]) -> None: ...

    def pause(
        self, namespace: str, entry: str, *, by: str | None = None, note: str | None = None
    ) -> Pause:
        name, note = entry_name(namespace, entry), cut(note)
        row = {
            "entry": name,
            "namespace": namespace,
            "paused_at": self.now(),
            "resumed_at": None,
            "paused_by": by,
            "note": note,
        }
        self._insert_if_absent(pauses, [row])
        self._run(_PAUSE_AGAIN, {"b_entry": name, "b_by": by, "b_note": note})
        (found,) = self._run(_READ, {"b_entry": name}).rows
        return _pause(found)

    def resume(self, namespace: str, entry: str) -> Pause | None:
        name = {"b_entry": entry_name(namespace, entry)}
        self._run(_RESUME, name)
        rows = self._run(_READ, name).rows
        return _pause(rows[0]) if rows else None

    def pauses(self, namespace: str) -> dict[str, Pause]:
        rows = self._run(_ALL, {"b_namespace": namespace}).rows
        return {row.entry: _pause(row) for row in rows}

    def is_known_entry(self, namespace: str, entry: str) -> bool:
        return bool(self._run(_KNOWN, {"b_entry": entry_name(namespace, entry)}).rows)


def _pause(row: Any) -> Pause:
    return Pause(row.paused_at, row.resumed_at, row.paused_by, row.note)
