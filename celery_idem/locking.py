"""The option ``idem_lock`` of a task: which critical section its bodies are.

Owns the names of locks that are made from a message's arguments, and the errors that say, where the
task is declared, that they cannot be made. Must not know what a lock is.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from string import Formatter
from typing import Any

from celery_idem import checks
from celery_idem.critical import CriticalSection, critical_section
from celery_idem.errors import ImproperlyConfigured

_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)

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
        signature: of the task's body, without ``self``.

    Raises:
        ImproperlyConfigured: a template is none, or names an argument that the body does not have.
    """

    def __init__(self, owner: str, given: Any, signature: inspect.Signature) -> None:
        self._setting = f"idem_lock of {owner}"
        self._signature = signature
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
            self._check(template)

    def section(self, args: Iterable[Any], kwargs: dict[str, Any]) -> CriticalSection:
        """The critical section of a body with these arguments.

        Raises:
            TypeError: the body does not take them.
            ImproperlyConfigured: what they give cannot be the name of a lock.
        """
        bound = self._signature.bind(*args, **kwargs)
        if self._make is not None:
            names = self._make(*args, **kwargs)
        else:
            bound.apply_defaults()
            known = _named(bound)
            names = tuple(self._filled(template, known) for template in self._templates)
        return self._section.of(checks.lock_names(self._setting, names))

    def _filled(self, template: str, known: dict[str, Any]) -> str:
        try:
            return template.format_map(known)
        except (LookupError, AttributeError, ValueError, TypeError) as exc:
            raise ImproperlyConfigured(
                self._setting, template, f"the arguments do not fill it: {exc!r}"
            ) from exc

    def _check(self, template: str) -> None:
        try:
            fields = [field for _, field, _, _ in Formatter().parse(template) if field is not None]
        except ValueError as exc:
            raise ImproperlyConfigured(self._setting, template, f"no template: {exc}") from None
        parameters = self._signature.parameters.values()
        if any(it.kind is inspect.Parameter.VAR_KEYWORD for it in parameters):
            return
        known = [it.name for it in parameters if it.kind not in _VARIADIC]
        for field in fields:
            name = field.replace("[", ".").partition(".")[0]
            if name not in known:
                raise ImproperlyConfigured(
                    self._setting,
                    template,
                    f"the task has no argument {name!r}; it has {', '.join(known) or 'none'}",
                )


def _named(bound: inspect.BoundArguments) -> dict[str, Any]:
    """Arguments by name, with those that ``**kwargs`` has caught."""
    caught = [
        name
        for name, it in bound.signature.parameters.items()
        if it.kind is inspect.Parameter.VAR_KEYWORD
    ]
    named = dict(bound.arguments)
    for name in caught:
        named |= named.get(name, {})
    return named


def lock_of(task: type[Any]) -> TaskLock | None:
    """The lock of a task class; None if it has none.

    Raises:
        ImproperlyConfigured: see `TaskLock`.
    """
    given = inspect.getattr_static(task, "idem_lock", None)
    given = given.__func__ if isinstance(given, staticmethod) else given
    if given is None:
        return None
    run = inspect.getattr_static(task, "run")
    signature = inspect.signature(run.__func__ if isinstance(run, staticmethod) else run)
    if not isinstance(run, staticmethod):
        # A method, or a function with bind=True.
        _, *others = signature.parameters.values()
        signature = signature.replace(parameters=others)
    return TaskLock(f"task {task.name}", given, signature)


def section_of(
    lock: TaskLock | None, args: Iterable[Any], kwargs: dict[str, Any]
) -> AbstractContextManager[Any]:
    """What a body with these arguments is executed in."""
    return nullcontext() if lock is None else lock.section(args, kwargs)
