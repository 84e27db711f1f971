"""A walk at random through the worlds of the model, taken by a database in lock-step.

Each statement of a step is executed on a real ledger too, with names of its own and the row's real
fence; its answer, the row and the leases must be those of the ledger in memory. Owns this
translation, and how time passes in a database. Must not know what is promised: the steps tell.
"""

from __future__ import annotations

import random
from typing import Any

from sqlalchemy import select, update

from celery_idem.keys import RunKey
from celery_idem.ledger.schema import leases, runs
from tests.contract.stores import FIRST, Store, fresh
from tests.model.books import (
    DUE,
    GONE,
    LATER,
    OLD,
    SOON,
    Call,
    Place,
    Seen,
    exchanged,
    seen_of,
)
from tests.model.rules import Alphabet
from tests.model.search import Model
from tests.model.steps import Step
from tests.model.verbs import perform

#: The database's handover while it walks: a second would pass by itself.
HANDOVER = 300.0
#: How often a step is taken that is no fault.
LIKELY = 0.7


class Walk:
    """One run, walked until nothing is owed any more or it has taken `limit` steps."""

    def __init__(self, store: Store, alphabet: Alphabet, chance: random.Random) -> None:
        self.model = Model(alphabet)
        self.world = self.model.first()
        self.history: list[str] = []
        self._store, self._chance = store, chance
        known = self.model.do.place
        self._place = Place(RunKey(fresh("run"), known.key.slot), known.entry, known.task)
        self._names: dict[str, str] = {}
        self._connection: Any = None

    def go(self, limit: int) -> int:
        """Take steps; how many. Raises AssertionError where the two differ."""
        try:
            for taken in range(limit):
                steps = list(self.model.steps(self.world))
                if not steps or self.model.is_over(self.world):
                    return taken
                # Mostly without faults: otherwise few bodies would ever begin.
                good = [step for step in steps if not step.luck]
                likely = good if good and self._chance.random() < LIKELY else steps
                self._take(self._chance.choice(likely))
            return limit
        finally:
            self._rollback()

    def _take(self, step: Step) -> None:
        self.history.append(step.label)
        assert not step.broken, self._shown(str(step.broken))
        # A claim and a batch of which nobody knows any more has a new name the next time.
        known = set(self.world._claims())
        self._names = {n: it for n, it in self._names.items() if n[0] not in "cb" or n in known}
        for call, answer in step.calls:
            self._execute(call, answer)
        self.world = step.world
        self._compare()

    def _name(self, name: str) -> str:
        if name in (GONE, OLD):
            return name
        return self._names.setdefault(name, f"{name}.{fresh('name')}")

    def _shown(self, reason: str) -> str:
        return "\n".join([*self.history, reason])

    # -- the same in the database ----------------------------------------------------------------

    def _execute(self, call: Call, answer: Any) -> None:
        verb, *rest = call
        if verb == "register":
            self._names.pop(rest[0], None)
        before = self._fence()

        def fence(known: int) -> int:
            return before + known - 1

        real = tuple(exchanged(part, self._name, fence) for part in rest)
        if verb in ("expire", "pass"):
            self._let_pass(verb, *real)
        elif verb == "finish":
            assert self._finish(real[0]) == answer, self._shown("the two differ")
        elif verb == "commit":
            self._connection.commit()
        elif verb == "rollback":
            self._rollback()
        else:
            found = perform(self._store.ledger, self._place, True, (verb, *real))
            expected = exchanged(answer, self._name, fence)
            if verb != "bury_expired":  # Which tells how many it has seen, other walks' too.
                assert _alike(found, expected), self._shown(f"{found}, not {expected}")

    def _fence(self) -> int:
        row = self._store.ledger.read(self._place.key)
        return row.fence if row else 1

    def _let_pass(self, verb: str, lease: str | None = None) -> None:
        if verb == "expire":
            past = update(leases).where(leases.c.id == lease).values(expires_at=FIRST)
        else:
            past = update(runs).where(runs.c.run_key == self._place.key.text)
            past = past.values(next_emit_at=FIRST)
        self._store.sql._run(past)

    def _finish(self, fence: int) -> bool:
        engine = self._store.sql.database.apart()
        self._connection = engine.connect().execution_options(isolation_level="READ COMMITTED")
        statement, values = self._store.ledger.finish_statement(
            self._place.key, fence, engine.dialect.paramstyle
        )
        if self._connection.exec_driver_sql(statement, values).rowcount:
            return True
        self._rollback()
        return False

    def _rollback(self) -> None:
        if self._connection is not None:
            self._connection.rollback()
            self._connection.close()
            self._connection = None

    # -- what came out ---------------------------------------------------------------------------

    def _compare(self) -> None:
        ledger, books = self._store.ledger, self.world.books
        found = ledger.read(self._place.key)
        if books.row is None:
            assert found is None, self._shown("there is a row")
            return
        assert found is not None, self._shown("there is no row")
        left = {name: int(alive) for name, alive in books.leases}.get(books.row.lease or "")
        expected = exchanged(Seen(books.row, left), self._name, lambda _: found.fence)
        shown = seen_of(found, self._emit())
        assert _alike(shown, expected), self._shown(f"{shown}, not {expected}")
        emits = (shown.row.emit, books.row.emit)
        assert emits[0] == emits[1], self._shown(f"emits {emits[0]}, not {emits[1]}")

    def _emit(self) -> int | None:
        query = select(runs.c.next_emit_at).where(runs.c.run_key == self._place.key.text)
        at = self._store.sql._run(query).rows[0][0]
        if at is None:
            return None
        left = (at - self._store.ledger.now()).total_seconds()
        return DUE if left <= 0 else SOON if left <= HANDOVER else LATER


def _alike(found: Any, expected: Any) -> bool:
    """Whether two answers are the same, as far as both tell."""
    if isinstance(expected, Seen) and isinstance(found, Seen):
        row, known = found.row, expected.row
        same = row == known._replace(
            lease=row.lease, claim=row.claim, emit=row.emit, emitted=row.emitted
        )
        leases_ = known.lease in (GONE, row.lease)
        return same and leases_ and known.claim in (OLD, row.claim) and found.left == expected.left
    if isinstance(expected, tuple) and not hasattr(expected, "_fields"):
        return len(found) == len(expected) and all(map(_alike, found, expected))
    return bool(found == expected) or (not found and not expected)
