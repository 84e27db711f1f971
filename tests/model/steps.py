"""What may happen next: the promises of one statement, and how a step is made.

Owns what a step is and what every statement must keep. Must not know who executes it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from celery_idem.ledger.memory import MemoryLedger
from celery_idem.run import TRANSITIONS, RunState
from tests.model.books import RUNNING, Books, Call, Row
from tests.model.replay import Replay
from tests.model.rules import Alphabet, Rules
from tests.model.verbs import Statements
from tests.model.world import World, settled

#: Statements that wait for a transaction which holds the row; the others pass by it.
_WAITS = (
    *("try_claim", "try_skip", "try_kill", "try_end", "try_retry", "try_give_back", "try_hold"),
    *("try_repair", "callbacks_sent", "fail_of_child", "close_unclaimed", "published"),
)
_SKIPS: dict[str, Any] = {"try_takeover": None, "acquire_orphans": ()}
#: After these, whatever was due is due no longer.
_MOVES = ("try_claim", "try_takeover", "try_retry", "try_give_back")
#: Statements that name the fence of their caller.
FENCED = ("try_end", "try_retry", "try_give_back", "callbacks_sent")


class Step(NamedTuple):
    """Something that happens.

    Attributes:
        broken: the promise that it breaks.
        luck: nothing may depend on it: it is a fault, or a copy that nobody owes.
        calls: what is asked of the ledger, and its answers.
    """

    label: str
    world: World
    broken: str | None = None
    luck: bool = False
    calls: tuple[tuple[Call, Any], ...] = ()


class Done(NamedTuple):
    """A statement that was executed."""

    world: World
    answer: Any
    broken: str | None
    call: Call
    #: It has counted a publish.
    counted: bool = False

    @property
    def calls(self) -> tuple[tuple[Call, Any], ...]:
        return ((self.call, self.answer),)


class Steps:
    """What actors have in common: the ledger, and the way to ask it."""

    def __init__(
        self,
        alphabet: Alphabet,
        ledger: type[MemoryLedger] = MemoryLedger,
        rules: Rules | None = None,
    ) -> None:
        self.alphabet = alphabet
        self.rules = rules or Rules()
        entry = "daily" if alphabet.slots else None
        self.do = Statements(ledger, entry, alphabet.siblings)
        self.replay = Replay(ledger, self.do.place)

    def execute(self, world: World, call: Call) -> Done | None:
        """Execute a statement; None if it has to wait."""
        verb = call[0]
        if world.open is not None and verb in _WAITS:
            return None
        if world.open is not None and verb in _SKIPS:
            return Done(world, _SKIPS[verb], None, call)
        books, answer = self.do(world.books, call)
        broken = _broken(world.books.row, books.row, call)
        row = books.row
        counted = row is not None and row.emitted > 0
        if row is not None and (row.emitted or row.attempts > 1):
            attempts = row.attempts if self.alphabet.counts else min(1, row.attempts)
            books = Books(row._replace(attempts=attempts, emitted=0), books.leases)
        if verb in _MOVES and books != world.books:
            world = self._moved(world, call)
        return Done(world._replace(books=books), answer, broken, call, counted)

    @staticmethod
    def _moved(world: World, call: Call) -> World:
        """The same with what is noted about the run's way."""
        world = world._replace(won=False)
        if call[0] == "try_retry":
            return world._replace(awaited=max(world.awaited, call[2]))
        if call[0] == "try_give_back":
            retry, count = world.starts
            return world._replace(starts=(retry, max(0, count - 1)))
        return world


def step(label: str, world: World, broken: str | None = None, **more: Any) -> Step:
    return Step(label, settled(world), broken, **more)


def _broken(before: Row | None, after: Row | None, call: Call) -> str | None:
    """The promise that a statement breaks, by what it made of the row."""
    if before is None or before == after:
        return None
    assert after is not None
    return _moved_wrongly(before, after, call) or _wrote_wrongly(before, after, call)


def _moved_wrongly(before: Row, after: Row, call: Call) -> str | None:
    if before.final and (after.state, after.retries) != (before.state, before.retries):
        return f"a run that has ended as {RunState(before.state).label} is changed"
    if after.retries < before.retries:
        return "a run goes back to an earlier retry"
    if after.state != before.state and after.state not in TRANSITIONS[RunState(before.state)]:
        return "a run moves as no run may"
    if (before.state, after.state) == (RUNNING, RunState.SKIPPED) and call[0] != "try_end":
        # Its owner alone skips a run that it has claimed.
        return "a run moves as no run may"
    return None


def _wrote_wrongly(before: Row, after: Row, call: Call) -> str | None:
    if call[0] == "try_claim" and call[1].claim == before.claim:
        return "a claim that has ended comes to life again"
    if call[0] in FENCED and call[1] != before.fence:
        return "a late owner's write was taken"
    if call[0] in FENCED[:3] and before.state != RUNNING:
        return "an owner's write was taken of a run that was not running"
    if after.pending and not before.pending and before.final:
        return "callbacks that were sent are to be sent again"
    return None


def is_left(books: Books) -> bool:
    """Nobody owns what the run still needs."""
    row = books.row
    open_ = row is not None and (row.state == RUNNING or row.pending)
    return open_ and row is not None and not books.has(row.lease)
