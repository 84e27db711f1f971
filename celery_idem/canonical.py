"""One text for equal values, however they were passed and whether they have been through a broker.

Owns the canonical form of arguments of which keys are made. What a serializer turns into something
else on its way (a tuple into a list, an enum into its value) has the form of what arrives. Must not
know tasks or keys.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import fields, is_dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

from celery_idem.clock import UTC
from celery_idem.errors import NotCanonical

#: Deeper values are refused: they are data, not names.
DEEPEST = 20


def canonical(value: Any, what: str = "value") -> str:
    """The canonical JSON of a value.

    Arguments:
        what: names it in errors.

    Raises:
        NotCanonical: it, or something in it, has no such form; the error says where.
    """
    return json.dumps(
        _form(value, what, DEEPEST), sort_keys=True, separators=(",", ":"), ensure_ascii=False
    )


def _form(value: Any, where: str, depth: int) -> Any:
    if depth < 0:
        raise NotCanonical(where, value, f"it is nested more than {DEEPEST} levels deep")
    if isinstance(value, Enum):
        return _form(value.value, where, depth - 1)
    if value is None or isinstance(value, bool | int | str):
        # Of a subclass, the value alone.
        return value if value is None or isinstance(value, bool) else _plain(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise NotCanonical(where, value, "it equals no other number: use a finite one")
        return float(value) + 0.0  # -0.0 equals 0.0.
    return _text(value) or _composite(value, where, depth - 1)


def _plain(value: int | str) -> int | str:
    return int(value) if isinstance(value, int) else str.__str__(value)


def _text(value: Any) -> str | None:
    """Of what JSON has no type for; None if it is something else."""
    if isinstance(value, datetime):
        return _instant(value)
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, timedelta):
        return f"{value.total_seconds()!r} s"
    if isinstance(value, Decimal):
        return _number(value)
    if isinstance(value, UUID):
        return str(value)
    return bytes(value).hex() if isinstance(value, bytes | bytearray) else None


def _instant(value: datetime) -> str:
    """One instant is one text; without a zone it is no instant, and stays as it is."""
    if value.utcoffset() is None:
        return value.isoformat()
    try:
        value = value.astimezone(UTC)
    except OverflowError:  # At the ends of the calendar.
        return value.isoformat()
    return value.replace(tzinfo=None).isoformat() + "Z"


def _number(value: Decimal) -> str:
    """Equal for equal numbers, 1.0 and 1.00, whatever the context would round them to."""
    if not value.is_finite():
        return str(value)
    text = format(value, "f")
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return "0" if text in ("-0", "") else text


def _composite(value: Any, where: str, depth: int) -> Any:
    if isinstance(value, list | tuple):
        return [_form(item, f"{where}[{at}]", depth) for at, item in enumerate(value)]
    if isinstance(value, AbstractSet):
        items = [_form(item, f"an element of {where}", depth) for item in value]
        return sorted(items, key=lambda item: json.dumps(item, sort_keys=True))
    if isinstance(value, Mapping):
        return _mapping(value, where, depth)
    if is_dataclass(value) and not isinstance(value, type):
        named = {field.name: getattr(value, field.name) for field in fields(value)}
        return _mapping(named, where, depth)
    if callable(dump := getattr(value, "model_dump", None)):  # pydantic's models
        return _form(dump(mode="json"), where, depth)
    raise NotCanonical(
        where,
        value,
        f"a {type(value).__qualname__} has no canonical form: pass a number, text, date, Decimal, "
        "UUID, Enum, dataclass, or a list, dict or set of these; or give a callable as the key",
    )


def _mapping(value: Mapping[Any, Any], where: str, depth: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, item in value.items():
        name = _name(key, where)
        if name in found:
            raise NotCanonical(where, value, f"two of its keys are {name!r} on their way")
        found[name] = _form(item, f"{where}[{key!r}]", depth)
    return found


def _name(key: Any, where: str) -> str:
    """As JSON has it, where all keys are texts."""
    what = f"a key of {where}"
    form = _form(key, what, 1)
    if isinstance(form, list | dict):
        raise NotCanonical(what, key, "JSON has no such keys")
    return form if isinstance(form, str) else json.dumps(form)
