"""Keys of `celery-idem exec`: ``daily-{slot:day}``.

Owns reading a key, and the run key that it is at an instant. Must not know what is executed.
"""

from __future__ import annotations

from datetime import datetime
from string import Formatter

from celery_idem.errors import ImproperlyConfigured, InvalidRunKey
from celery_idem.keys import EPOCH, RunKey, iso
from celery_idem.once.every import GRAINS, every_of

#: First part of the run keys: apart from those of `Ledger.once`.
NAMESPACE = "exec"

_WAY_OUT = f"write {{slot:INTERVAL}} with {', '.join(GRAINS)} or for example '10 minutes'"


def run_key(template: str, timezone: str, now: datetime) -> RunKey:
    """The run that `template` names now.

    Raises:
        InvalidRunKey: it is no such template.
        ImproperlyConfigured: there is no such time zone.
    """
    every_of("day", timezone)  # So that a wrong zone is told of without a slot, too.
    text, slots = "", set[datetime]()
    for literal, interval in _parts(template):
        text += literal
        if interval is not None:
            slot = _slot(template, interval, timezone, now)
            slots.add(slot)
            text += iso(slot)
    if not text:
        raise InvalidRunKey(template, "it must not be empty")
    if len(slots) > 1:
        raise InvalidRunKey(template, "it has more than one interval")
    return RunKey(f"{NAMESPACE}:{text}", slots.pop() if slots else EPOCH)


def _parts(template: str) -> list[tuple[str, str | None]]:
    """Literal texts, each with the interval that follows it."""
    try:
        found = list(Formatter().parse(template))
    except ValueError as exc:
        raise InvalidRunKey(template, f"{exc}; write {{{{ for a brace") from None
    parts: list[tuple[str, str | None]] = []
    for literal, field, interval, conversion in found:
        if field is not None and (field != "slot" or not interval or conversion):
            raise InvalidRunKey(template, f"it cannot be filled in: {_WAY_OUT}")
        parts.append((literal, interval if field else None))
    return parts


def _slot(template: str, interval: str, timezone: str, now: datetime) -> datetime:
    try:
        return every_of(interval, timezone)(now)
    except ImproperlyConfigured:
        reason = f"{interval!r} is no interval: {_WAY_OUT}"
        raise InvalidRunKey(template, reason) from None
