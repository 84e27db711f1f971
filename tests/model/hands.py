"""A key that goes from message to message: every history of a few copies, statement by statement.

Real
    Each statement is that of the ledger in memory; `Ledger.claim` and `Ledger.end` are stepped as
    they are: called on a ledger that answers from a list, until the list ends.
What may happen
    Copies of messages arrive in any order, and stand still between any two statements; a worker
    dies, in its body or out of it, and its message comes again; an answer is lost, and the
    statement is executed again.
Promises
    No two bodies at once; a message whose body has ended is not executed again, whenever a copy of
    it comes; an owner that lives is not refused; a copy that is no execution is told so; and from
    each world all come to an end.
Bounds
    One key, two messages, three copies and one more after a death; one death, one lost answer.
    Leases end with their workers only.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from typing import Any, NamedTuple

from celery_idem.errors import LeaseLost
from celery_idem.keys import RunKey
from celery_idem.ledger.memory import MemoryLedger
from celery_idem.ledger.memory_tables import LeaseInMemory, RunInMemory, Tables
from celery_idem.ledger.records import Owner
from celery_idem.run import ClaimOutcome, ClaimRequest, RunRow, RunState
from tests.contract.stores import LONG, SettableClock

KEY = RunKey("shop:bill=7")
#: The message of each copy. The last one comes when an earlier one has died.
COPIES = ("a", "a", "b")
_VERBS = (
    *("read", "try_claim", "try_takeover", "try_kill", "bury"),
    *("keep_apart", "try_claim_again", "try_end"),
)
_CLOCK = SettableClock()
_OWNER = Owner("worker", "host", 1, "parent")


class Next(Exception):
    """The list of answers ends here: this is the next statement, or the body."""

    def __init__(self, *call: Any) -> None:
        super().__init__(*call)
        self.call = call


class Copy(NamedTuple):
    """A copy of a message with a worker: what it was answered so far; None: it has died."""

    message: str
    number: int
    answers: tuple[Any, ...] | None = ()


class World(NamedTuple):
    """All runs, the leases that hold, the copies, whose bodies have ended, and what is left."""

    runs: tuple[tuple[RunKey, RunRow], ...] = ()
    leases: frozenset[str] = frozenset()
    copies: tuple[Copy, ...] = ()
    ended: tuple[str, ...] = ()
    deaths: int = 1
    losses: int = 1


def first() -> World:
    copies = tuple(Copy(message, number) for number, message in enumerate(COPIES))
    return World(leases=frozenset(lease(copy) for copy in copies), copies=copies)


def lease(copy: Copy) -> str:
    return f"lease {copy.number}"


class Broken(AssertionError):
    """A promise does not hold in some history."""


class Search:
    """All worlds that can come of the first one.

    Arguments:
        ledger: a class of ledgers; one with a rule left out breaks a promise.
    """

    def __init__(self, ledger: type[MemoryLedger] = MemoryLedger) -> None:
        self._class = ledger
        answered = {verb: _answered(verb) for verb in _VERBS}
        self._replaying: Any = type("Replaying", (ledger,), answered)
        self._next = lru_cache(None)(self._run)

    def run(self) -> int:
        """The number of worlds. Raises `Broken`."""
        begin = first()
        seen, waiting = {begin}, deque([begin])
        while waiting:
            world = waiting.popleft()
            self._check(world)
            for after in self._steps(world):
                if after not in seen:
                    seen.add(after)
                    waiting.append(after)
        return len(seen)

    # -- what may happen ------------------------------------------------------------------------

    def _steps(self, world: World) -> Iterator[World]:
        for copy in world.copies:
            call = self._next(copy)
            if copy.answers is None or call[0] == "done":
                continue
            if call[0] == "body":
                yield _answer(world, copy, True)
            else:
                after, answer = self._perform(world, call)
                yield self._told(_answer(after, copy, answer), copy)
                if world.losses:
                    yield after._replace(losses=world.losses - 1)
            if world.deaths:
                yield self._dead(world, copy)

    def _told(self, world: World, copy: Copy) -> World:
        has_ended = self._next(world.copies[copy.number]) == ("done", None)
        return world._replace(ended=(*world.ended, copy.message)) if has_ended else world

    def _dead(self, world: World, copy: Copy) -> World:
        again = Copy(copy.message, len(world.copies))
        gone = _changed(world, copy._replace(answers=None))
        return gone._replace(
            copies=(*gone.copies, again),
            leases=(world.leases - {lease(copy)}) | {lease(again)},
            deaths=world.deaths - 1,
        )

    def _perform(self, world: World, call: tuple[Any, ...]) -> tuple[World, Any]:
        ledger = self._class(_CLOCK)
        until = ledger._after(LONG)
        ledger.tables = Tables(
            runs={key: RunInMemory(row, created_at=_CLOCK.now()) for key, row in world.runs},
            leases={name: LeaseInMemory(_OWNER, until) for name in world.leases},
        )
        verb, *args = call
        answer = getattr(ledger, verb)(*args)
        runs = tuple(sorted((key, run.row) for key, run in ledger.tables.runs.items()))
        return world._replace(runs=runs, leases=frozenset(ledger.tables.leases)), answer

    # -- what a worker does ---------------------------------------------------------------------

    def _run(self, copy: Copy) -> tuple[Any, ...]:
        """The next statement of a copy's worker, its body, or how it is done."""
        ledger = self._replaying(_CLOCK)
        ledger.answers = list(copy.answers or ())
        request = ClaimRequest(
            key=KEY,
            task="shop.bill",
            namespace="shop",
            entry=None,
            task_id=copy.message,
            retries=0,
            lease_id=lease(copy),
            claim_id=f"claim {copy.number}",
            free_after=0.0,
        )
        try:
            claim = ledger.claim(request)
            if claim.outcome is not ClaimOutcome.CLAIMED:
                return ("done", claim.outcome)
            if not ledger.answers:
                return ("body",)
            ledger.answers.pop(0)
            ledger.end(KEY, claim.fence, RunState.SUCCEEDED, task_id=copy.message)
        except Next as found:
            return found.call
        except LeaseLost as exc:
            return ("refused", str(exc))
        return ("done", None)

    # -- promises -------------------------------------------------------------------------------

    def _check(self, world: World) -> None:
        alive = {copy: self._next(copy) for copy in world.copies if copy.answers is not None}
        states = [call[0] for call in alive.values()]
        if "refused" in states:
            raise Broken("an owner that lives is refused")
        if states.count("body") > 1:
            raise Broken("two bodies at once")
        if len(set(world.ended)) < len(world.ended):
            raise Broken(f"executed again: {world.ended}")
        if set(states) == {"done"}:
            told = {copy.message for copy, call in alive.items() if call[1] is not None}
            if not {copy.message for copy in alive} <= told | set(world.ended):
                raise Broken("a message is lost")


