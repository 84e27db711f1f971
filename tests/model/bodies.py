"""What bodies do: begin, end, retry, commit a transaction, send callbacks.

Owns the steps of a thread that owns a run, and what must hold when a body begins. Must not know how
it became the owner, nor what the ledger does with its statements.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator

from celery_idem.run import RunState
from tests.model.books import MAX_ATTEMPTS, Call, Fence
from tests.model.steps import Done, Step, Steps, step
from tests.model.world import Thread, World

SUCCEEDED = RunState.SUCCEEDED.value


class Bodies(Steps):
    """The steps of bodies; `Workers` adds those before and after."""

    @abstractmethod
    def statement(self, world: World, number: int) -> Iterator[Step]:
        """The next statement of a composite."""

    # -- bodies ----------------------------------------------------------------------------------

    def _start(self, world: World, number: int) -> Iterator[Step]:
        me = world.threads[number]
        if not me.trusts and self.rules.checks_trust:
            yield step(f"worker {number} gives up", self._gives_up(world, number))
            return
        retry, count = world.starts
        count = 0 if not self.alphabet.counts else count + 1 if retry == me.number else 1
        broken = None
        if any(self._is_body(thread) for n, thread in enumerate(world.threads) if n != number):
            broken = "a body starts beside one that is trusted"
        elif me.number > world.awaited:
            broken = "a retry is executed that the ledger does not await"
        elif me.number < world.awaited:
            broken = "a body is executed again that has ended in a retry"
        elif count > MAX_ATTEMPTS:
            broken = "a body is executed more often than it may be"
        after = world._replace(starts=(me.number, count)).put(number, me._replace(at="body"))
        yield step(f"worker {number} starts the body of retry {me.number}", after, broken)

    def _is_body(self, thread: Thread) -> bool:
        return thread.trusts and thread.at in ("body", "transaction", "commit", "ask")

    def _body(self, world: World, number: int) -> Iterator[Step]:
        """However it ends, the first statement of its end follows at once: nothing is between."""
        me = world.threads[number]
        for end in self.alphabet.ends:
            label = f"the body of worker {number} ends: {getattr(end, 'label', end)}"
            if end == "retry":
                if me.number >= self.alphabet.retries:
                    continue
                ends = me._replace(at="retry", value=me.number + 1)
                if not self.rules.awaits_first:
                    early = self._sent(world, me.number + 1).put(number, ends)
                    yield step(f"worker {number} publishes the retry", early)
                    continue
            elif isinstance(end, RunState):
                unsent = self.alphabet.unsent and end is RunState.SUCCEEDED
                ends = me._replace(at="end", value=end.value, unsent=unsent)
            else:
                ends = me._replace(at=end)
            for next_ in self.statement(world.put(number, ends), number):
                yield next_._replace(label=f"{label}; {next_.label}")

    @staticmethod
    def _sent(world: World, retry: int) -> World:
        queue = world.queue | {(retry, False)}
        return world._replace(queue=queue, published=max(world.published, retry))

    def _publish(self, world: World, number: int) -> Iterator[Step]:
        retry = world.threads[number].value
        if self.rules.awaits_first:
            world = self._sent(world, retry)
        yield step(f"worker {number} publishes retry {retry}", self._rests(world, number))

    def _send(self, world: World, number: int) -> Iterator[Step]:
        me, row = world.threads[number], world.books.row
        broken = None
        if row is None or not row.final:
            broken = "callbacks are sent of a run that has not ended"
        elif me.trusts and not row.pending:
            broken = "callbacks are sent again that are recorded as sent"
        elif me.trusts and any(
            it.trusts and it.at == "send" for it in world.threads if it is not me
        ):
            broken = "callbacks are sent beside a trusted one who sends them"
        after = world._replace(called=True).put(number, me._replace(at="report"))
        yield step(f"worker {number} sends the callbacks", after, broken)

    # -- transactions ----------------------------------------------------------------------------

    def _commit(self, world: World, number: int) -> Iterator[Step]:
        me = world.threads[number]
        done = self._committed(world, me.fence)
        yield step(
            f"worker {number} commits",
            self._rests(done.world, number),
            done.broken,
            calls=done.calls,
        )
        asks = world.put(number, me._replace(at="ask", value=0))
        sent = asks._replace(open=(number, "sent"))
        yield step(f"worker {number} commits, answer lost", sent, luck=True)

    def _committed(self, world: World, fence: Fence) -> Done:
        done = self.execute(world._replace(open=None), ("try_end", fence, SUCCEEDED, False))
        assert done is not None and done.answer
        call: Call = ("commit",)
        return done._replace(call=call, answer=None)

    def of_transaction(self, world: World) -> Iterator[Step]:
        """What becomes of a transaction whose owner is gone, or has not got an answer."""
        if world.open is None:
            return
        number, how = world.open
        if how == "held" and world.threads[number].at == "commit":
            return
        closed = world._replace(open=None)
        yield step("the server rolls a transaction back", closed, calls=((("rollback",), None),))
        if how == "sent":
            assert world.books.row is not None
            done = self._committed(world, world.books.row.fence)
            yield step("a COMMIT arrives", done.world, done.broken, calls=done.calls)

    # -- the end of a delivery -------------------------------------------------------------------

    def _rests(self, world: World, number: int, back: int | None = None) -> World:
        """The message is acknowledged, or comes again; the lease is kept for the next one."""
        if back is not None:
            world = world._replace(queue=world.queue | {(back, True)})
        me = world.threads[number]
        if (me.spent and self.rules.spends) or me.at == "undo":
            return world.put(number, Thread())
        return world.put(number, Thread(lease=me.lease, trusts=me.trusts))

    def _gives_up(self, world: World, number: int, abandons: bool = True) -> World:
        """Something is in doubt: the lease is not renewed any more, and the message comes again."""
        world = self._rests(world, number, back=world.threads[number].number)
        return world.put(number, Thread()) if abandons else world
