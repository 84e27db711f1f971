"""What a ledger in memory keeps.

Owns the shapes that stand for the rows of the SQL ledger's tables. Must not know the verbs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from celery_idem.keys import EPOCH, RunKey
from celery_idem.ledger.records import HistoryLine, NewSlot, Owner, Pause
from celery_idem.run import RunRow, RunState


@dataclass(slots=True)
class RunInMemory:
    row: RunRow
    next_emit_at: datetime | None = None
    created_at: datetime = EPOCH


@dataclass(slots=True)
class LeaseInMemory:
    owner: Owner
    expires_at: datetime
    started_at: datetime = EPOCH


@dataclass(slots=True)
class SeatInMemory:
    fence: int
    lease_id: str | None
    claim_id: str | None
    ends_at: datetime | None = None


@dataclass(slots=True)
class EntryInMemory:
    active_since: datetime
    last_seen_at: datetime
    agreed_slot: datetime | None = None


@dataclass(slots=True)
class Tables:
    """All that a ledger in memory knows."""

    runs: dict[RunKey, RunInMemory] = field(default_factory=dict)
    leases: dict[str, LeaseInMemory] = field(default_factory=dict)
    #: By stored name and number.
    seats: dict[tuple[str, int], SeatInMemory] = field(default_factory=dict)
    entries: dict[tuple[str, str], EntryInMemory] = field(default_factory=dict)
    #: By stored name; with the namespace.
    pauses: dict[str, tuple[str, Pause]] = field(default_factory=dict)
    tasks: dict[str, str] = field(default_factory=dict)
    history: list[HistoryLine] = field(default_factory=list)
    #: Names of lines that more than one may write.
    lines: set[str] = field(default_factory=set)


def new_row(key: RunKey, namespace: str, task: str, entry: str | None, **more: Any) -> RunRow:
    fields: dict[str, Any] = {
        "state": RunState.SCHEDULED,
        "fence": 0,
        "attempts": 0,
        "retries": 0,
        "emit_count": 0,
        **dict.fromkeys(("task_id", "lease_id", "claim_id", "message", "error")),
        **dict.fromkeys(("due_at", "deadline", "started_at", "finished_at")),
    }
    fields |= more
    return RunRow(key=key, namespace=namespace, task=task, entry=entry, **fields)


def slot_row(slot: NewSlot, batch: str) -> RunRow:
    return new_row(
        slot.key,
        slot.namespace,
        slot.task,
        slot.entry,
        state=RunState.SCHEDULED if slot.claims else RunState.EMITTED,
        claim_id=batch,
        task_id=slot.key.task_id,
        due_at=slot.key.slot,
        deadline=slot.deadline,
        message=slot.message,
    )
