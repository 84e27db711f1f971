"""Every history of a named lock, or the shortest one that breaks a promise.

Owns the search, and the promise that a lock which nobody holds becomes free. Must not know what
happens in a step.
"""

from __future__ import annotations

from collections import defaultdict, deque
from typing import NamedTuple

from celery_idem.ledger.memory import MemoryLedger
from tests.model.lock_model import LockAlphabet, LockModel, LockRules
from tests.model.lock_scene import Scene

Came = dict[Scene, tuple[Scene, str] | None]


class FoundLocks(NamedTuple):
    """How many scenes there are, and a history that breaks a promise."""

    scenes: int
    history: list[str]

    @property
    def broken(self) -> str | None:
        return self.history[-1] if self.history else None


def search_locks(
    alphabet: LockAlphabet,
    ledger: type[MemoryLedger] = MemoryLedger,
    rules: LockRules | None = None,
) -> FoundLocks:
    """Follow every history."""
    model = LockModel(alphabet, ledger, rules)
    came: Came = {model.first(): None}
    before: defaultdict[Scene, list[Scene]] = defaultdict(list)
    todo = deque(came)
    while todo:
        scene = todo.popleft()
        for move in model.moves(scene):
            if move.broken:
                return FoundLocks(len(came), [*_labels(came, scene), move.label, move.broken])
            if move.scene not in came:
                came[move.scene] = (scene, move.label)
                todo.append(move.scene)
            if not move.luck:
                before[move.scene].append(scene)
    return FoundLocks(len(came), _stuck(model, came, before))


def _stuck(model: LockModel, came: Came, before: defaultdict[Scene, list[Scene]]) -> list[str]:
    """The history of a scene from which the lock does not become free without luck."""
    able = {scene for scene in came if model.is_free(scene)}
    todo = list(able)
    while todo:
        for scene in before[todo.pop()]:
            if scene not in able:
                able.add(scene)
                todo.append(scene)
    for scene in came:
        if scene not in able:
            return [*_labels(came, scene), "the lock is never free again"]
    return []


def _labels(came: Came, scene: Scene) -> list[str]:
    labels = []
    while (found := came[scene]) is not None:
        scene, label = found
        labels.append(label)
    return labels[::-1]
