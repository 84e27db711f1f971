"""What is told to a ledger, and the guards that every ledger has.

Owns the records that callers and ledgers exchange, beside those of `celery_idem.run`. Must not know
how they are stored.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from celery_idem.keys import RunKey
from celery_idem.run import TOO_LATE, ClaimRequest, RunRow, RunState

#: Seconds after its insert at which a slot is published by another beat, if the one that inserted
#: it has not reported the publish: what a beat that dies between the two costs.
HANDOVER = 1.0

#: Seconds after which a beat reports again that it still follows its entries. Each is a row to be
#: written, of which a beat with 50,000 entries writes a thousand a second.
REFRESH = 60.0
#: A schedule was given up if it was last seen so many seconds before another one of its entry.
#: Longer than a report may be late, as beats wait for brokers and databases.
LAPSE = 180.0


@dataclass(frozen=True, slots=True)
class Owner:
    """Who holds a lease, for people and for a parent that reaps its children.

    Attributes:
        namespace: whose slots a beat emits.
    """

    kind: str
    host: str
    pid: int
    process: str
    namespace: str | None = None


@dataclass(frozen=True, slots=True)
class NewSlot:
    """A due slot, to be recorded.

    Attributes:
        claims: True if the task is expected to claim: its message is published again when nobody
            claims it. False for a plain task, which is published about once.
        deadline: instant after which it must not be started any more.
        message: JSON of the message, if it cannot be made again from the schedule entry.
    """

    key: RunKey
    namespace: str
    entry: str
    task: str
    claims: bool = True
    deadline: datetime | None = None
    message: str | None = None


@dataclass(frozen=True, slots=True)
class Reservation:
    """A message that is about to be published, if its key is free.

    Attributes:
        claim_id: new for each publish; recognises it after a lost answer.
        message: JSON from which the reconciler can publish it again.
        payload: a digest of its arguments, if they are compared.
        due_in: seconds from now until its run may begin.
        grace: seconds after that at which it is published again if nobody has claimed it.
        deadline: when the message expires.
        free_after: as in `celery_idem.run.ClaimRequest`.
    """

    key: RunKey
    namespace: str
    task: str
    task_id: str
    claim_id: str
    message: str
    payload: str | None = None
    due_in: float = 0.0
    grace: float = 60.0
    deadline: datetime | None = None
    free_after: float | None = None


@dataclass(frozen=True, slots=True)
class Retry:
    """A retry that is about to be published.

    Attributes:
        retries: its number, the one that the row waits for.
        due_in: seconds from now until it is due.
        message: JSON from which the reconciler can publish it again.
        deadline: when the message expires. Not that of the slot: it was started in time.
    """

    retries: int
    due_in: float
    message: str | None
    #: Seconds after `due_in` at which it is published again if nobody has claimed it.
    grace: float = 60.0
    deadline: datetime | None = None


@dataclass(frozen=True, slots=True)
class Unsent:
    """Links, chain or chord of a run that has ended; its worker is about to send them.

    Attributes:
        result: what they are sent with, as JSON; None if JSON cannot tell it, or it is not known.
    """

    result: str | None = None


@dataclass(frozen=True, slots=True)
class Pause:
    """An entry that was paused; times by the database's clock.

    Attributes:
        resumed_at: when it was resumed; None while the pause lasts. Slots up to here are not
            emitted by themselves any more.
        paused_by: who has paused it, for people.
        note: why.
    """

    paused_at: datetime
    resumed_at: datetime | None = None
    paused_by: str | None = None
    note: str | None = None

    @property
    def lasts(self) -> bool:
        """True until the entry is resumed."""
        return self.resumed_at is None


@dataclass(frozen=True, slots=True, order=True)
class LiveBeat:
    """A beat whose lease holds, and since when it has it."""

    host: str
    pid: int
    started_at: datetime


@dataclass(frozen=True, slots=True)
class LeaseCount:
    """How many leases of a kind hold, and how many have expired and are not buried yet."""

    live: int
    expired: int


@dataclass(frozen=True, slots=True)
class HistoryLine:
    """Something that happened to a run and changed nothing in its row."""

    at: datetime
    kind: str
    key: RunKey
    task: str | None
    task_id: str | None
    host: str | None
    pid: int | None
    detail: str | None


def counts_as_new(last_seen_at: datetime, latest: datetime) -> bool:
    """True for a schedule that its entry has had before, and did not have in between.

    Not "another one became active after it was last seen": in a rolling deploy that happens while
    this one is still followed, so that a change back would not be noticed.

    Arguments:
        last_seen_at: when the schedule was last seen.
        latest: when any schedule of its entry was.
    """
    return latest > last_seen_at + timedelta(seconds=LAPSE)


def check_closing(state: RunState) -> None:
    """Raise `ValueError` unless a run that nobody has claimed may be closed as `state`."""
    if state not in (RunState.EMITTED, RunState.SKIPPED):
        raise ValueError(f"an unclaimed run becomes emitted or skipped, not {state.label}")


def skipped(seen: RunRow, now: datetime) -> RunRow:
    """How a run is kept whose message has expired."""
    return replace(seen, state=RunState.SKIPPED, error=TOO_LATE, finished_at=now)


def claimable(seen: RunRow, request: ClaimRequest) -> bool:
    """The guard of `Ledger.try_claim`, on a row that was read."""
    if seen.claim_id == request.claim_id or seen.is_closed_to(request):
        return False
    is_of_message = seen.entry is None and request.task_id is not None
    if is_of_message and seen.is_of_other(request):
        return False
    if seen.state in (RunState.SCHEDULED, RunState.EMITTED):
        return seen.retries <= request.retries
    return seen.state is RunState.RETRYING and seen.retries == request.retries
