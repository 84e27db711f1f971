"""What worker threads do with messages and answers, as `celery_idem.execution` does it.

Owns the steps of a thread: receive, claim, execute, end, send callbacks; die. Must not know what
the ledger does with its statements.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from celery_idem.run import ClaimOutcome
from tests.model.bodies import Bodies
from tests.model.books import Ask, Call
from tests.model.replay import CLAIMED, LOST, Outcome, Program
from tests.model.steps import FENCED, Done, Step, step
from tests.model.world import Thread, World

#: Where a thread executes a composite, and under which name.
_PROGRAMS = {
    "claim": "claim",
    "undo": "take back",
    "end": "end",
    "retry": "retry",
    "reject": "give back",
    "repair": "repair",
    "report": "sent",
    "transaction": "finish",
    "ask": "was it committed",
}
#: Those whose caller gives up if the ledger does not answer; the others ask until it does.
_GIVES_UP = ("claim", "repair", "report")


class Workers(Bodies):
    """The steps of worker threads."""

    def of_worker(self, world: World, number: int) -> Iterator[Step]:
        me = world.threads[number]
        yield from self._of_lease(world, number)
        if me.at in _PROGRAMS:
            yield from self.statement(world, number)
        else:
            yield from self._others().get(me.at, self._nothing)(world, number)
        if self.alphabet.crashes and me.at not in ("idle", "dead"):
            yield step(f"worker {number} dies", self._dies(world, number), luck=True)

    def _others(self) -> dict[str, Callable[[World, int], Iterator[Step]]]:
        return {
            "idle": self._receive,
            "start": self._start,
            "body": self._body,
            "commit": self._commit,
            "publish": self._publish,
            "send": self._send,
        }

    @staticmethod
    def _nothing(world: World, number: int) -> Iterator[Step]:
        return iter(())

    def _dies(self, world: World, number: int) -> World:
        me = world.threads[number]
        if me.at != "undo":  # Its message was put back.
            world = world._replace(queue=world.queue | {(me.number, True)})
        return world.put(number, Thread())

    # -- its lease -------------------------------------------------------------------------------

    def _of_lease(self, world: World, number: int) -> Iterator[Step]:
        me = world.threads[number]
        if me.lease is None or me.at in ("dead", "undo"):
            return
        if me.trusts:
            # Before the ledger names it, a lease may as well end a moment after.
            row = world.books.row
            if row is None or row.lease != me.lease or not self.alphabet.expiring:
                return
            doubts = world.put(number, me._replace(trusts=False))
            yield step(f"worker {number} stops trusting its lease", doubts, luck=True)
            return
        done = self.execute(world, ("renew", me.lease))
        assert done is not None
        if done.answer:
            renewed = done.world.put(number, me._replace(trusts=True))
            broken = None
            if not world.books.alive(me.lease) and world.books.has(me.lease):
                broken = "a lease that has expired is renewed"
            yield step(f"worker {number} renews its lease", renewed, broken, calls=done.calls)

    # -- messages --------------------------------------------------------------------------------

    def _receive(self, world: World, number: int) -> Iterator[Step]:
        for message in sorted(world.queue):
            taken = world._replace(queue=world.queue - {message})
            yield from self._take(taken, number, *message)
        if world.books.row is None:
            return
        for retry in range(world.published + 1):
            if self.alphabet.strays:
                yield from self._take(world, number, retry, False, stray=True)
            if self.alphabet.again and (retry, True) not in world.queue:
                for step_ in self._take(world, number, retry, True):
                    yield step_._replace(luck=True)

    def _take(
        self, world: World, number: int, retry: int, again: bool, stray: bool = False
    ) -> Iterator[Step]:
        me = world.threads[number]
        calls: tuple[tuple[Call, Any], ...] = ()
        lease = me.lease if me.trusts else None
        if lease is None:
            lease = world.free_lease(number)
            done = self.execute(world, ("register", lease))
            assert done is not None
            world, calls = done.world, done.calls
        thread = Thread("claim", lease, True, retry, again)
        thread = thread._replace(claim=world.free_claim(f"c{number}"))
        what = "a stray copy" if stray else "the message" if not again else "the message again"
        label = f"worker {number} gets {what} of retry {retry}"
        yield step(label, world.put(number, thread), luck=stray, calls=calls)
        if self.alphabet.expires:
            late = world.put(number, thread._replace(expired=True))
            yield step(f"{label}, expired", late, luck=stray, calls=calls)

    # -- statements ------------------------------------------------------------------------------

    def program(self, me: Thread) -> Program:
        ask = Ask(me.lease or "", me.claim or "", me.number, me.expired)
        name = _PROGRAMS[me.at]
        if name == "take back" and not self.rules.takes_back_its_own:
            name = "take back any"
        if me.at in ("claim", "undo"):
            return Program(name, ask)
        if name == "repair":
            return Program(name, ask, me.seen)
        return Program(name, fence=me.fence, value=me.value, unsent=me.unsent)

    def statement(self, world: World, number: int) -> Iterator[Step]:
        me = world.threads[number]
        call = self.replay(self.program(me), me.answers)
        assert not isinstance(call, Outcome)
        done = self.execute(world, call)
        if done is None:
            return
        if me.at == "transaction":
            done = done._replace(call=("finish", me.fence))
        label = f"worker {number}: {call[0]}"
        changed = done.world.books != world.books
        row = world.books.row
        if changed and call[0] in FENCED and row is not None and row.lease != me.lease:
            done = done._replace(broken="a late owner's write was taken")
        yield self._answered(label, done, number, done.answer)
        if self.alphabet.doubts and me.at != "transaction":
            yield from self._lost(label, world, done, number, changed)
        if self.alphabet.late and world.late is None and changed:
            late = world._replace(late=call)
            yield step(f"{label}, on its way", self._repeats(late, number, False), luck=True)
            if me.at in _GIVES_UP:
                undone = Done(late, None, None, call)
                yield self._answered(f"{label}, on its way", undone, number, LOST, calls=())

    def _lost(
        self, label: str, world: World, done: Done, number: int, changed: bool
    ) -> Iterator[Step]:
        """The answer is lost: the statement is repeated, or the thread gives up."""
        me = world.threads[number]
        if changed:
            repeats = self._repeats(done.world, number, True)
            yield step(f"{label}, answer lost", repeats, done.broken, luck=True, calls=done.calls)
        if me.at in _GIVES_UP:
            yield self._answered(f"{label}, answer lost for good", done, number, LOST)
            if changed:
                undone = Done(world, None, None, done.call)
                yield self._answered(f"{label}, not executed", undone, number, LOST, calls=())

    def _repeats(self, world: World, number: int, done: bool) -> World:
        me = world.threads[number]
        if me.at != "claim":
            return world.put(number, me._replace(done=done))
        # Nobody can tell the two apart; what is needed is that the lease is spent if it was not.
        me = me._replace(spent=me.spent or not done)
        if not self.rules.repeats:
            me = me._replace(claim=world.free_claim(f"c{number}"), answers=())
        return world.put(number, me)

    def _answered(
        self, label: str, done: Done, number: int, answer: Any, calls: Any = None
    ) -> Step:
        me = done.world.threads[number]
        program, answers = self.program(me), (*me.answers, answer)
        found = self.replay(program, answers)
        luck, broken = answer == LOST, done.broken
        if isinstance(found, Outcome):
            world, wrong = self._after(done.world, number, found)
            broken = broken or wrong
            label = f"{label}, {found.name}"
        else:
            kept = self.replay.shortened(program, answers)
            world = done.world.put(number, me._replace(answers=kept))
        calls = done.calls if calls is None else calls
        return step(label, world, broken, luck=luck, calls=calls)

    # -- what follows ----------------------------------------------------------------------------

    def _after(self, world: World, number: int, found: Outcome) -> tuple[World, str | None]:
        me = world.threads[number]._replace(answers=())
        if me.at == "claim":
            return self._after_claim(world, number, me, found), None
        if me.at == "repair":
            return self._after_repair(world, number, me, found), None
        if me.at == "transaction":
            return self._after_finish(world, number, me, found), None
        if me.at == "ask":
            return self._after_ask(world, number, me, found)
        if me.at in ("report", "undo"):
            return self._rests(world, number), None
        if found.name == "committed":
            return self._rests(world, number), "a transaction was committed, and its body not told"
        if found.name == "refused":
            # After a retry or a hand-back that was done, the run may have another owner.
            excused = not me.trusts or (me.done and me.at != "end")
            return self._gives_up(world, number), None if excused else "a rightful owner is refused"
        return self._after_end(world, number, me), None

    def _after_repair(self, world: World, number: int, me: Thread, found: Outcome) -> World:
        if found.name == "repairs":
            owner = me._replace(at="send", fence=found.fence, seen=None, again=False, claim=None)
            return world.put(number, owner)
        if found.name == LOST:
            return self._gives_up(world, number, self.rules.abandons_repairs)
        return self._rests(world, number)

    @staticmethod
    def _after_finish(world: World, number: int, me: Thread, found: Outcome) -> World:
        if found.name == "done":
            return world._replace(open=(number, "held")).put(number, me._replace(at="commit"))
        return world.put(number, me._replace(at="ask", value=1))

    def _after_claim(self, world: World, number: int, me: Thread, found: Outcome) -> World:
        seen = found.seen
        if found.name == CLAIMED:
            return world.put(
                number, me._replace(at="start", fence=found.fence, again=False, claim=None)
            )
        if found.name == LOST:
            return self._after_no_answer(world, number, me)
        again = me.again and self.rules.puts_back
        if seen is not None and found.name == ClaimOutcome.FINISHED.value and seen.row.pending:
            if seen.left != 1:
                return world.put(number, me._replace(at="repair", seen=seen))
            if again:
                return self._rests(world, number, back=me.number)
        if seen is not None and again:
            waits = found.name == ClaimOutcome.RETRYING.value and me.number < seen.row.retries
            if waits or found.name == ClaimOutcome.RUNNING.value:
                return self._rests(world, number, back=seen.row.retries)
        return self._rests(world, number)

    def _after_no_answer(self, world: World, number: int, me: Thread) -> World:
        gives_up = self._gives_up(world, number, self.rules.abandons)
        if not (self.alphabet.undoes and self.rules.abandons):
            return gives_up
        undo = Thread("undo", me.lease, number=me.number, claim=me.claim)
        return gives_up.put(number, undo)

    def _after_ask(
        self, world: World, number: int, me: Thread, found: Outcome
    ) -> tuple[World, str | None]:
        refused, me = me.value == 1, me._replace(value=0)
        if found.name == "yes":
            return self._rests(world, number), None
        if refused:
            broken = "a rightful owner is refused" if me.trusts else None
            return self._gives_up(world, number), broken
        return world.put(number, me._replace(at="body")), None

    def _after_end(self, world: World, number: int, me: Thread) -> World:
        if me.at == "retry":
            return world.put(number, me._replace(at="publish", done=False))
        if me.at == "reject":
            return self._rests(world, number, back=me.number)
        if me.unsent:
            return world.put(number, me._replace(at="send", done=False))
        return self._rests(world, number)
