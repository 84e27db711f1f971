"""A failed run pauses the entry of the schedule that it came from, if that says so.

Owns what a worker tells the ledger then. Must not know how a run fails, or what a pause does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from celery_idem import signals
from celery_idem.errors import LedgerError
from celery_idem.keys import HEADER_ENTRY, HEADER_PAUSE, RunKey
from celery_idem.ledger import Ledger


def pause_if_asked(
    ledger: Ledger, namespace: str, headers: Mapping[str, Any] | None, key: RunKey, error: str
) -> None:
    """Pause the entry that a message came from, if its stamp, which was read before, asks for it.

    Arguments:
        key: of the run that has failed with `error`.
    """
    found = headers or {}
    entry = found.get(HEADER_ENTRY)
    if found.get(HEADER_PAUSE) is not True or entry is None:
        return
    by = f"run {key}"
    try:
        pause = ledger.pause(namespace, entry, by=by, note=error)
        if pause.paused_by != by:
            return  # It was paused before, for another reason.
        ledger.record("pause", RunKey.for_entry(namespace, entry), detail=f"{by}: {error}")
    except LedgerError as exc:
        signals.ledger_lost(f"Entry {entry} is not paused, though {by} has failed", exc)
        return
    signals.paused(ledger, entry, by, error)
