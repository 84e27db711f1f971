"""The settings of an app.

Owns the only reading of ``app.conf``: names, defaults, what is allowed, and the errors that say so.
Must not know what follows from a setting.
"""

from __future__ import annotations

import difflib
import os
import threading
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, fields
from enum import Enum
from functools import lru_cache
from typing import Any
from weakref import WeakKeyDictionary

from celery import Celery

from celery_idem import checks
from celery_idem.errors import ImproperlyConfigured
from celery_idem.policy import CatchUp, OnCrash, OnDatabaseError, OnDuplicate, Overlap, Unstamped

PREFIX = "idem_"

#: The ledger of a project that has named none: fine for a try on one host, wrong for two.
DEFAULT_DATABASE_URL = "sqlite:///celery-idem.sqlite3"

#: How alike (0 to 1) a name must be to an option's to be taken for a slip of the pen: enough for
#: one letter more, one less, or two that changed places, and not for ``min_attempts``.
ALIKE = 0.85


def _as_namespace(name: str) -> str:
    """An app's name made fit: it is somebody else's choice, and never refused."""
    data = name.replace(":", ".").replace("\0", "").encode(errors="replace")
    return data[: checks.MAX_NAMESPACE_BYTES].decode(errors="ignore")


# A `dataclasses.field` with its check; the call makes nothing that is shared.
# ruff: noqa: RUF009
def _setting(default: Any, check: Callable[[str, Any], Any]) -> Any:
    return field(default=default, metadata={"check": check})


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings, checked. In ``app.conf`` each name carries the prefix ``idem_``."""

    #: False turns everything into plain Celery.
    enabled: bool = _setting(True, checks.flag)
    #: Where the ledger is.
    database_url: str = _setting(DEFAULT_DATABASE_URL, checks.url)
    #: Further arguments of `sqlalchemy.create_engine`.
    database_engine_options: Mapping[str, Any] = field(
        default_factory=dict, metadata={"check": checks.engine_options}
    )
    #: Schema of the tables; None for the connection's default.
    database_schema: str | None = _setting(None, checks.text)
    #: Create the tables at first use if they are absent.
    create_tables: bool = _setting(True, checks.flag)
    #: A Redis that keeps contention for locks away from the database; None: the database alone.
    redis_url: str | None = _setting(None, checks.redis_url)
    #: First part of every run key: two apps that share a database need two of them.
    namespace: str = _setting("celery", checks.namespace)
    #: Seconds for which an owner that was not heard of keeps its run.
    lease: float = _setting(60.0, checks.seconds(1, 86_400))
    #: Claims of one retry number, before a run whose owners keep dying is given up.
    max_attempts: int = _setting(5, checks.whole(1))
    #: Which missed slots run.
    catchup: CatchUp = _setting(CatchUp.LATEST, checks.choice(CatchUp))
    #: Seconds for which a missed slot may still be caught up.
    catchup_window: float = _setting(86_400.0, checks.seconds(0, 366 * 86_400))
    #: Seconds after its instant within which a slot must be started, or else it is skipped.
    start_deadline: float | None = _setting(None, checks.seconds_or_none(1, 366 * 86_400))
    #: What happens to a slot whose entry's earlier run goes on.
    overlap: Overlap = _setting(Overlap.ALLOW, checks.choice(Overlap))
    #: Seconds over which the starts of an entry's slots are spread; the slots stay as they are.
    jitter: float = _setting(0.0, checks.seconds(0, 86_400))
    #: A run that has failed pauses its entry of the schedule.
    pause_on_failure: bool = _setting(False, checks.flag)
    #: What happens to a run whose owner died.
    on_crash: OnCrash = _setting(OnCrash.RETRY, checks.choice(OnCrash))
    #: What happens to a message whose run cannot be claimed as the database is down.
    on_database_error: OnDatabaseError = _setting(
        OnDatabaseError.RETRY, checks.choice(OnDatabaseError)
    )
    #: What the sender of a message gets whose key was that of an earlier one.
    on_duplicate: OnDuplicate = _setting(OnDuplicate.RAISE, checks.choice(OnDuplicate))
    #: The ledger keeps what a body has returned, as JSON of at most 64 KiB.
    store_result: bool = _setting(False, checks.flag)
    #: What happens to a message without a run key.
    unstamped: Unstamped = _setting(Unstamped.TASK_ID, checks.choice(Unstamped))
    #: Secret with which beats sign run keys, and without whose signature workers refuse them.
    signing_key: str | None = _setting(None, checks.secret)

    @classmethod
    def read(cls, app: Celery) -> Settings:
        """The settings of `app`, as they are now.

        Raises:
            ImproperlyConfigured: a name is unknown, or a value is not possible.
        """
        given = _given(app)
        known = {f"{PREFIX}{item.name}": item for item in fields(cls)}
        for name in given:
            if name not in known:
                raise ImproperlyConfigured(name, given[name], did_you_mean(name, known))
        values = {
            known[name].name: known[name].metadata["check"](name, value)
            for name, value in given.items()
        }
        if "database_url" not in values and (found := _found_database()):
            values["database_url"] = found
        values.setdefault("namespace", _as_namespace(app.main or "") or "celery")
        return cls(**values)

    @classmethod
    def of(cls, app: Celery) -> Settings:
        """The settings of `app`, read once per process."""
        try:
            return _SETTINGS[app]
        except KeyError:
            with _LOCK:
                return _SETTINGS.setdefault(app, cls.read(app))


_SETTINGS: WeakKeyDictionary[Celery, Settings] = WeakKeyDictionary()
_LOCK = threading.Lock()


def _renew_lock() -> None:
    """Another thread of the parent may have held it at the fork."""
    global _LOCK
    _LOCK = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)


_finders: list[Callable[[], str | None]] = []


def use_database(finder: Callable[[], str | None]) -> None:
    """Where no setting names the database, use what `finder` says; its errors are those of `read`.

    For frameworks that know the database of their project.
    """
    _finders.append(finder)


def _found_database() -> str | None:
    return next((url for finder in _finders if (url := finder())), None)


def option(owner: str, name: str, value: Any, default: Any) -> Any:
    """An option of a task or an entry: `value` checked like the setting, or `default` if None.

    Raises:
        ImproperlyConfigured: the value is not possible; it names `owner` and option.
    """
    if value is None:
        return default
    check = next(item.metadata["check"] for item in fields(Settings) if item.name == name)
    return check(f"{name} of {owner}", value)


def check_names(owner: str, given: Mapping[str, Any], known: tuple[str, ...]) -> None:
    """Refuse what was meant to be one of the options `known`, and is none.

    That is a misspelt one, and whatever begins with ``idem_``. Other names are somebody else's.

    Raises:
        ImproperlyConfigured: it names `owner`, the name, and the option that may be meant.
    """
    for name, value in given.items():
        if name not in known and (name.startswith(PREFIX) or _is_slip(name, known)):
            raise no_option(owner, name, value, known)


def options_in(owner: str, given: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """What is given of the options `names`, however they are written.

    As themselves or, as their settings are, with the prefix: ``idem_store_result``.

    Raises:
        ImproperlyConfigured: an option is written in both ways, and they differ.
    """
    found = {}
    for name in names:
        written = f"{PREFIX}{name}"
        if name in given:
            found[name] = given[name]
        if written in given:
            found[name] = value = given[written]
            if given.get(name) not in (None, value):
                raise ImproperlyConfigured(
                    f"{written} of {owner}", value, f"its {name} is {given[name]!r}: write one"
                )
    return found


def no_option(owner: str, name: str, value: Any, known: Collection[str]) -> ImproperlyConfigured:
    """The error that says that `owner` cannot have an option of this name."""
    what = did_you_mean(name.removeprefix(PREFIX), known, "option")
    return ImproperlyConfigured(f"{name} of {owner}", value, what)


@lru_cache(maxsize=1000)
def _is_slip(name: str, known: tuple[str, ...]) -> bool:
    letters = name.lower().replace("_", "")
    # The first letter is seldom the wrong one: ``stamped`` is not meant to be ``unstamped``.
    alike = [option for one in known if (option := one.replace("_", ""))[:1] == letters[:1]]
    return bool(difflib.get_close_matches(letters, alike, n=1, cutoff=ALIKE))


def _given(app: Celery) -> dict[str, Any]:
    """The ``idem_*`` settings of an app, under whatever prefix its configuration has."""
    namespace = getattr(app, "namespace", None)
    prefix = f"{namespace.lower()}_" if namespace else ""
    given = {}
    for key in app.conf.keys():  # noqa: SIM118 - iterating conf yields other keys than keys()
        name = str(key).lower().removeprefix(prefix)
        if name.startswith(PREFIX):
            given[name] = app.conf.get(name, app.conf.get(key))
    return given


def did_you_mean(name: str, known: Collection[str], what: str = "setting") -> str:
    """What is said of a name that is unknown."""
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"there is no such {what}; {hint}known are {', '.join(sorted(known))}"


def as_text(value: object) -> str:
    """A setting's value for people: an enum by its string."""
    return str(value.value) if isinstance(value, Enum) else str(value)
