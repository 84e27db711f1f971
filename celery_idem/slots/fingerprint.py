"""The fingerprint of a schedule's definition.

Owns the short text by which two beats, also of two versions in a rolling deploy, tell whether they
mean the same schedule. It is made of what decides the slots: equal definitions have equal
fingerprints in every process and on every Python, whatever their spelling (``crontab('0')`` and
``crontab(0)``, 60 and 60.0 seconds), and never of an object's address.
Must not know what a fingerprint is used for.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from datetime import date, datetime, time, timedelta, tzinfo
from enum import Enum
from functools import cached_property
from hashlib import blake2b
from types import BuiltinFunctionType, FunctionType
from typing import Any, Final

from celery.schedules import BaseSchedule, crontab, schedule
from kombu.utils.objects import cached_property as kombu_cached_property

from celery_idem.slots.fields import Fields, goes_by_elapsed_time
from celery_idem.slots.grid import MINUTE
from celery_idem.slots.kinds import kind_of, path_of, step_of, zone_of
from celery_idem.slots.zone import TICK
from celery_idem.slots.zone_names import zone_name

#: Attributes that do not define a schedule: which app it is bound to, and the clock it reads.
_NOT_DEFINING: Final = frozenset({"app", "_app", "nowfun", "nowfunc", "tz", "utc_enabled"})
#: Nested values below this are left out (a structure may contain itself).
_DEPTH: Final = 6
#: The text of values of other simple types; a datetime is a date too and must come first.
_TEXTS: Final[tuple[tuple[tuple[type, ...], Callable[[Any], str]], ...]] = (
    ((timedelta,), lambda value: str(value // TICK)),
    ((datetime,), datetime.isoformat),
    ((date,), date.isoformat),
    ((time,), time.isoformat),
    ((tzinfo,), zone_name),
    ((bytes, bytearray), lambda value: bytes(value).hex()),
    ((type, FunctionType, BuiltinFunctionType), path_of),
)
#: Stands for a value without a stable text.
_UNKNOWN: Final = object()


def fingerprint(candidate: BaseSchedule) -> str:
    """``{kind}-{digest}``, ASCII, at most 64 characters. Raises `InvalidSchedule` for no schedule.

    Of a custom schedule the path of its class and its attributes of simple types (also in lists,
    dicts and nested schedules) are taken; one that holds its definition elsewhere cannot be told
    from another of the same class.
    """
    kind = kind_of(candidate)
    text = json.dumps(_definition(kind, candidate), sort_keys=True, separators=(",", ":"))
    # One string for all entries with the same slots: a beat may have many of them.
    return sys.intern(f"{kind}-{blake2b(text.encode(), digest_size=16).hexdigest()}")


def _definition(kind: str, candidate: Any) -> list[Any]:
    if kind == "crontab":
        return _crontab(candidate)
    if kind == "interval":
        return _interval(candidate)
    if kind == "solar":
        return [candidate.event, float(candidate.lat), float(candidate.lon)]
    return _custom(candidate, _DEPTH)


def _crontab(candidate: crontab) -> list[Any]:
    fields = Fields.of(candidate)
    sets = [fields.minutes, fields.hours, fields.days, fields.months, sorted(fields.weekdays)]
    return [sets, goes_by_elapsed_time(candidate), zone_name(zone_of(candidate))]


def _interval(candidate: schedule) -> list[Any]:
    step = step_of(candidate)
    # The zone decides only where the grid follows the local clock.
    local = candidate.relative and step >= MINUTE
    zone = zone_name(zone_of(candidate)) if local else None
    return [step, bool(candidate.relative), zone]


def _custom(candidate: BaseSchedule, depth: int) -> list[Any]:
    attributes = {
        name: text
        for name, value in sorted(vars(candidate).items())
        if _defines(candidate, name) and (text := _simple(value, depth - 1)) is not _UNKNOWN
    }
    zone = zone_name(zone_of(candidate))
    return [path_of(type(candidate)), zone, attributes]


def _defines(candidate: BaseSchedule, name: str) -> bool:
    # The spelling of a crontab's fields; their meaning is in the parsed sets.
    if name in _NOT_DEFINING or (isinstance(candidate, crontab) and name.startswith("_orig_")):
        return False
    # A cached value is there or not, depending on who asked for it before.
    cached = getattr(type(candidate), name, None)
    return not isinstance(cached, (cached_property, kombu_cached_property))


def _simple(value: Any, depth: int) -> Any:
    """A JSON form of a value of a simple type, tagged where types could be mixed up."""
    if depth < 0:
        return _UNKNOWN
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, Enum):
        return ["enum", path_of(type(value)), value.name]
    if isinstance(value, (int, float)):
        return ["number", repr(value)]
    if isinstance(value, (list, tuple, set, frozenset, Mapping)):
        return _collection(value, depth - 1)
    return _object(value, depth)


def _object(value: Any, depth: int) -> Any:
    if isinstance(value, BaseSchedule):
        kind = kind_of(value)
        return [kind, _custom(value, depth) if kind == "custom" else _definition(kind, value)]
    for types, text in _TEXTS:
        if isinstance(value, types):
            return [types[0].__name__, text(value)]
    return _UNKNOWN


def _collection(value: Any, depth: int) -> list[Any]:
    if isinstance(value, Mapping):
        pairs = [(_simple(key, depth), _simple(item, depth)) for key, item in value.items()]
        return ["map", _sorted([list(pair) for pair in pairs if _UNKNOWN not in pair])]
    items = [text for item in value if (text := _simple(item, depth)) is not _UNKNOWN]
    return ["set", _sorted(items)] if isinstance(value, (set, frozenset)) else ["list", items]


def _sorted(items: list[Any]) -> list[Any]:
    return sorted(items, key=lambda item: json.dumps(item, sort_keys=True))
