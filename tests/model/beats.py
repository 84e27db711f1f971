"""What beats do: record the slot, compete for runs that need a message, publish, report, bury.

Owns their steps, as `celery_idem.reconcile` and `celery_idem.emitter` do them; what happens to
nobody in particular (leases expire, time passes, messages are lost); and what must hold when a beat
wins a run. Must not know what the ledger does with a statement.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from celery_idem.run import RunState
from tests.model.books import DUE, WAITING, Row, Seen
from tests.model.steps import Done, Step, Steps, is_left, step
from tests.model.world import Beat, World

_CLOSES = (RunState.SKIPPED.value, RunState.EMITTED.value)
#: Where an owner asks that the run be anybody's again, and how.
_LETS_GO = {"retry": "try_retry", "reject": "try_give_back"}


class Beats(Steps):
    """The steps of beats, and of the world around."""

    def of_beat(self, world: World, number: int) -> Iterator[Step]:
        me = world.beats[number]
        if me.at == "idle":
            yield from self._begin(world, number)
        elif me.at == "insert":
            yield from self._insert(world, number)
        elif me.at == "recover":
            yield from self._acquire(world, number, "acquire_orphans")
        elif me.items:
            yield from self._settle(world, number)
        else:
            yield from self._report(world, number)
        if self.alphabet.crashes and me.at != "idle":
            gone = world.set_beat(number, Beat())
            yield step(f"beat {number} dies", gone, luck=True)

    def _begin(self, world: World, number: int) -> Iterator[Step]:
        """A round begins with its first statement: nothing is between."""
        row = world.books.row
        begun = world.set_beat(number, Beat("insert", world.free_claim(f"b{number}")))
        if self.alphabet.slots and not self._is_strange(world, number):
            yield from self._insert(begun, number)
        if row is None:
            return
        if row.emit is not None:
            yield from self._acquire(begun, number, "acquire_due")
        elif self.is_left(world):
            yield from self._acquire(begun, number, "acquire_orphans")

    def is_left(self, world: World) -> bool:
        return is_left(world.books)

    def _is_strange(self, world: World, number: int) -> bool:
        return self.alphabet.stranger and number == len(world.beats) - 1

    def _insert(self, world: World, number: int) -> Iterator[Step]:
        me = world.beats[number]
        done = self.execute(world, ("insert_slots", me.batch))
        assert done is not None
        label = f"beat {number}: insert_slots"
        if not done.answer:
            yield step(label, done.world.set_beat(number, Beat()), done.broken, calls=done.calls)
            return
        row = world.books.row
        others = row is not None and row.claim != me.batch
        broken = "two beats publish one slot" if others else done.broken
        wins = Beat("settle", me.batch, ((0, -1),))
        due = done.world.books.row
        wins_alone = due is not None and due.emit != DUE
        after = done.world._replace(won=wins_alone).set_beat(number, wins)
        yield step(f"{label}, wins", after, broken, calls=done.calls)
        if self.alphabet.doubts and done.world.books != world.books:
            yield step(f"{label}, answer lost", done.world, broken, luck=True, calls=done.calls)

    def _acquire(self, world: World, number: int, verb: str) -> Iterator[Step]:
        me = world.beats[number]
        done = self.execute(world, (verb, me.batch, int(self._is_strange(world, number))))
        assert done is not None
        rows: tuple[Seen, ...] = done.answer
        broken = done.broken or next(
            (wrong for seen in rows if (wrong := self._wrong(world, number, verb, seen))), None
        )
        items = me.items + tuple((seen.row.retries, seen.row.state) for seen in rows)
        then = "settle" if items else "idle"
        if verb == "acquire_due" and (items or is_left(world.books)):
            then = "recover"
        after = done.world._replace(won=True) if rows else done.world
        beat = Beat() if then == "idle" else me._replace(at=then, items=items)
        label = f"beat {number}: {verb}" + (", wins" if rows else "")
        yield step(label, after.set_beat(number, beat), broken, calls=done.calls)
        if self.alphabet.doubts and rows:
            yield step(f"{label}, answer lost", after, broken, luck=True, calls=done.calls)

    def _wrong(self, world: World, number: int, verb: str, seen: Seen) -> str | None:
        before = world.books.row
        assert before is not None
        if self._is_strange(world, number):
            return "a beat looks after a run of another namespace"
        if world.won:
            return "two beats publish what was due once"
        if verb == "acquire_due":
            if before.state not in WAITING:
                return "a run is published as due that does not wait for a message"
            return None if before.emit == DUE else "a run is published before it is due"
        if not is_left(world.books):
            return "a run is taken for an orphan whose owner may live, or needs nothing"
        if not (self.alphabet.slots or before.message):
            return "a run is acquired whose message is with the broker alone"
        return None

    def _settle(self, world: World, number: int) -> Iterator[Step]:
        me = world.beats[number]
        (retry, state), *rest = me.items
        less = me._replace(items=tuple(rest))
        queue = world.queue | {(retry, False)}
        sent = world._replace(queue=queue).set_beat(number, less._replace(sent=True))
        yield step(f"beat {number} publishes retry {retry}", sent)
        if self.alphabet.closes and state in WAITING:
            for close in _CLOSES:
                if state != RunState.SCHEDULED.value and close == RunState.EMITTED.value:
                    continue
                closes = world.set_beat(number, less._replace(closes=close))
                what = RunState(close).label
                yield step(f"beat {number} finds it {what}", closes, luck=True)

    def _report(self, world: World, number: int) -> Iterator[Step]:
        me = world.beats[number]
        if me.closes is not None:
            done = self.execute(world, ("close_unclaimed", me.batch, me.closes))
            rest = me._replace(closes=None)
            broken = "a run is closed that has begun"
        elif me.sent:
            done = self.execute(world, ("published", me.batch))
            rest = Beat()
            broken = "a publish is counted that was counted, or another's"
        else:
            yield step(f"beat {number} has done its round", world.set_beat(number, Beat()))
            return
        if done is None:
            return
        wrong = self._misreport(world, done, me)
        broken_ = done.broken or (broken if wrong else None)
        label = f"beat {number}: {done.call[0]}"
        yield step(label, done.world.set_beat(number, rest), broken_, calls=done.calls)
        if self.alphabet.doubts and (done.world != world or done.counted):
            again = done.world.set_beat(number, me._replace(reported=True))
            yield step(f"{label}, answer lost", again, broken_, luck=True, calls=done.calls)

    @staticmethod
    def _misreport(world: World, done: Done, me: Beat) -> bool:
        before: Row | None = world.books.row
        if before is None or (done.world.books == world.books and not done.counted):
            return False
        if done.call[0] == "close_unclaimed":
            allowed = WAITING if me.closes == RunState.SKIPPED.value else WAITING[:1]
            return before.state not in allowed or before.claim != me.batch
        return before.claim != me.batch or me.reported

    # -- the world around ------------------------------------------------------------------------

    def of_world(self, world: World) -> Iterator[Step]:
        books = world.books
        holders = {thread.lease: thread for thread in world.threads if thread.lease}
        for lease, alive in sorted(books.leases):
            holder = holders.get(lease)
            if holder is not None and (books.row is None or books.row.lease != lease):
                continue
            if holder is not None and holder.at == "dead" and not self.alphabet.slots:
                continue  # Its parent tells the ledger in time.
            trusted = holder is not None and holder.trusts and holder.at != "dead"
            if alive and not (trusted and self.rules.trusts_no_longer):
                ends = books.leases - {(lease, True)} | {(lease, False)}
                after = world._replace(books=books._replace(leases=ends))
                calls: Any = ((("expire", lease), None),)
                # Nothing may depend on the end of a lease that somebody renews.
                luck = holder is not None and holder.at not in ("dead", "undo")
                yield step(f"lease {lease} expires", after, luck=luck, calls=calls)
        if any(not alive for _, alive in books.leases) or (holders and self._buries_all):
            done = self.execute(world, ("bury_expired",))
            assert done is not None
            if done.world != world:
                yield step("expired leases are buried", done.world, done.broken, calls=done.calls)
        yield from self._of_time(world)

    #: A mutation may bury leases that hold.
    _buries_all = True

    def _of_time(self, world: World) -> Iterator[Step]:
        row = world.books.row
        # Not while a transaction holds the row: a walk moves time by writing to it.
        if row is not None and row.emit not in (None, DUE) and world.open is None:
            later = world.books._replace(row=row._replace(emit=DUE))
            # A report that is repeated so much later tells of another publish, for all one knows.
            beats = tuple(beat._replace(reported=False) for beat in world.beats)
            after = world._replace(books=later, won=False, beats=beats)
            yield step("time passes", after, calls=((("pass",), None),))
        if self.alphabet.slots:
            for message in sorted(world.queue):
                lost = world._replace(queue=world.queue - {message})
                yield step(f"the message of retry {message[0]} is lost", lost, luck=True)
        if world.late is not None and (done := self.execute(world, world.late)):
            after = self._taken_late(world, done)._replace(late=None)
            label = f"a {world.late[0]} arrives late"
            yield step(label, after, done.broken, calls=done.calls)
            yield step(f"a {world.late[0]} never arrives", world._replace(late=None))

    @staticmethod
    def _taken_late(world: World, done: Done) -> World:
        """Its sender, who still repeats it, has done by now what it asks for."""
        after = done.world
        if after.books == world.books:
            return after
        for number, thread in enumerate(after.threads):
            if done.call == (_LETS_GO.get(thread.at), thread.fence, *done.call[2:]):
                after = after.put(number, thread._replace(done=True))
        return after
