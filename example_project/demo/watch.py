"""Count what beats publish, where they publish it.

Owns: a table with one row for each copy of a message that was handed to the broker. The demo has
each beat import this module (SHOP_INCLUDE); it works with every broker and every scheduler.
Must not know: whether a copy was executed.
"""

from __future__ import annotations

import json
import os
from datetime import datetime, timezone
from typing import Any

from celery.signals import after_task_publish
from sqlalchemy import Column, Engine, Integer, MetaData, String, Table, Text

from example_project import effects, settings
from example_project.schedule import ENTRIES, grid_slot

metadata = MetaData()

copies = Table(
    "demo_copies",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("shop", String(64), nullable=False),
    Column("entry", String(64), nullable=False),
    Column("slot", String(40), nullable=False),
    # The beat's pid; 0 for a copy that the demo sent again.
    Column("pid", Integer, nullable=False),
    # Headers and body as JSON, so that the very same message can be sent again.
    Column("message", Text, nullable=False),
)

_ENTRY_OF = {entry.task: name for name, entry in ENTRIES.items()}


@after_task_publish.connect
def note(sender: str, headers: dict[str, Any], body: Any, **kwargs: object) -> None:
    """Record a published message of the shop, in the publishing process."""
    entry = _ENTRY_OF.get(sender)
    # A message that a worker puts back, for later, is no further copy: it stands for the one that
    # the worker had.
    if entry and not headers.get("idem_put_back"):
        slot = headers.get("idem_slot")
        # A message of Celery's own scheduler does not say for which slot it is.
        instant = parse(slot) if slot else grid_slot(entry, datetime.now(timezone.utc))
        with effects.engine().begin() as connection:
            row = {"entry": entry, "slot": instant.isoformat(), "pid": os.getpid()}
            message = json.dumps({"headers": headers, "body": body})
            connection.execute(copies.insert(), {"shop": settings.NAME, "message": message, **row})


def create(engine: Engine) -> None:
    """Create the table; the demo does this before any beat is there."""
    metadata.create_all(engine)


def parse(slot: str) -> datetime:
    """Read an instant as celery_idem writes it (ISO 8601 with Z, which Python 3.10 cannot read)."""
    return datetime.fromisoformat(slot.replace("Z", "+00:00")).astimezone(timezone.utc)
