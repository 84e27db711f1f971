"""What beats and readers say to the ledger.

Owns the signatures of these verbs and the promise of each; a store makes them true. Must not know
schedules, nor how anything is stored.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from datetime import datetime

from celery_idem.keys import RunKey
from celery_idem.ledger.records import HistoryLine, LeaseCount, LiveBeat, NewSlot, Pause
from celery_idem.run import RunRow, RunState


class BeatVerbs(ABC):
    """Slots, their emission, and what is known."""

    # -- emission -------------------------------------------------------------------------------

    @abstractmethod
    def insert_slots(self, slots: Sequence[NewSlot], batch: str) -> set[RunKey]:
        """Record due slots; return those that this batch recorded, for it to publish."""

    @abstractmethod
    def given_back_before(self, namespace: str, slot: datetime) -> list[RunRow]:
        """Runs of earlier slots that were claimed and given back, and that nobody has now."""

    @abstractmethod
    def recorded(self, keys: Iterable[RunKey]) -> set[RunKey]:
        """Those of `keys` that have a row."""

    @abstractmethod
    def acquire_due(self, namespace: str, limit: int, batch: str) -> list[RunRow]:
        """Win up to `limit` runs whose message is due to be published again."""

    @abstractmethod
    def acquire_orphans(self, namespace: str, limit: int, batch: str) -> list[RunRow]:
        """Win up to `limit` runs whose owner is gone in mid-body, or before it sent callbacks.

        Without those whose message is with the broker alone. `published` reports them too.
        """

    @abstractmethod
    def published(self, keys: Iterable[RunKey], batch: str, grace: float) -> None:
        """The batch has published these: leave them alone for `grace` seconds (more than 1)."""

    @abstractmethod
    def close_unclaimed(
        self, keys: Iterable[RunKey], batch: str, state: RunState, error: str | None = None
    ) -> None:
        """Runs that the batch holds and that wait for a claim become ``emitted`` or ``skipped``.

        Only a ``scheduled`` one becomes ``emitted``.
        """

    @abstractmethod
    def activate(
        self, namespace: str, entries: Iterable[tuple[str, str]]
    ) -> dict[tuple[str, str], datetime]:
        """Begin with (entry, fingerprint) pairs; return since when each is active.

        It is since the pair was first seen, by the database's clock. A pair that was given up for
        another fingerprint of its entry counts as new: active since now, and without an agreed
        slot. That another one was followed in its place is noticed if it went on for longer than
        ``LAPSE + 1.5 * REFRESH`` seconds (270), and never if for less than
        ``LAPSE - 1.5 * REFRESH`` (90); two that are followed side by side stay as they are.
        """

    @abstractmethod
    def last_seen(
        self, namespace: str, entries: Iterable[tuple[str, str]]
    ) -> dict[tuple[str, str], datetime]:
        """When each of these (entry, fingerprint) pairs was last followed, of those that were."""

    @abstractmethod
    def mark_seen(self, namespace: str, entries: Iterable[tuple[str, str]]) -> None:
        """These pairs are still followed; to be told every `REFRESH` seconds.

        No pair becomes new by it: whoever follows one has not given it up.
        """

    @abstractmethod
    def agreed_slot(self, namespace: str, entry: str, fingerprint: str) -> datetime | None:
        """The last slot agreed for a custom schedule; None if it has none yet."""

    @abstractmethod
    def agree(
        self,
        namespace: str,
        entry: str,
        fingerprint: str,
        seen: datetime | None,
        slot: datetime,
    ) -> datetime | None:
        """Make `slot` the agreed one if `seen` still is; return the one agreed now."""

    # -- pauses ---------------------------------------------------------------------------------

    @abstractmethod
    def pause(
        self, namespace: str, entry: str, *, by: str | None = None, note: str | None = None
    ) -> Pause:
        """Pause an entry; return the pause that holds now: an earlier one if it lasts."""

    @abstractmethod
    def resume(self, namespace: str, entry: str) -> Pause | None:
        """End the pause of an entry, if it lasts; return the last one, None if there was none."""

    @abstractmethod
    def pauses(self, namespace: str) -> dict[str, Pause]:
        """The last pause of each entry that ever had one, by its stored name (`entry_name`)."""

    @abstractmethod
    def is_known_entry(self, namespace: str, entry: str) -> bool:
        """True if a beat has ever followed an entry of this name."""

    # -- leases ---------------------------------------------------------------------------------

    @abstractmethod
    def bury_expired(self, limit: int) -> int:
        """Delete up to `limit` leases that have expired by the database's clock; how many it saw.

        Safe at any time, for anybody's leases: a lease that has expired is never renewed.
        """

    @abstractmethod
    def live_beats(self, namespace: str) -> list[LiveBeat]:
        """The leases of beats of this namespace that hold."""

    # -- what is known --------------------------------------------------------------------------

    @abstractmethod
    def unfinished_before(self, namespace: str, task: str, slot: datetime) -> list[RunRow]:
        """Runs of earlier slots that were claimed and have not ended: running, or given back."""

    @abstractmethod
    def now(self) -> datetime:
        """The database's clock."""

    @abstractmethod
    def record_tasks(self, namespace: str, tasks: Iterable[str]) -> None:
        """Remember tasks that claim, so that their slots may be published again."""

    @abstractmethod
    def known_tasks(self, namespace: str) -> set[str]:
        """The stored names (`task_name`) of the tasks that claim."""

    @abstractmethod
    def record(
        self,
        kind: str,
        key: RunKey,
        *,
        task: str | None = None,
        task_id: str | None = None,
        detail: str | None = None,
        line: str | None = None,
    ) -> None:
        """Append a line to the history.

        Arguments:
            line: its name, if others may write it too (`line_id`): it is one line then.
        """

    @abstractmethod
    def history(self, key: RunKey) -> list[HistoryLine]:
        """The lines of a run, oldest first."""

    @abstractmethod
    def counts(self) -> dict[str, int]:
        """How many runs are in each state, and how many lines of each kind are in the history."""

    @abstractmethod
    def lease_counts(self) -> dict[str, LeaseCount]:
        """How many leases of each kind there are."""

    @abstractmethod
    def close(self) -> None:
        """Give back the connections of this process."""
