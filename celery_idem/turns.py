"""Many things of which each has its turn, some at a time.

Owns how many that are, so that none waits for longer than it may. Must not know what is done with
them.
"""

from __future__ import annotations

from collections.abc import Collection
from math import ceil
from typing import Generic, TypeVar

T = TypeVar("T")


class Turns(Generic[T]):
    """Who is next.

    Arguments:
        fewest: so many are taken at once, where there are as many.
        seconds: within which each of them has its turn.
    """

    def __init__(self, fewest: int, seconds: float) -> None:
        self._fewest = fewest
        self._seconds = seconds
        self._left: list[T] = []

    def take(self, everyone: Collection[T], passed: float) -> list[T]:
        """Those whose turn it is, `passed` seconds after the ones before.

        They may be gone from `everyone` meanwhile; those that have come wait for the next round.
        """
        number = max(self._fewest, ceil(len(everyone) * min(1.0, passed / self._seconds)))
        self._left = self._left or list(everyone)
        taken = self._left[-number:]
        del self._left[-number:]
        return taken
