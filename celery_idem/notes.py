"""What a worker notes on a request while it has it.

Celery makes attributes of the headers of a message, of whatever name and whoever has sent it. Owns
the one place on a request that no header can write to. Must not know what is noted.
"""

from __future__ import annotations

from typing import Any

_PLACE = "idem_notes"


class _Notes(dict[str, Any]):
    """Of this type is nothing that comes with a message."""


def note(request: Any, name: str, value: object) -> None:
    """Note something for as long as the request lives."""
    notes = getattr(request, _PLACE, None)
    if not isinstance(notes, _Notes):
        notes = _Notes()
        setattr(request, _PLACE, notes)
    notes[name] = value


def noted(request: Any, name: str) -> Any:
    """What was noted by this name; None if nothing was."""
    notes = getattr(request, _PLACE, None)
    return notes.get(name) if isinstance(notes, _Notes) else None
