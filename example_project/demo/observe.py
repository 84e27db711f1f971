"""Read what happened from the tables.

Owns: the queries. Executions come from the shop's table, copies from the beats' own record,
duplicates and takeovers from the ledger's history; which process is to be killed, from its rows.
Must not know: how the outcome is judged or shown.
"""

from __future__ import annotations

from collections import Counter
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import (
    ColumnElement,
    Connection,
    column,
    create_engine,
    func,
    inspect,
    select,
    table,
)

from celery_idem import RunState
from example_project import effects
from example_project.demo import watch
from example_project.demo.grid import Seen, Slot

HISTORY = table("celery_idem_history", column("kind"), column("run_key"))
RUNS = table(
    "celery_idem_runs",
    *map(column, ("run_key", "namespace", "state", "lease_id")),
)
LEASES = table("celery_idem_leases", column("id"), column("pid"))


class Moment(NamedTuple):
    """Which runs are in whose hands."""

    #: pid of the process that executes a slot
    running: dict[Slot, int]
    #: whether a slot waits for being claimed
    waiting: bool


class Observer:
    """Reads the tables of one shop."""

    def __init__(self, url: str, shop: str) -> None:
        """Connect to `url`, and create the tables before beats and workers look for them."""
        self._shop = shop
        self._engine = create_engine(url)
        self._has_ledger = False
        effects.create(self._engine)
        watch.create(self._engine)

    def close(self) -> None:
        """Disconnect, so that the server can shut down."""
        self._engine.dispose()

    def look(self) -> Seen:
        """Return what is to be seen now."""
        done, sent = effects.effects.c, watch.copies.c
        with self._engine.connect() as connection:
            amounts = self._each(connection, done, func.sum(done.amount))
            runs = self._each(connection, done, func.count())
            duplicates = self._lines(connection, "duplicate")
            takeovers = self._lines(connection, "takeover")
            resent = self._each(connection, sent, func.count(), sent.pid == 0)
            # Last: a copy that appears meanwhile counts as not accounted for yet.
            noted = self._each(connection, sent, func.count())
        # A beat that is killed between a publish and its note leaves none. The copy that arrived
        # was published all the same, so of each slot the larger number counts.
        copies = noted | (runs + duplicates)
        return Seen(copies, runs, resent.total(), duplicates, takeovers, amounts)

    def moment(self) -> Moment:
        """Return what is in work now, as the ledger has it."""
        states = (RunState.SCHEDULED.value, RunState.RUNNING.value)
        query = (
            select(RUNS.c.run_key, RUNS.c.state, LEASES.c.pid)
            .select_from(RUNS.outerjoin(LEASES, LEASES.c.id == RUNS.c.lease_id))
            .where(RUNS.c.namespace == self._shop, RUNS.c.state.in_(states))
        )
        with self._engine.connect() as connection:
            if not self._is_there(connection):
                return Moment({}, True)
            rows = connection.execute(query).all()
        running = {_slot(row.run_key): row.pid for row in rows if row.pid is not None}
        return Moment(running, any(row.state == RunState.SCHEDULED for row in rows))

    def _each(
        self, connection: Connection, c: Any, number: ColumnElement[int], *where: Any
    ) -> Counter[Slot]:
        """Return a number for each slot, from the table with the columns `c`."""
        group = (c.slot, c.entry)
        query = select(*group, number).where(c.shop == self._shop, *where).group_by(*group)
        rows = connection.execute(query)
        return Counter({Slot(datetime.fromisoformat(at), name): int(n) for at, name, n in rows})

    def _lines(self, connection: Connection, kind: str) -> Counter[Slot]:
        """Count lines of the ledger's history."""
        if not self._is_there(connection):
            return Counter()
        key = HISTORY.c.run_key
        ours = key.startswith(f"{self._shop}:", autoescape=True)
        query = select(key).where(HISTORY.c.kind == kind, ours)
        return Counter(_slot(key) for key in connection.scalars(query))

    def _is_there(self, connection: Connection) -> bool:
        """Whether there is a ledger: it is created by whichever beat or worker needs it first."""
        # The stock shop has none.
        self._has_ledger = self._has_ledger or inspect(connection).has_table(HISTORY.name)
        return self._has_ledger


def _slot(key: str | bytes) -> Slot:
    """Return the slot that a run key names: `shop:entry@instant`; MySQL keeps keys as bytes."""
    text = key.decode() if isinstance(key, bytes) else key
    entry, _, instant = text.partition(":")[2].rpartition("@")
    return Slot(watch.parse(instant), entry)
