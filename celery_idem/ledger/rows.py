"""How values of the package become values of the tables, and back.

Owns these conversions alone. Must not know the statements.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from hashlib import blake2b
from itertools import islice
from typing import Any, TypeVar

from celery_idem.clock import SYSTEM
from celery_idem.keys import EPOCH, RunKey, shorten
from celery_idem.ledger.records import HistoryLine
from celery_idem.run import RunRow, RunState

#: Rows named in one statement. More would not be faster, and SQLite takes 32,766 binds at most.
CHUNK = 500

#: The longest account of an error that is kept, in characters; more would fail somewhere.
LONGEST_ERROR = 16_000

T = TypeVar("T")


def micros(seconds: float) -> int:
    """Seconds as the whole microseconds in which statements take durations."""
    return round(seconds * 1_000_000)


def chunks(items: Iterable[T], size: int = CHUNK) -> Iterator[list[T]]:
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk


def named(key: RunKey) -> dict[str, Any]:
    """The values by which a statement names one run."""
    return {"b_key": key.text, "b_slot": key.slot}


def many(keys: Sequence[RunKey]) -> dict[str, Any]:
    """The values by which a statement names several runs."""
    return {
        "b_keys": [key.text for key in keys],
        "b_first": min(key.slot for key in keys),
        "b_last": max(key.slot for key in keys),
    }


def held(keys: Sequence[RunKey], batch: str) -> dict[str, Any]:
    """The values by which a statement names the runs that a batch holds."""
    return {**many(keys), "b_batch": batch}


def entry_name(namespace: str, entry: str) -> str:
    """The stored name of a schedule entry."""
    return shorten(f"{namespace}:{entry}")


def lock_name(namespace: str, name: str) -> str:
    """The stored name of a lock."""
    return shorten(f"{namespace}:{name}")


def task_name(namespace: str, name: str) -> str:
    """The stored name of a task that claims."""
    return shorten(f"{namespace}:{name}")


def cut(error: str | None) -> str | None:
    """An account of an error in a length that every database takes."""
    if error is None or len(error) <= LONGEST_ERROR:
        return error
    return f"{error[:LONGEST_ERROR]} ... ({len(error)} characters)"


def line_id(at: datetime | None = None, what: str | None = None) -> str:
    """A new name of a line of the history, growing with time.

    Made by the writer and not by the database: a line whose statement is repeated after a lost
    answer stays one line.

    Arguments:
        at, what: what the line is about, for one that whoever comes first is to write.
    """
    since = (at or SYSTEM.now()) - EPOCH
    tail = digest(what) if what is not None else secrets.token_hex(8)
    return f"{micros(since.total_seconds()):016d}-{tail}"


def digest(text: str) -> str:
    """Sixteen letters for a text of any length."""
    return blake2b(text.encode(errors="surrogatepass"), digest_size=8).hexdigest()


def run_row(row: Any) -> RunRow:
    """A row of `reading.read_runs` as the ledger shows it."""
    left = (row.expires_at - row.now).total_seconds() if row.expires_at is not None else None
    return RunRow(
        key=RunKey(row.run_key, row.slot),
        state=RunState(row.state),
        task=row.task,
        namespace=row.namespace,
        entry=row.entry,
        fence=row.fence,
        attempts=row.attempts,
        retries=row.retries,
        task_id=row.task_id,
        lease_id=row.lease_id,
        claim_id=row.claim_id,
        emit_count=row.emit_count,
        message=row.message,
        error=row.error,
        due_at=row.due_at,
        deadline=row.deadline,
        started_at=row.started_at,
        finished_at=row.finished_at,
        callbacks_pending=bool(row.callbacks_pending),
        result=row.result,
        lease_seconds=left,
        payload=row.payload,
        age=(row.now - row.created_at).total_seconds(),
        late=row.deadline is not None and row.deadline <= row.now,
    )


def history_line(row: Any) -> HistoryLine:
    """A row of the history as the ledger shows it."""
    return HistoryLine(
        at=row.at,
        kind=row.kind,
        key=RunKey(row.run_key, row.slot),
        task=row.task,
        task_id=row.task_id,
        host=row.host,
        pid=row.pid,
        detail=row.detail,
    )
