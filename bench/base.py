"""What all measurements have in common.

Owns the row that a measurement gives, and measuring two things in turn.
Must not know what is measured.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median


@dataclass(frozen=True)
class Servers:
    """Where the measurements are made.

    Attributes:
        database_url: SQLAlchemy URL of an empty PostgreSQL database.
        broker_url: URL of a Redis database, which others may use.
        prefix: for every key there: the transport option ``global_keyprefix``.
        directory: for files; removed at the end.
        quick: do little of everything: only to see that it works.
    """

    database_url: str
    broker_url: str
    prefix: str
    directory: Path
    quick: bool = False

    def few(self, number: int) -> int:
        """`number`, or a small part of it if it is to be quick."""
        return max(1, number // 20) if self.quick else number


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        what: what was measured.
        against: what it is compared with.
        value: of what was measured.
        reference: of what it is compared with.
        unit: of both values.
        compared: the number that matters, ready to be shown: a ratio, or a difference.
        aim: what that number should be; empty if there is no aim.
    """

    what: str
    against: str
    value: float
    reference: float
    unit: str
    compared: str
    aim: str = ""


def ratio(value: float, reference: float) -> str:
    """The quotient, for people."""
    return f"{value / reference:.2f} x"


def in_turn(
    candidates: Mapping[str, Callable[[], float]], rounds: int, warm_up: int = 1
) -> dict[str, float]:
    """The median of what each candidate returns, called in turn so that all have the same weather.

    Arguments:
        candidates: functions that measure once and return the value.
        rounds: how often each is called; every other round goes backwards.
        warm_up: rounds whose values are thrown away.
    """
    values: dict[str, list[float]] = {name: [] for name in candidates}
    for number in range(warm_up + rounds):
        order = list(candidates)
        for name in reversed(order) if number % 2 else order:
            value = candidates[name]()
            if number >= warm_up:
                values[name].append(value)
    return {name: median(found) for name, found in values.items()}


def seconds(call: Callable[[], object]) -> float:
    """How long one call takes."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started
