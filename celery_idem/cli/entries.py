"""What operators do with entries of the schedule: ``celery idem pause``, ``resume``, ``backfill``.

Owns what the ledger and its history are told, and what is answered. Must not know beats.
"""

from __future__ import annotations

import getpass
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import datetime
from typing import Any

from celery_idem.backfilling import backfill
from celery_idem.config import Settings
from celery_idem.errors import ImproperlyConfigured, LedgerError
from celery_idem.keys import RunKey, iso
from celery_idem.ledger import Ledger
from celery_idem.member import make_ledger


def pause(app: Any, entry: str, note: str | None) -> str:
    """Pause an entry; what is to be said about it.

    Raises:
        InvalidRunKey: this cannot be the name of an entry.
        LedgerError: nobody knows the entry, or the ledger cannot be used.
    """
    namespace = Settings.of(app).namespace
    key = RunKey.for_entry(namespace, entry)
    with _ledger(app) as ledger:
        before = ledger.now()
        if entry not in app.conf.beat_schedule and not ledger.is_known_entry(namespace, entry):
            raise LedgerError(
                f"no beat of namespace {namespace!r} has ever followed an entry {entry!r}",
                "write its name as it is in the schedule",
            )
        made = ledger.pause(namespace, entry, by=_who(), note=note)
        if made.paused_at < before:
            why = f": {made.note}" if made.note else ""
            by = f" by {made.paused_by}" if made.paused_by else ""
            return f"Entry {entry} has been paused since {_shown(made.paused_at)}{by}{why}"
        ledger.record("pause", key, detail=f"{_who()}: {note}" if note else _who())
    return f"Entry {entry} is paused."


def resume(app: Any, entry: str) -> str:
    """End the pause of an entry; what is to be said about it.

    Raises:
        InvalidRunKey, LedgerError: as above; the entry was never paused.
    """
    namespace = Settings.of(app).namespace
    key = RunKey.for_entry(namespace, entry)
    with _ledger(app) as ledger:
        before = ledger.now()
        ended = ledger.resume(namespace, entry)
        if ended is None:
            raise LedgerError(f"entry {entry!r} was never paused", "look at its name")
        assert ended.resumed_at is not None
        if ended.resumed_at < before:
            return f"Entry {entry} has not been paused since {_shown(ended.resumed_at)}."
        since = _shown(ended.paused_at)
        told = f"{_who()}: nothing that was due since {since} is made up"
        ledger.record("resume", key, detail=told)
    return f"Entry {entry} is resumed. Nothing that was due since {since} is made up."


def backfilled(app: Any, entry: str, start: str, end: str, dry_run: bool) -> Iterator[str]:
    """Emit slots of the past; what is to be said about it.

    Raises:
        ImproperlyConfigured, InvalidSchedule, LedgerError: see `celery_idem.backfill`; or slots of
            a plain task were not published.
    """
    app.loader.import_default_modules()
    found = backfill(app, entry, _instant("--from", start), _instant("--to", end), dry_run=dry_run)
    if dry_run:
        yield from (iso(key.slot) for key in found.recorded)
    done = "to be emitted" if dry_run else "emitted"
    known = found.slots - len(found.recorded)
    yield f"{len(found.recorded)} of {found.slots} slots {done}; {known} were recorded before."
    if found.unsent:
        raise LedgerError(
            f"{len(found.unsent)} slots of a plain task from {iso(found.unsent[0].slot)} on are "
            "recorded, but not published: the broker does not answer",
            "publish their tasks by other means",
        )


def _instant(name: str, text: str) -> datetime:
    try:
        # Python 3.10 does not read a 'Z'.
        found = datetime.fromisoformat(text.removesuffix("Z") + "+00:00" * text.endswith("Z"))
    except ValueError:
        raise ImproperlyConfigured(name, text, "it must be an ISO 8601 instant") from None
    if found.utcoffset() is None:
        raise ImproperlyConfigured(
            name, text, "it must have a time zone, for example 2026-03-29T00:00Z"
        )
    return found


@contextmanager
def _ledger(app: Any) -> Iterator[Ledger]:
    with closing(make_ledger(Settings.of(app))) as ledger:
        yield ledger


def _shown(moment: datetime) -> str:
    return iso(moment.replace(microsecond=0))


def _who() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # A container's user may have no name.
        user = "somebody"
    return f"{user}@{socket.gethostname()}"
