"""A function that several processes call, and that is executed once in each interval.

Owns which slots a call executes: the present one, and those that a process has left when it died in
them. Must not know how a run is claimed or ended.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from datetime import datetime
from typing import Any, ParamSpec, TypeVar

from celery_idem.clock import SYSTEM
from celery_idem.errors import ImproperlyConfigured
from celery_idem.keys import RunKey, check_text
from celery_idem.ledger import Ledger
from celery_idem.once.block import Block
from celery_idem.once.every import SlotAt
from celery_idem.once.party import Job, Party

P = ParamSpec("P")
R = TypeVar("R")

_WHERE = "function of idempotent"


class Repeated:
    """A job that is due once in each slot of a clock."""

    def __init__(self, ledger: Ledger, job: Job, slot_at: SlotAt) -> None:
        self._ledger = ledger
        self._job = job
        self._slot_at = slot_at

    def around(self, function: Callable[P, R]) -> Callable[P, R | None]:
        """The function, executed in those calls that get a slot."""

        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R | None:
            slot = self._slot_at(SYSTEM.now())
            # Asked first: what fails in the ledger fails before any body.
            left = self._left_before(slot)
            result = self._execute(self._key(slot), function, *args, **kwargs)
            for key in left:
                self._execute(key, function, *args, **kwargs)
            return result

        return call

    def _execute(
        self, key: RunKey, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs
    ) -> R | None:
        with Block(self._ledger, self._job, key) as run:
            return function(*args, **kwargs) if run else None

    def _key(self, slot: datetime) -> RunKey:
        return RunKey.for_slot(self._job.namespace, self._job.name, slot)

    def _left_before(self, slot: datetime) -> list[RunKey]:
        """Earlier slots that were begun, and that nobody executes now; the oldest first."""
        job = self._job
        ledger = Party.of(self._ledger, job.lease).leases.ledger
        found = ledger.unfinished_before(job.namespace, job.name, slot)
        keys = [row.key for row in found if (row.lease_seconds or 0.0) <= 0]
        # By their keys, which are compared byte by byte everywhere; names are not.
        return sorted((key for key in keys if key == self._key(key.slot)), key=lambda key: key.slot)


def name_of(function: Any, key: str | None) -> str:
    """The name of a job, after a look at the function that does it.

    Raises:
        ImproperlyConfigured: its body is not executed by a call, or nothing names it.
    """
    if not callable(function):
        raise ImproperlyConfigured(_WHERE, function, "it must be a function")
    plain = function
    while isinstance(plain, functools.partial | functools.partialmethod):
        plain = plain.func
    kinds = (
        inspect.iscoroutinefunction,
        inspect.isgeneratorfunction,
        inspect.isasyncgenfunction,
    )
    if any(kind(each) for each in (plain, inspect.unwrap(plain)) for kind in kinds):
        raise ImproperlyConfigured(
            _WHERE,
            function,
            "it must be a plain function: the call of a coroutine or generator "
            "function executes nothing of it",
        )
    if key is not None:
        return check_text(key)
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", "")
    if not module or not name or module == "__main__" or "<" in name:
        raise ImproperlyConfigured(
            "key of idempotent", None, f"{function!r} has no name that only it has: pass key="
        )
    return f"{module}.{name}"
