"""What parents and exiting workers do: kill at a time limit, tell the ledger, release leases.

Owns their steps, as `celery_idem.request` and `celery_idem.lease` do them. Must not know what the
ledger does with a statement.
"""

from __future__ import annotations

from collections.abc import Iterator

from tests.model.bodies import Bodies
from tests.model.steps import Step, step
from tests.model.world import Thread, World

#: Where a time limit finds a thread that has begun.
_BEGUN = ("start", "body", "end", "retry", "publish", "reject")


class Parents(Bodies):
    """The steps of parents."""

    def of_parent(self, world: World, number: int) -> Iterator[Step]:
        me = world.threads[number]
        if me.at in ("body", "end") and not self.rules.keeps_bodies:
            yield from self._releases(world, number, me)
        if not self.alphabet.limits:
            return
        if me.at == "dead":
            yield from self._reaps(world, number)
        elif me.at in _BEGUN and me.trusts:
            # Its message is acknowledged by the parent.
            dead = Thread("dead", me.lease)
            after = self._sent(world, me.value) if me.at == "publish" else world
            yield step(f"worker {number} is killed", after.put(number, dead), luck=True)
            if not self.rules.reaps_first:
                yield from self._tells(world, number, me)
        elif me.at == "idle" and me.lease is not None:
            yield from self._releases(world, number, Thread())

    def _reaps(self, world: World, number: int) -> Iterator[Step]:
        yield from self._tells(world, number, Thread())
        # An ad-hoc message is acknowledged by then, and nobody else would tell.
        if self.alphabet.slots:
            yield from self._releases(world, number, Thread())
            gone = world.put(number, Thread())
            yield step(f"the parent of worker {number} dies too", gone, luck=True)

    def _tells(self, world: World, number: int, then: Thread) -> Iterator[Step]:
        lease = world.threads[number].lease
        done = self.execute(world, ("fail_of_child", lease))
        if done is None:
            return
        row = world.books.row
        changed = done.world.books != world.books
        wrong = changed and row is not None and row.lease != lease
        broken = "a parent ends the run of somebody else's child" if wrong else done.broken
        label = f"the parent of worker {number} tells of its death"
        yield step(label, done.world.put(number, then), broken, calls=done.calls)
        if self.alphabet.doubts and changed:
            yield step(f"{label}, answer lost", done.world, broken, luck=True, calls=done.calls)

    def _releases(self, world: World, number: int, then: Thread) -> Iterator[Step]:
        done = self.execute(world, ("release", world.threads[number].lease))
        assert done is not None
        label = f"the lease of worker {number} is released"
        yield step(label, done.world.put(number, then), done.broken, calls=done.calls)
