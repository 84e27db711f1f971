"""Methods of a task's own class that Celery's tracer would call before the claim.

Owns how they come to be called under it, for the one message whose body is executed, and not for
its copies. Must not know how a claim is made.
"""

from __future__ import annotations

from collections.abc import Callable
from inspect import getattr_static
from typing import Any

from celery_idem.notes import note, noted

#: Where our function around a method has that.
_WRAPPED = "idem_wraps"
#: Where a request notes how far it has come: `ENTERED` by `IdempotentTask.__call__`, and perhaps
#: `GOES_ON` within a `__call__` of the task's own class, which may go on to that once more.
_NOTE = "progress"
ENTERED, GOES_ON = object(), object()


def progress(request: Any) -> Any:
    """How far a request has come; None: the tracer has just pushed it."""
    return noted(request, _NOTE)


def come_to(request: Any, how_far: object) -> None:
    """The request has come as far as this."""
    note(request, _NOTE, how_far)


def take_over(cls: Any, base: type) -> None:
    """Put ours around the methods that a subclass of `base` has in the place of those of `base`."""
    for name, around in (("__call__", _claiming), ("before_start", _claimed)):
        method = getattr_static(cls, name)
        # In its own class: others inherit from the same ones, in other apps.
        if method is not getattr_static(base, name) and not hasattr(method, _WRAPPED):
            setattr(cls, name, around(method))


def _bound(method: Any, task: Any) -> Any:
    """As `task` has it: it may be a function, a static method, or whatever else can be called."""
    return method.__get__(task, type(task)) if hasattr(type(method), "__get__") else method


def _claiming(call: Any) -> Callable[..., Any]:
    """The claim stands before a `__call__` that need not go on to that of `IdempotentTask`."""

    def claim_first(self: Any, *args: Any, **kwargs: Any) -> Any:
        request = self.request
        if request.called_directly or progress(request) is not None:
            return _bound(call, self)(*args, **kwargs)
        return self._idem_enter(args, kwargs)

    setattr(claim_first, _WRAPPED, call)
    return claim_first


def _claimed(before_start: Any) -> Callable[..., Any]:
    def once_claimed(self: Any, *args: Any, **kwargs: Any) -> None:
        if progress(self.request) is not None:
            _bound(before_start, self)(*args, **kwargs)

    setattr(once_claimed, _WRAPPED, before_start)
    return once_claimed


def execute(task: Any, args: Any, kwargs: Any) -> Any:
    """Call what the tracer would have called, and return what the body does."""
    request = task.request
    if hasattr(task.before_start, _WRAPPED):
        task.before_start(request.id, args, kwargs)
    call = getattr(type(task).__call__, _WRAPPED, None)
    if call is None:
        return task.run(*args, **kwargs)
    come_to(request, GOES_ON)
    return _bound(call, task)(*args, **kwargs)
