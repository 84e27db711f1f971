"""The arguments of a task's body, by the names of its signature.

Owns how positional arguments, keywords and defaults become one set of names, and templates over
them, with the errors that say where a task is declared that a name is none. Must not know what is
made of them.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from string import Formatter
from typing import Any

from celery_idem.errors import ImproperlyConfigured

_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


class Arguments:
    """What a body takes.

    Arguments:
        signature: of the task's body, without ``self``.
    """

    def __init__(self, signature: inspect.Signature) -> None:
        self._signature = signature
        parameters = signature.parameters.values()
        self._names = [it.name for it in parameters if it.kind not in _VARIADIC]
        kinds = {it.kind: it.name for it in parameters if it.kind in _VARIADIC}
        self._others = kinds.get(inspect.Parameter.VAR_KEYWORD)

    @classmethod
    def of(cls, task: type[Any]) -> Arguments:
        """Those of a task class."""
        run = inspect.getattr_static(task, "run")
        signature = inspect.signature(run.__func__ if isinstance(run, staticmethod) else run)
        if not isinstance(run, staticmethod):
            # A method, or a function with bind=True.
            _, *others = signature.parameters.values()
            signature = signature.replace(parameters=others)
        return cls(signature)

    def named(self, args: Iterable[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of a call by name: defaults, and what ``**kwargs`` catches, among them.

        Raises:
            TypeError: the body does not take them.
        """
        bound = self._signature.bind(*args, **kwargs)
        bound.apply_defaults()
        named = dict(bound.arguments)
        return named | named[self._others] if self._others else named

    def check_name(self, setting: str, value: object, name: str) -> None:
        """Raise `ImproperlyConfigured` unless the body may have an argument of this name."""
        if self._others is None and name not in self._names:
            has = ", ".join(self._names) or "none"
            raise ImproperlyConfigured(
                setting, value, f"the task has no argument {name!r}; it has {has}"
            )

    def check_template(self, setting: str, template: str) -> None:
        """Raise `ImproperlyConfigured` unless it is a template over arguments of the body."""
        try:
            fields = [field for _, field, _, _ in Formatter().parse(template) if field is not None]
        except ValueError as exc:
            raise ImproperlyConfigured(setting, template, f"no template: {exc}") from None
        for field in fields:
            self.check_name(setting, template, field.replace("[", ".").partition(".")[0])


def filled(setting: str, template: str, named: Mapping[str, Any]) -> str:
    """The template with these arguments in it.

    Raises:
        ImproperlyConfigured: they do not fill it.
    """
    try:
        return template.format_map(named)
    except (LookupError, AttributeError, ValueError, TypeError) as exc:
        reason = f"the arguments do not fill it: {exc!r}"
        raise ImproperlyConfigured(setting, template, reason) from exc