def _answered(verb: str) -> Any:
    def ask(self: Any, *args: Any, **more: Any) -> Any:
        if not self.answers:
            raise Next(verb, *args, *more.values())
        return self.answers.pop(0)

    return ask


def _answer(world: World, copy: Copy, answer: Any) -> World:
    return _changed(world, copy._replace(answers=(*(copy.answers or ()), answer)))


def _changed(world: World, copy: Copy) -> World:
    copies = tuple(copy if each.number == copy.number else each for each in world.copies)
    return world._replace(copies=copies)


# -- a rule left out ------------------------------------------------------------------------------


class LooksForNoRunOfItsOwn(MemoryLedger):
    """A late copy does not look whether its message was executed."""

    def read(self, key: RunKey) -> RunRow | None:
        return super().read(key) if key == KEY else None


class KeepsNothingApart(MemoryLedger):
    def keep_apart(self, seen: RunRow) -> None:
        pass


class KeepsApartLater(MemoryLedger):
    """After the key has changed hands."""

    def keep_apart(self, seen: RunRow) -> None:
        pass

    def try_claim_again(self, request: ClaimRequest, seen: RunRow) -> tuple[int, int] | None:
        won = super().try_claim_again(request, seen)
        if won is not None:
            MemoryLedger.keep_apart(self, replace(seen, task_id="somebody"))
        return won


class TakesWhateverHasEnded(MemoryLedger):
    """By the state alone, not as it was seen."""

    def _left(self, by: Any, seen: RunRow) -> RunInMemory | None:
        run = self.tables.runs.get(seen.key)
        return run if run is not None and run.row.state.final else None


class TakesWhatGoesOn(MemoryLedger):
    """As it was seen, but whatever it does."""

    def try_claim(self, request: ClaimRequest) -> tuple[int, int] | None:
        run = self.tables.runs.get(request.key)
        if run is not None and run.row.state is RunState.RUNNING:
            return self._take(run, request, 1)
        return super().try_claim(request)


RULES = (
    LooksForNoRunOfItsOwn,
    KeepsNothingApart,
    KeepsApartLater,
    TakesWhateverHasEnded,
    TakesWhatGoesOn,
)
