"""What ``celery idem status`` shows.

Owns what is asked of the ledger for it, and how that is laid out. Must not change anything, nor
make tables or files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import asdict
from typing import Any

from celery_idem.config import Settings
from celery_idem.errors import LedgerError
from celery_idem.ledger import Ledger, migrations
from celery_idem.ledger.database import Database
from celery_idem.ledger.sql import SqlLedger
from celery_idem.run import RunState

#: Shown as the version where a project's own migrations have made the tables.
OWN = "of the project's own migrations"


def gather(settings: Settings) -> dict[str, Any]:
    """All that is shown, as JSON can have it.

    Raises:
        ImproperlyConfigured: the URL or an option cannot be used.
        LedgerError: there are no tables, or they are of another version.
        LedgerUnavailable: the database does not answer.
    """
    ledger = SqlLedger(
        settings.database_url,
        schema=settings.database_schema,
        engine_options=settings.database_engine_options,
        create_tables=False,
    )
    with closing(ledger):
        return _gather(settings, ledger, ledger.database)


def _gather(settings: Settings, ledger: Ledger, database: Database) -> dict[str, Any]:
    if migrations.are_absent(database):
        raise LedgerError(*_no_tables(settings, database))
    counts = ledger.counts()
    prefix = f"{settings.namespace}:"
    return {
        "database": database.shown,
        "schema": settings.database_schema,
        "namespace": settings.namespace,
        "version": migrations.version(database),
        "runs": {state.label: counts.pop(state.label, 0) for state in RunState},
        "leases": {kind: asdict(its) for kind, its in sorted(ledger.lease_counts().items())},
        "history": dict(sorted(counts.items())),
        "locks": [
            {
                "name": name.removeprefix(prefix),
                "seat": seat.seat,
                "fence": seat.fence,
                "lease_seconds": round(seat.lease_seconds or 0.0, 1),
            }
            for name, seat in sorted(ledger.held_locks(), key=lambda held: (held[0], held[1].seat))
            if name.startswith(prefix) and not seat.is_free
        ],
        "tasks": sorted(
            name.removeprefix(prefix) for name in ledger.known_tasks(settings.namespace)
        ),
    }


def _no_tables(settings: Settings, database: Database) -> tuple[str, str]:
    command = "'celery -A PROJECT idem upgrade'"
    return (
        f"{database.shown} has no tables of the ledger yet",
        f"the first worker or beat that uses it creates them, or {command} does"
        if settings.create_tables
        else f"run {command}, or your own migrations, as idem_create_tables is False",
    )


def text(found: dict[str, Any]) -> str:
    """The same for people."""
    return "\n".join(line.rstrip() for line in _lines(found))


def _lines(found: dict[str, Any]) -> Iterator[str]:
    head = {
        "database": found["database"],
        "schema": found["schema"],
        "namespace": found["namespace"],
        "version": found["version"] or OWN,
    }
    yield from (f"{name:<11}{value}" for name, value in head.items() if value is not None)
    counted = {name: (number,) for name, number in found["runs"].items() if number}
    yield from _table("runs of all namespaces", ("",), counted)
    leases = {kind: (its["live"], its["expired"]) for kind, its in found["leases"].items()}
    yield from _table("leases", ("live", "expired"), leases)
    locks = {
        f"{its['name']} ({its['seat']})" if its["seat"] else its["name"]: (its["lease_seconds"],)
        for its in found["locks"]
    }
    yield from _table("locks that are held", ("lease, s",), locks)
    lines = {kind: (number,) for kind, number in found["history"].items()}
    yield from _table("history of all namespaces", ("",), lines)
    yield from _table("tasks that claim", (), dict.fromkeys(found["tasks"], ()))


def _table(
    title: str, columns: tuple[str, ...], rows: Mapping[str, tuple[float, ...]]
) -> Iterator[str]:
    yield ""
    if not rows:
        yield f"{title}: none"
        return
    yield f"{title:<{WIDTH}}" + "".join(f"{column:>10}" for column in columns)
    for name, numbers in rows.items():
        yield f"  {name:<{WIDTH - 2}}" + "".join(f"{number:>10}" for number in numbers)


#: Of the column of names.
WIDTH = 26
