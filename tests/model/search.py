"""Every history of one search, or the shortest one that breaks a promise.

Owns the search, and the promise that no world is a dead end: from each of them the run can end and
its callbacks can be recorded as sent without any luck. Must not know what happens in a step.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterator
from dataclasses import dataclass

from celery_idem.ledger.memory import MemoryLedger
from celery_idem.run import RunState
from tests.model.beats import Beats
from tests.model.parents import Parents
from tests.model.rules import Alphabet, Rules
from tests.model.steps import Step
from tests.model.workers import Workers
from tests.model.world import Beat, Thread, World


class Model(Workers, Beats, Parents):
    """All actors of one search."""

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


@dataclass
class Found:
    """What a search has found: how many worlds, and a history that breaks a promise."""

    worlds: int
    history: list[str]
    steps: int = 0

    @property
    def broken(self) -> str | None:
        return self.history[-1] if self.history else None


Came = dict[World, tuple[World, str] | None]


def search(
    alphabet: Alphabet, ledger: type[MemoryLedger] = MemoryLedger, rules: Rules | None = None
) -> Found:
    """Follow every history."""
    model = Model(alphabet, ledger, rules)
    first = model.first()
    came: Came = {first: None}
    before: defaultdict[World, list[World]] = defaultdict(list)
    todo = deque([first])
    steps = 0
    while todo:
        world = todo.popleft()
        for step in model.steps(world):
            after = step.world
            steps += 1
            if step.broken:
                return Found(len(came), [*_history(came, world), step.label, step.broken])
            if after not in came:
                came[after] = (world, step.label)
                todo.append(after)
            if not step.luck:
                before[after].append(world)
    return Found(len(came), _stuck(model, came, before), steps)


def _history(came: Came, world: World) -> list[str]:
    labels = []
    while (found := came[world]) is not None:
        world, label = found
        labels.append(label)
    return labels[::-1]


def _stuck(model: Model, came: Came, before: defaultdict[World, list[World]]) -> list[str]:
    """The history of a world from which the run cannot end without luck."""
    able = {world for world in came if model.is_over(world)}
    todo = list(able)
    while todo:
        for world in before[todo.pop()]:
            if world not in able:
                able.add(world)
                todo.append(world)
    for world in came:
        if world not in able:
            return [*_history(came, world), "the run can never end"]
    return []
