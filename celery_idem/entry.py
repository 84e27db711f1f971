"""An entry of the schedule, as users write it.

Owns the options that an entry has beyond those of Celery. Must not know when an entry is due.
"""

from __future__ import annotations

from datetime import timedelta
from functools import lru_cache
from inspect import signature
from operator import attrgetter
from typing import Any, NamedTuple

from celery.beat import ScheduleEntry

from celery_idem.config import PREFIX, Settings, check_names, no_option, option, options_in
from celery_idem.errors import ImproperlyConfigured
from celery_idem.policy import CatchUp, Overlap


class Options(NamedTuple):
    """Options of one entry; each is the setting ``idem_`` of the same name, for this entry alone.

    What users have written (None: the setting holds), or what holds for the entry.
    """

    catchup: Any = None
    catchup_window: Any = None
    start_deadline: Any = None
    overlap: Any = None
    jitter: Any = None
    pause_on_failure: Any = None


class Checked(NamedTuple):
    """The same, as it holds for an entry; see `celery_idem.config.Settings`."""

    catchup: CatchUp
    catchup_window: float
    start_deadline: float | None
    overlap: Overlap
    jitter: float
    pause_on_failure: bool


#: Seconds; longer than any window.
FOREVER = 1e9

OPTIONS = Options._fields
#: Of an entry that says nothing: one for all of them.
_NONE = Options()
_of_ours = attrgetter(*OPTIONS)
_OURS = frozenset((*OPTIONS, *(f"{PREFIX}{name}" for name in OPTIONS)))
#: All that users may write, and what `ScheduleEntry` takes.
_KNOWN = ("task", "schedule", "args", "kwargs", "options", "relative", *OPTIONS)
_TAKEN = frozenset(signature(ScheduleEntry).parameters)


class _Empty:
    """A dict for each entry that has none, from the moment on at which somebody asks for it."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, entry: Any, owner: type | None = None) -> Any:
        if entry is None:
            return self
        made: dict[str, Any] = {}
        setattr(entry, self._name, made)
        return made


class Entry(ScheduleEntry):
    """An entry of the schedule.

    Arguments:
        catchup: the setting ``idem_catchup`` for this entry.
        catchup_window: the setting ``idem_catchup_window`` for this entry, in seconds.
        start_deadline: the setting ``idem_start_deadline`` for this entry, in seconds.
        overlap: the setting ``idem_overlap`` for this entry.
        jitter: the setting ``idem_jitter`` for this entry, in seconds.
        pause_on_failure: the setting ``idem_pause_on_failure`` for this entry.

    All of them may stand among the ``options`` too: `Celery.add_periodic_task` has no other place
    for them.

    Raises:
        ImproperlyConfigured: there is no such option.
    """

    catchup: Any = None
    catchup_window: Any = None
    start_deadline: Any = None
    overlap: Any = None
    jitter: Any = None
    pause_on_failure: Any = None
    kwargs: Any = _Empty()

    def __init__(
        self,
        *args: Any,
        catchup: Any = None,
        catchup_window: Any = None,
        start_deadline: Any = None,
        overlap: Any = None,
        jitter: Any = None,
        pause_on_failure: Any = None,
        **kwargs: Any,
    ) -> None:
        name = kwargs.get("name", args[0] if args else None)
        owner = f"entry {name!r}"
        own = Options(catchup, catchup_window, start_deadline, overlap, jitter, pause_on_failure)
        own = Options(**options_in(owner, {**kwargs, **own._asdict()}, OPTIONS))
        others = _without_ours(kwargs)
        for unknown in sorted(others.keys() - _TAKEN):
            raise no_option(owner, unknown, others[unknown], _KNOWN)
        super().__init__(*args, **others)
        self._set(own)
        if not self.kwargs:
            del self.kwargs  # See `_set`.
        options = self.options or {}
        among = options_in(owner, options, OPTIONS)
        others = _without_ours(options)
        check_names(owner, others, OPTIONS)
        if among:
            self.options = others
        for name, value in among.items():
            if getattr(self, name) is None:
                setattr(self, name, value)

    def _set(self, own: Options) -> None:
        for name, value in own._asdict().items():
            # What is not written takes no memory: there may be many entries.
            if value is not getattr(self, name):
                setattr(self, name, value)

    def __reduce__(self) -> Any:
        # Celery's knows the arguments of its own class alone; among the options ours are taken too.
        reduced: Any = super().__reduce__()
        own = own_options(self)._asdict()
        written = {name: value for name, value in own.items() if value is not None}
        *others, options = reduced[1]
        return reduced[0], (*others, {**(options or {}), **written})

    def editable_fields_equal(self, other: Any) -> bool:
        return bool(super().editable_fields_equal(other)) and own_options(self) == own_options(
            other
        )

    def update(self, other: Any) -> None:
        super().update(other)
        self._set(own_options(other))


def _without_ours(given: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in given.items() if name not in _OURS}


def copied(entry: Any, **changes: Any) -> Any:
    """A copy of any entry, with some attributes changed; the entry stays as it is.

    Not by `copy.copy`, for which entries have constructors of their own: Celery's unbinds the
    schedule from its app.
    """
    made = object.__new__(type(entry))
    made.__dict__.update(entry.__dict__, **changes)
    return made


def own_options(entry: Any) -> Options:
    """What is written in any entry: Celery's own class has no options of ours."""
    if isinstance(entry, Entry):
        own = _of_ours(entry)
    else:
        own = tuple([getattr(entry, name, None) for name in OPTIONS])
    return _NONE if own == _NONE else Options(*own)


def checked(owner: str, own: Options, settings: Settings) -> Checked:
    """What holds for an entry.

    Raises:
        ImproperlyConfigured: a value is not possible, or not with another one; it names `owner`
            and option.
    """
    # Of a list: a tuple that is made of a generator is cut to its size, and Python keeps those.
    found = Checked(
        *[
            option(owner, name, value, getattr(settings, name))
            for name, value in zip(OPTIONS, own, strict=True)
        ]
    )
    if found.start_deadline is not None and found.jitter >= found.start_deadline:
        raise ImproperlyConfigured(
            f"jitter of {owner}",
            found.jitter,
            f"it must be less than the start_deadline of {found.start_deadline:g} seconds, or "
            "slots are skipped by it",
        )
    return found


def in_time(entry: Any, start_deadline: float | None) -> timedelta:
    """How old a slot may be that can still be started."""
    expires = (entry.options or {}).get("expires")
    if isinstance(expires, timedelta):
        expires = expires.total_seconds()
    limits = [s for s in (start_deadline, expires) if isinstance(s, int | float)]
    return duration(min(limits, default=FOREVER))


@lru_cache(maxsize=1024)
def duration(seconds: float) -> timedelta:
    """One object for all entries for which it is as long."""
    return timedelta(seconds=seconds)
