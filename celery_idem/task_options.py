"""The options of one task, as its class has them.

Owns their names, and the two ways in which they may be written: like a setting, or without its
prefix. Must not know what they do.
"""

from __future__ import annotations

from typing import Any

from celery_idem.config import PREFIX, check_names, option, options_in
from celery_idem.task_keys import OPTION

#: Each is the setting ``idem_`` of the same name, for this task alone.
OPTIONS = (
    "max_attempts",
    "on_crash",
    "on_database_error",
    "on_duplicate",
    "store_result",
    "unstamped",
)

#: Those that are no settings.
OWN_OPTIONS = (
    "check_payload",
    "idem_grain",
    OPTION,
    "idem_lock",
    "idem_period",
    "idem_publish",
    "idem_scope",
)

#: Those that are written with the prefix of settings, or without it.
_UNPREFIXED = tuple(name for name in (*OPTIONS, *OWN_OPTIONS) if not name.startswith(PREFIX))
_PREFIXED = frozenset(f"{PREFIX}{name}" for name in _UNPREFIXED)


def read_options(owner: str, cls: Any, base: type) -> None:
    """Take the options of `cls`, a subclass of `base`, from where they are written, and check them.

    Raises:
        ImproperlyConfigured: one is not possible, or there is none of its name; it names `owner`.
    """
    # Those that are written like their settings count as the others do: the nearest one.
    nearest: dict[str, Any] = {}
    for one in reversed(cls.__mro__):
        if not issubclass(base, one):
            nearest.update(options_in(owner, vars(one), _UNPREFIXED))
    for name, value in nearest.items():
        if getattr(cls, name) is not value:
            setattr(cls, name, value)
    for name in OPTIONS:
        option(owner, name, getattr(cls, name), None)
    check_names(owner, _own_attributes(cls, base), (*OPTIONS, *OWN_OPTIONS))


def _own_attributes(cls: Any, base: type) -> dict[str, Any]:
    """What a task, and bases and mixins of its project, have beyond Celery and `base`.

    Without methods, which are no options whatever they are called.
    """
    # Names alone are asked for: to read `app` of a class would bind it to the current app.
    known = _PREFIXED.union(dir(base))
    return {
        name: value
        for one in cls.__mro__
        if not issubclass(base, one)
        for name, value in vars(one).items()
        if name not in known and not callable(value)
    }
