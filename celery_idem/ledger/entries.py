"""The ledger on a SQL database: what beats agree on about the entries of a schedule.

Owns the statements by which a beat learns since when a schedule is active, reports that it follows
it, and agrees with others on the slots of a custom one. Statements on many rows name them in sorted
order. Must not know schedules, runs or messages.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from datetime import datetime
from functools import lru_cache
from typing import Any

from sqlalchemy import Table, bindparam, exists, func, null, select, update

from celery_idem.ledger.database import Answer, Database
from celery_idem.ledger.dialects import among, db_now
from celery_idem.ledger.pauses import PausesSql
from celery_idem.ledger.records import REFRESH, counts_as_new
from celery_idem.ledger.rows import chunks, entry_name, micros
from celery_idem.ledger.schema import entries
from celery_idem.ledger.statements import after

#: Pairs, as the fingerprint that one entry has now may be the one that another had before.
_PAIR = (entries.c.entry, entries.c.fingerprint)

_OF_ENTRY = entries.alias("of_entry")
#: Of the others there is nothing to tell, and they are nearly all.
_OTHER_SEEN_LATER = exists().where(
    _OF_ENTRY.c.entry == entries.c.entry, _OF_ENTRY.c.last_seen_at > entries.c.last_seen_at
)


class Statements:
    """Those about many entries, for one kind of database."""

    def __init__(self, dialect: str) -> None:
        these = among(dialect, _PAIR, "b_pairs")
        self.seen = update(entries).where(these).values(last_seen_at=db_now())
        #: Beats that follow the same entries write them once, not once each.
        self.seen_still = self.seen.where(entries.c.last_seen_at <= after("b_before"))
        self.last_seen = select(
            *_PAIR,
            entries.c.last_seen_at,
            select(func.max(_OF_ENTRY.c.last_seen_at))
            .where(_OF_ENTRY.c.entry == entries.c.entry)
            .scalar_subquery()
            .label("latest"),
        ).where(these, _OTHER_SEEN_LATER)
        self.seen_last = select(*_PAIR, entries.c.last_seen_at).where(these)
        self.active = select(*_PAIR, entries.c.active_since).where(these)


statements = lru_cache(Statements)

_ONE_ENTRY = (
    entries.c.entry == bindparam("b_entry"),
    entries.c.fingerprint == bindparam("b_fingerprint"),
)

#: By compare-and-set: whoever has seen the pair meanwhile follows it, or has done this already.
_BEGIN_ANEW = (
    update(entries)
    .where(*_ONE_ENTRY, entries.c.last_seen_at == bindparam("b_seen"))
    .values(active_since=db_now(), last_seen_at=db_now(), agreed_slot=null())
)

_AGREED = select(entries.c.agreed_slot).where(*_ONE_ENTRY)

_AGREE = (
    update(entries)
    .where(*_ONE_ENTRY, entries.c.agreed_slot == bindparam("b_seen"))
    .values(agreed_slot=bindparam("b_slot"))
)

_AGREE_FIRST = (
    update(entries)
    .where(*_ONE_ENTRY, entries.c.agreed_slot.is_(None))
    .values(agreed_slot=bindparam("b_slot"))
)


class EntriesSql(PausesSql):
    """The verbs of entries; `EmissionSql` adds those of slots."""

    database: Database

    @abstractmethod
    def _run(self, statement: Any, parameters: Any = None) -> Answer: ...

    @abstractmethod
    def _insert_if_absent(self, table: Table, rows: list[dict[str, Any]]) -> None: ...

    @property
    def _of_entries(self) -> Statements:
        return statements(self.database.dialect)

    def activate(
        self, namespace: str, entries_: Iterable[tuple[str, str]]
    ) -> dict[tuple[str, str], datetime]:
        active: dict[tuple[str, str], datetime] = {}
        names = {(entry_name(namespace, name), print_): name for name, print_ in entries_}
        for chunk in chunks(sorted(names)):
            now = self.now()
            self._insert_if_absent(
                entries, [_new_entry(entry, fingerprint, now) for entry, fingerprint in chunk]
            )
            self._begin_anew(chunk)
            self._run(self._of_entries.seen, {"b_pairs": chunk})
            for row in self._run(self._of_entries.active, {"b_pairs": chunk}).rows:
                active[names[row.entry, row.fingerprint], row.fingerprint] = row.active_since
        return active

    def _begin_anew(self, pairs: list[tuple[str, str]]) -> None:
        # What was read stays true: others of the entry are only seen later and later, and this one
        # is compared once more by the update.
        for row in self._run(self._of_entries.last_seen, {"b_pairs": pairs}).rows:
            if counts_as_new(row.last_seen_at, row.latest):
                one = {"b_entry": row.entry, "b_fingerprint": row.fingerprint}
                self._run(_BEGIN_ANEW, {**one, "b_seen": row.last_seen_at})

    def last_seen(
        self, namespace: str, entries_: Iterable[tuple[str, str]]
    ) -> dict[tuple[str, str], datetime]:
        seen: dict[tuple[str, str], datetime] = {}
        names = {(entry_name(namespace, name), print_): name for name, print_ in entries_}
        for chunk in chunks(sorted(names)):
            for row in self._run(self._of_entries.seen_last, {"b_pairs": chunk}).rows:
                pair = row.entry, row.fingerprint
                seen[names[pair], row.fingerprint] = row.last_seen_at
        return seen

    def mark_seen(self, namespace: str, entries_: Iterable[tuple[str, str]]) -> None:
        pairs = {(entry_name(namespace, name), print_) for name, print_ in entries_}
        for chunk in chunks(sorted(pairs)):
            before = micros(-REFRESH / 2)
            self._run(self._of_entries.seen_still, {"b_pairs": chunk, "b_before": before})

    def agreed_slot(self, namespace: str, entry: str, fingerprint: str) -> datetime | None:
        rows = self._run(_AGREED, _one_entry(namespace, entry, fingerprint)).rows
        return rows[0].agreed_slot if rows else None

    def agree(
        self,
        namespace: str,
        entry: str,
        fingerprint: str,
        seen: datetime | None,
        slot: datetime,
    ) -> datetime | None:
        one = _one_entry(namespace, entry, fingerprint)
        if seen is None:
            self._run(_AGREE_FIRST, {**one, "b_slot": slot})
        else:
            self._run(_AGREE, {**one, "b_slot": slot, "b_seen": seen})
        return self.agreed_slot(namespace, entry, fingerprint)


def _new_entry(entry: str, fingerprint: str, now: datetime) -> dict[str, Any]:
    return {
        "entry": entry,
        "fingerprint": fingerprint,
        "active_since": now,
        "last_seen_at": now,
        "agreed_slot": None,
    }


def _one_entry(namespace: str, entry: str, fingerprint: str) -> dict[str, str]:
    return {"b_entry": entry_name(namespace, entry), "b_fingerprint": fingerprint}
