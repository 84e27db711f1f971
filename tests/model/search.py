"""The model of runs: all of its actors, and when it is at its end.

From each world the run can end, and its callbacks can be recorded as sent, without any luck. Must
not know what happens in a step.
"""

from __future__ import annotations

from collections.abc import Iterator

from celery_idem.ledger.memory import MemoryLedger
from celery_idem.run import RunState
from tests.model.beats import Beats
from tests.model.histories import Found, follow
from tests.model.parents import Parents
from tests.model.rules import Alphabet, Rules
from tests.model.steps import Step
from tests.model.workers import Workers
from tests.model.world import Beat, Thread, World


class Model(Workers, Beats, Parents):
    """All actors of one search."""

    stuck = "the run can never end"

    def first(self) -> World:
        alphabet = self.alphabet
        beats = (Beat(),) * (alphabet.beats + alphabet.stranger)
        queue = frozenset() if alphabet.slots else frozenset({(0, not alphabet.strays)})
        return World(threads=(Thread(),) * alphabet.workers, beats=beats, queue=queue)

    def steps(self, world: World) -> Iterator[Step]:
        for number in range(len(world.threads)):
            yield from self.of_worker(world, number)
            yield from self.of_parent(world, number)
        for number in range(len(world.beats)):
            yield from self.of_beat(world, number)
        yield from self.of_transaction(world)
        yield from self.of_world(world)

    def is_over(self, world: World) -> bool:
        """The run has ended, and nothing is owed to anybody."""
        row = world.books.row
        if row is None or row.state == RunState.EMITTED.value:
            return row is not None
        return row.final and (world.called or not row.pending)


def search(
    alphabet: Alphabet, ledger: type[MemoryLedger] = MemoryLedger, rules: Rules | None = None
) -> Found:
    """Follow every history of one alphabet."""
    return follow(Model(alphabet, ledger, rules))
