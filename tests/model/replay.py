"""What is put together from several verbs, stepped statement by statement.

`Ledger.claim` and its kin are not written anew: they are called on a ledger that answers from a
list. Where the list ends, the next statement is known. Must not know what statements do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from celery_idem.errors import LeaseLost, LedgerUnavailable, ResultLost
from celery_idem.holding import unclaim
from celery_idem.ledger import Retry, Unsent
from celery_idem.ledger.memory import MemoryLedger
from celery_idem.run import ClaimOutcome, ClaimRequest, RunRow, RunState
from tests.model.books import Ask, Call, Fence, Place, Seen, ask_of, seen_of

#: The answer that a thread never gets.
LOST = "lost"
#: Composites whose beginning does not depend on what was answered before.
_BEGINS = ("try_claim", "try_skip")


class Program(NamedTuple):
    """A composite and its arguments."""

    name: str
    ask: Ask | None = None
    seen: Seen | None = None
    fence: Fence = Fence(0)
    #: The state to end in, or the number of the retry.
    value: int = 0
    unsent: bool = False


class Outcome(NamedTuple):
    """How a composite has ended; "lost" if its caller never learns it."""

    name: str
    fence: Fence = Fence(0)
    seen: Seen | None = None


class Next(Exception):
    """The list of answers ends here: this is the next statement."""

    def __init__(self, call: Call) -> None:
        super().__init__(call)
        self.call = call


class Answered:
    """Verbs of a ledger that are answered from a list."""

    answers: list[Any]

    def _ask(self, *call: Any) -> Any:
        if not self.answers:
            raise Next(call)
        answer = self.answers.pop(0)
        if answer == LOST:
            raise LedgerUnavailable("lost")
        return answer


class _Replaying(Answered):
    """The verbs of owners."""

    place: Place

    def read(self, key: Any) -> RunRow | None:
        found = self._ask("read")
        return self.place.run_row(found) if found else None

    def try_claim(self, request: ClaimRequest) -> Any:
        return self._ask("try_claim", ask_of(request))

    def try_skip(self, request: ClaimRequest, error: str) -> Any:
        return self._ask("try_skip", ask_of(request))

    def try_takeover(self, request: ClaimRequest, seen: RunRow) -> Any:
        return self._ask("try_takeover", ask_of(request), seen_of(seen))

    def try_repair(self, request: ClaimRequest, seen: RunRow) -> Any:
        return self._ask("try_repair", ask_of(request), seen_of(seen))

    def try_kill(self, seen: RunRow, error: str) -> Any:
        return self._ask("try_kill", seen_of(seen))

    def bury(self, lease_id: str) -> None:
        self._ask("bury", lease_id)

    def try_end(
        self,
        key: Any,
        fence: int,
        state: RunState,
        error: Any,
        unsent: Unsent | None = None,
        stored: str | None = None,
    ) -> Any:
        return self._ask("try_end", Fence(fence), state.value, unsent is not None)

    def try_retry(self, key: Any, fence: int, retry: Retry) -> Any:
        return self._ask("try_retry", Fence(fence), retry.retries)

    def try_give_back(self, key: Any, fence: int, *_: Any) -> Any:
        return self._ask("try_give_back", Fence(fence))

    def try_hold(self, key: Any, fence: int) -> Any:
        return self._ask("try_hold", Fence(fence))

    def callbacks_sent(self, key: Any, fence: int, *, stored: bool = False) -> None:
        self._ask("callbacks_sent", Fence(fence))


class Replay:
    """Composites of a class of ledgers, each as far as its answers go."""

    def __init__(self, ledger: type[MemoryLedger], place: Place) -> None:
        self._class: Any = type("Replaying", (_Replaying, ledger), {})
        self._place = place
        self._known: dict[tuple[Program, Sequence[Any]], Call | Outcome] = {}

    def __call__(self, program: Program, answers: tuple[Any, ...]) -> Call | Outcome:
        """The next statement, or how the composite has ended."""
        found = self._known.get((program, answers))
        if found is None:
            found = self._known[program, answers] = self._run(program, answers)
        return found

    def shortened(self, program: Program, answers: tuple[Any, ...]) -> tuple[Any, ...]:
        """The answers without those that do not matter any more: those of an earlier round."""
        found = self(program, answers)
        again = not isinstance(found, Outcome) and found[0] in _BEGINS
        return () if again else answers

    def _run(self, program: Program, answers: tuple[Any, ...]) -> Call | Outcome:
        ledger = self._class()
        ledger.answers, ledger.place = list(answers), self._place
        try:
            return self._outcome(ledger, program)
        except Next as next_:
            return next_.call
        except LedgerUnavailable:
            return Outcome(LOST)
        except LeaseLost:
            return Outcome("refused")
        except ResultLost:
            return Outcome("committed")

    def _outcome(self, ledger: Any, program: Program) -> Outcome:
        name, ask, seen, fence, value, unsent = program
        place, key = self._place, self._place.key
        if name == "claim":
            assert ask is not None
            claim = ledger.claim(place.request(ask))
            found = claim.seen and seen_of(claim.seen)
            return Outcome(claim.outcome.value, Fence(claim.fence), found)
        if name.startswith("take back"):
            assert ask is not None
            return self._taken_back(ledger, place.request(ask), its_own=name == "take back")
        if name == "repair":
            assert ask is not None and seen is not None
            won = ledger.repair(place.request(ask), place.run_row(seen))
            return Outcome("repairs", Fence(won)) if won else Outcome("no")
        if name == "end":
            ledger.end(key, fence, RunState(value), None, Unsent("7") if unsent else None)
        elif name == "retry":
            ledger.retry(key, fence, Retry(value, 0.0, "{}"))
        elif name == "give back":
            return Outcome("done" if ledger.give_back(key, fence, "", 1.0) else "refused")
        elif name == "sent":
            ledger.callbacks_sent(key, fence)
        else:
            return self._of_transaction(ledger, name, fence)
        return Outcome("done")

    def _taken_back(self, ledger: Any, request: ClaimRequest, its_own: bool) -> Outcome:
        if its_own:
            unclaim(request, None, ledger)
        elif (found := ledger.read(request.key)) and found.state is RunState.RUNNING:
            ledger.give_back(request.key, found.fence, "", 1.0)
        return Outcome("done")

    def _of_transaction(self, ledger: Any, name: str, fence: int) -> Outcome:
        key = self._place.key
        if name == "finish":
            return Outcome("done" if ledger.try_hold(key, fence) else "refused")
        return Outcome("yes" if ledger.was_committed(key, fence) else "no")


CLAIMED = ClaimOutcome.CLAIMED.value
