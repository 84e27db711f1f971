"""What the sender of a message gets whose run key was that of an earlier one.

Owns the choice between the earlier one's result and an error, and which results are kept for that.
Must not know how a run is claimed, nor how a ledger stores anything.
"""

from __future__ import annotations

from typing import Any

from kombu.utils.json import loads

from celery_idem import signals
from celery_idem.config import Settings
from celery_idem.errors import DuplicateRun, ImproperlyConfigured
from celery_idem.keys import RunKey
from celery_idem.messages import to_json
from celery_idem.policy import OnDuplicate
from celery_idem.run import RunRow, RunState

#: Bytes of JSON that are kept of a result; larger ones belong elsewhere, and their key in here.
LARGEST = 65_536


def check_replay(owner: str, task: Any, settings: Settings) -> None:
    """Raise `ImproperlyConfigured` if a task is to replay results that it does not store."""
    replays = (task.on_duplicate or settings.on_duplicate) == OnDuplicate.REPLAY
    stores = settings.store_result if task.store_result is None else task.store_result
    if replays and not stores:
        raise ImproperlyConfigured(
            f"on_duplicate of {owner}", "replay", "set store_result = True, for there to be results"
        )


def stored(task: Any, key: RunKey, result: Any) -> str | None:
    """The text by which a result is kept; None, with a line in the log, if it cannot be."""
    try:
        text = to_json(result)
    except ValueError as exc:
        signals.not_stored(task, key, f"JSON cannot tell it: {exc}")
        return None
    size = len(text.encode())
    if size > LARGEST:
        signals.not_stored(task, key, f"it has {size} bytes, {LARGEST} are kept")
        return None
    return text


def replayed(key: RunKey, seen: RunRow, reason: str) -> Any:
    """The result of the run that has ended.

    Raises:
        DuplicateRun: there is none, or it was not stored.
    """
    if seen.state is not RunState.SUCCEEDED:
        why = f"{reason} ({seen.error})" if seen.error else reason
        raise DuplicateRun(key.text, why, seen.task_id)
    if seen.result is None:
        raise DuplicateRun(key.text, f"{reason}, and its result was not stored", seen.task_id)
    return loads(seen.result)
