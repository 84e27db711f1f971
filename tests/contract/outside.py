"""Jobs outside of Celery, for the tests of `Ledger.once`.

Owns names, slots and runs that were left by a process which is gone. Must not know what is tested.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta

from celery_idem import Ledger, RunKey
from celery_idem.clock import UTC
from celery_idem.run import ClaimOutcome
from tests.contract.stores import Store

SLOT = datetime(2026, 3, 29, 1, 30, tzinfo=UTC)
#: An interval that no test outlives.
LONGEST = timedelta(days=3650)
NAME = "report"


@contextmanager
def opened(url: str) -> Iterator[Ledger]:
    """A ledger of its own, as a process has it."""
    ledger = Ledger.from_url(url)
    try:
        yield ledger
    finally:
        ledger.close()


def key(slot: datetime | None = SLOT, name: str = NAME) -> RunKey:
    """Of the run that `once` makes of these."""
    return RunKey(f"once:{name}") if slot is None else RunKey.for_slot("once", name, slot)


def begun(store: Store, run: RunKey, *, lease: str, name: str = NAME) -> None:
    """A run that another process executes."""
    request = replace(store.request(run, lease=lease), task=name, namespace="once", entry=None)
    assert store.ledger.claim(request).outcome is ClaimOutcome.CLAIMED


def left(store: Store, run: RunKey, name: str = NAME) -> None:
    """A run whose process is dead, and whose lease has ended."""
    lease = store.lease()
    begun(store, run, lease=lease, name=name)
    store.ledger.release([lease])


def current(interval: timedelta = LONGEST) -> datetime:
    """The slot that a clock of these days is in."""
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    return epoch + (datetime.now(UTC) - epoch) // interval * interval
