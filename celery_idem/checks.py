"""What a value of a setting may be.

Owns one check for each kind of value: called with the setting's name and a value, it returns what
the code works with, or raises `ImproperlyConfigured`, which says what is allowed. Must not know
which settings there are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from typing import Any, TypeVar

from celery_idem.errors import ImproperlyConfigured, InvalidRunKey
from celery_idem.keys import check_text
from celery_idem.policy import Policy

#: A namespace is a part of every run key, which has 255 bytes.
MAX_NAMESPACE_BYTES = 64
#: A longer name of a lock is data, not a name.
MAX_LOCK_BYTES = 1_000
#: As kombu and Celery's result backends know them.
REDIS_SCHEMES = ("redis", "rediss", "redis+socket", "sentinel")

P = TypeVar("P", bound=Policy)


def choice(enum: type[P]) -> Callable[[str, Any], P]:
    """A check that accepts a value of `enum` or its string."""

    def check(setting: str, value: Any) -> P:
        try:
            return enum(value)
        except ValueError:
            allowed = ", ".join(repr(str(member)) for member in enum)
            raise ImproperlyConfigured(setting, value, f"allowed are {allowed}") from None

    return check


def seconds(low: float, high: float) -> Callable[[str, Any], float]:
    """A check that accepts a number of seconds or a timedelta within bounds."""

    def check(setting: str, value: Any) -> float:
        number = value.total_seconds() if isinstance(value, timedelta) else value
        if isinstance(number, bool) or not isinstance(number, int | float):
            raise ImproperlyConfigured(setting, value, "it must be seconds or a timedelta")
        if not low <= number <= high:
            raise ImproperlyConfigured(
                setting, value, f"it must be between {low:g} and {high:g} seconds"
            )
        return float(number)

    return check


def seconds_or_none(low: float, high: float) -> Callable[[str, Any], float | None]:
    """As `seconds`, or None."""
    check = seconds(low, high)

    def check_unless_none(setting: str, value: Any) -> float | None:
        try:
            return None if value is None else check(setting, value)
        except ImproperlyConfigured as exc:
            raise ImproperlyConfigured(setting, value, f"{exc.allowed}, or None") from None

    return check_unless_none


def whole(low: int) -> Callable[[str, Any], int]:
    """A check that accepts a whole number of at least `low`."""

    def check(setting: str, value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or value < low:
            raise ImproperlyConfigured(
                setting, value, f"it must be a whole number of at least {low}"
            )
        return value

    return check


def lock_names(setting: str, value: Any) -> tuple[str, ...]:
    """One name of a lock, or several."""
    if isinstance(value, str):
        value = (value,)
    if not isinstance(value, Iterable) or isinstance(value, Mapping | bytes):
        raise ImproperlyConfigured(setting, value, "it must be a str, or several")
    names = tuple(value)
    if not names:
        raise ImproperlyConfigured(setting, value, "it must be one name at least")
    for name in names:
        try:
            size = len(check_text(name).encode())
        except InvalidRunKey as exc:
            raise ImproperlyConfigured(setting, exc.value, exc.reason) from None
        if size > MAX_LOCK_BYTES:
            short = f"{name[:80]}..."
            raise ImproperlyConfigured(
                setting, short, f"it has {size} bytes, {MAX_LOCK_BYTES} are allowed"
            )
    return names


def redis_url(setting: str, value: Any) -> str | None:
    """A URL as Celery's result backends take it, or None."""
    if value is None:
        return None
    scheme = value.partition("://")[0] if isinstance(value, str) and "://" in value else ""
    if scheme not in REDIS_SCHEMES:
        known = ", ".join(f"{each}://" for each in REDIS_SCHEMES)
        shown = hidden(value) if isinstance(value, str) else value
        raise ImproperlyConfigured(setting, shown, f"it must begin with one of {known}, or be None")
    return str(value)


def flag(setting: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise ImproperlyConfigured(setting, value, "it must be True or False")
    return value


def text(setting: str, value: Any) -> str | None:
    if value is not None and (not isinstance(value, str) or not value):
        raise ImproperlyConfigured(setting, value, "it must be a str that is not empty, or None")
    return value


def secret(setting: str, value: Any) -> str | None:
    try:
        return text(setting, value)
    except ImproperlyConfigured as exc:
        # Half a secret is in the value, and errors are logged.
        raise ImproperlyConfigured(setting, type(value).__name__, exc.allowed) from None


def namespace(setting: str, value: Any) -> str:
    try:
        text = check_text(value)
    except InvalidRunKey as exc:
        raise ImproperlyConfigured(setting, value, exc.reason) from None
    if ":" in text or len(text.encode()) > MAX_NAMESPACE_BYTES:
        raise ImproperlyConfigured(
            setting, value, f"it must be a str of at most {MAX_NAMESPACE_BYTES} bytes, without ':'"
        )
    return text


def engine_options(setting: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ImproperlyConfigured(
            setting, value, "it must be a dict of arguments of sqlalchemy.create_engine"
        )
    return dict(value)


def hidden(url: str) -> str:
    """A URL without what may be a password."""
    return f"***@{url.rpartition('@')[2]}" if "@" in url else url


def url(setting: str, value: Any) -> str:
    if not isinstance(value, str) or "://" not in value:
        raise ImproperlyConfigured(
            setting,
            hidden(value) if isinstance(value, str) else value,
            "it must be a SQLAlchemy URL, for example postgresql://user@host/name",
        )
    return value
