"""The option ``idem_lock`` of a task: which critical section its bodies are.

Owns the names of locks that are made from a message's arguments, and the errors that say, where the
task is declared, that they cannot be made. Must not know what a lock is.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from celery_idem import checks
from celery_idem.arguments import Arguments, filled
from celery_idem.critical import CriticalSection, critical_section
from celery_idem.errors import ImproperlyConfigured

_KINDS = (
    "it must be a template like 'stock:{sku}', several, a callable over the task's arguments, or "
    "critical_section(...) of these"
)


class TaskLock:
    """What a task's ``idem_lock`` stands for.

    Arguments:
        owner: who has the option, for errors.
        given: a template, several, a callable that returns one name or several, or a critical
            section whose names are templates.
        arguments: of the task's body.

    Raises:
        ImproperlyConfigured: a template is none, or names an argument that the body does not have.
    """

    def __init__(self, owner: str, given: Any, arguments: Arguments) -> None:
        self._setting = f"idem_lock of {owner}"
        self._arguments = arguments
        self._section = given if isinstance(given, CriticalSection) else critical_section("-")
        self._make: Callable[..., Any] | None = None
        self._templates: tuple[str, ...] = ()
        if isinstance(given, CriticalSection):
            self._templates = given.names
        elif callable(given):
            self._make = given
        elif isinstance(given, str | list | tuple | set | frozenset):
            self._templates = checks.lock_names(self._setting, given)
        else:
            raise ImproperlyConfigured(self._setting, given, _KINDS)
        for template in self._templates:
            arguments.check_template(self._setting, template)

    def section(self, args: Iterable[Any], kwargs: dict[str, Any]) -> CriticalSection:
        """The critical section of a body with these arguments.

        Raises:
            TypeError: the body does not take them.
            ImproperlyConfigured: what they give cannot be the name of a lock.
        """
        named = self._arguments.named(args, kwargs)
        if self._make is not None:
            names = self._make(*args, **kwargs)
        else:
            names = tuple(filled(self._setting, each, named) for each in self._templates)
        return self._section.of(checks.lock_names(self._setting, names))


def lock_of(task: type[Any]) -> TaskLock | None:
    """The lock of a task class; None if it has none.

    Raises:
        ImproperlyConfigured: see `TaskLock`.
    """
    given = inspect.getattr_static(task, "idem_lock", None)
    given = given.__func__ if isinstance(given, staticmethod) else given
    if given is None:
        return None
    return TaskLock(f"task {task.name}", given, Arguments.of(task))


def section_of(
    lock: TaskLock | None, args: Iterable[Any], kwargs: dict[str, Any]
) -> AbstractContextManager[Any]:
    """What a body with these arguments is executed in."""
    return nullcontext() if lock is None else lock.section(args, kwargs)
