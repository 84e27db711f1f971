"""Every history of a model, or the shortest one that breaks a promise.

Owns the search, and the promise that no world is a dead end: from each of them the model can come
to its end without any luck. Must not know what happens in a step.
"""

from __future__ import annotations

import gc
from collections.abc import Hashable, Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple, Protocol, TypeVar

W = TypeVar("W", bound=Hashable)
W_co = TypeVar("W_co", covariant=True)


class Step(Protocol[W_co]):
    """Something that happens in a world, and makes another one of it."""

    @property
    def label(self) -> str: ...
    @property
    def world(self) -> W_co: ...
    @property
    def broken(self) -> str | None:
        """The promise that it breaks."""

    @property
    def luck(self) -> bool:
        """Nothing may depend on it."""


class Model(Protocol[W]):
    def first(self) -> W: ...
    def steps(self, world: W) -> Iterable[Step[W]]: ...
    def is_over(self, world: W) -> bool:
        """Nothing is owed to anybody."""

    @property
    def stuck(self) -> str:
        """What is said of a world from which there is no way to such a one."""


class Found(NamedTuple):
    """What a search has found: how many worlds, and a history that breaks a promise."""

    worlds: int
    history: list[str]
    steps: int = 0

    @property
    def broken(self) -> str | None:
        return self.history[-1] if self.history else None


class _Way(NamedTuple):
    """How a world was come to first: from which one, and by what."""

    world: int
    label: str


def follow(model: Model[W]) -> Found:
    """Follow every history."""
    with _nothing_is_garbage():
        return _follow(model)


def _follow(model: Model[W]) -> Found:
    first = model.first()
    # Worlds are compared once, and have numbers from then on: to hash one costs as much as a step.
    numbers = {first: 0}
    worlds = [first]
    ways: list[_Way | None] = [None]
    before: list[list[int]] = [[]]
    steps = 0
    for number, world in enumerate(worlds):  # It grows meanwhile.
        for step in model.steps(world):
            steps += 1
            if step.broken:
                return Found(len(worlds), [*_history(ways, number), step.label, step.broken])
            after = numbers.setdefault(step.world, len(worlds))
            if after == len(worlds):
                worlds.append(step.world)
                ways.append(_Way(number, step.label))
                before.append([])
            if not step.luck:
                before[after].append(number)
    return Found(len(worlds), _stuck(model, worlds, ways, before), steps)


def _history(ways: list[_Way | None], number: int) -> list[str]:
    labels = []
    while (way := ways[number]) is not None:
        number = way.world
        labels.append(way.label)
    return labels[::-1]


def _stuck(
    model: Model[W], worlds: list[W], ways: list[_Way | None], before: list[list[int]]
) -> list[str]:
    """The history of a world from which there is no way to the end without luck."""
    able = [model.is_over(world) for world in worlds]
    todo = [number for number, is_over in enumerate(able) if is_over]
    while todo:
        for number in before[todo.pop()]:
            if not able[number]:
                able[number] = True
                todo.append(number)
    if all(able):
        return []
    return [*_history(ways, able.index(False)), model.stuck]


@contextmanager
def _nothing_is_garbage() -> Iterator[None]:
    """A search keeps all that it makes: to look for what it does not takes a sixth of its time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
