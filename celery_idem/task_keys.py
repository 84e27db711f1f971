"""The options ``idem_key`` and ``idem_grain`` of a task: the key that arguments make.

Owns which forms the options have, and what they make of a message's arguments and of its time. Must
not know which messages are asked for it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from datetime import datetime
from typing import Any, Literal, get_args

from celery import Celery

from celery_idem.arguments import Arguments, filled
from celery_idem.canonical import canonical
from celery_idem.errors import ImproperlyConfigured
from celery_idem.keys import EPOCH, MAX_TEXT_BYTES, shorten
from celery_idem.slots import Grain, grain_start

#: For annotations of tasks.
GrainOption = Literal["minute", "hour", "day", "week", "month"] | None
#: The option of a publish, and the header in which senders without the task may give it.
OPTION = "idem_key"

#: Given for a key: all arguments make it.
ALL: Any = object()

_KINDS = (
    "it must be a template like 'bill:{customer}', a list of argument names, or a callable over "
    "the task's arguments"
)


class TaskKey:
    """What a task's options make of a message.

    Arguments:
        owner: who has the options, for errors.
        given: a template, a list of argument names, a callable that returns a text, `ALL`, or None.
        grain: the calendar period within which a key names one run; None: for ever.
        arguments: of the task's body; None if nothing is made of them.

    Raises:
        ImproperlyConfigured: an option is not possible, or names an argument that the body lacks.
    """

    def __init__(self, owner: str, given: Any, grain: Any, arguments: Arguments | None) -> None:
        self._setting = f"{OPTION} of {owner}"
        self._arguments = arguments
        self._grain = _checked_grain(f"idem_grain of {owner}", grain)
        self._template: str | None = None
        self._names: tuple[str, ...] = ()
        self._make: Callable[..., Any] | None = None
        if callable(given):
            self._make = given
        elif arguments is not None and given is not ALL:
            self._read(given, arguments)
        self._gives = given is not None or self._grain is not None
        self._takes_all = given is ALL

    def _read(self, given: Any, arguments: Arguments) -> None:
        if isinstance(given, str) and given:
            arguments.check_template(self._setting, given)
            self._template = given
            return
        is_list = isinstance(given, list | tuple) and given
        if not is_list or not all(isinstance(name, str) for name in given):
            raise ImproperlyConfigured(self._setting, given, _KINDS)
        for name in given:
            arguments.check_name(self._setting, given, name)
        self._names = tuple(given)

    def text(self, args: Any, kwargs: Any) -> str | None:
        """The key that these arguments make; None if the options do not say.

        Raises:
            ImproperlyConfigured: they do not fill the template, or the callable has returned
                something else than a text.
            NotCanonical: an argument has no canonical form.
            TypeError: the body does not take them.
        """
        if not self._gives:
            return None
        args, kwargs = args or (), kwargs or {}
        if self._make is not None:
            made = self._make(*args, **kwargs)
            if made is not None and not isinstance(made, str):
                reason = f"it has returned a {type(made).__name__}, and must return a str or None"
                raise ImproperlyConfigured(self._setting, made, reason)
            return made
        named = self._arguments.named(args, kwargs) if self._arguments else {}
        if self._template is not None:
            return filled(self._setting, self._template, named)
        if not self._takes_all:
            named = {name: named.get(name) for name in self._names}
        text = canonical(named, "arguments")
        # Arguments may be longer than names may: their digest tells them apart as well.
        return shorten(text) if len(text.encode()) > MAX_TEXT_BYTES else text

    @property
    def has_grain(self) -> bool:
        """True if a key holds for a calendar period."""
        return self._grain is not None

    def slot(self, app: Celery, now: datetime) -> datetime:
        """What the key belongs to: the start of its period, or `EPOCH`."""
        if self._grain is None:
            return EPOCH
        return grain_start(now, self._grain, app.timezone)


def _checked_grain(setting: str, grain: Any) -> Grain | None:
    allowed = get_args(Grain)
    if grain is None or grain in allowed:
        return grain  # type: ignore[no-any-return]
    raise ImproperlyConfigured(
        setting, grain, f"allowed are {', '.join(map(repr, allowed))}, or None"
    )


def key_of(task: type[Any]) -> TaskKey:
    """What a task class says of its messages' keys.

    Raises:
        ImproperlyConfigured: see `TaskKey`.
    """
    given = inspect.getattr_static(task, OPTION, None)
    given = given.__func__ if isinstance(given, staticmethod) else given
    if given is None and task.idem_grain is None and task._idem_terms.is_once:
        given = ALL
    arguments = None if given is None or callable(given) else Arguments.of(task)
    return TaskKey(f"task {task.name}", given, task.idem_grain, arguments)
