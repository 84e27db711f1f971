"""Which clock decides what.

Owns the only readings of time in the package:

- The *database's clock* decides leases, due times of re-emission and everything stored. It is read
  inside the statements of the ledger, never here.
- The *wall clock* (`Clock.now`, UTC) decides which slots are due. Beats may differ by their clock
  offset: they then agree on the slots, and differ in the moment of the publish only.
- The *boot-time clock* (`Clock.elapsed`) measures how long a lease can still be trusted. It goes on
  while the machine is suspended, as the database's clock does; ``time.monotonic`` stops there on
  Linux and would trust a lease that ended during the suspension.

Must not know any other module of the package.
"""

from __future__ import annotations

import time
from datetime import datetime, timezone
from typing import Protocol

UTC = timezone.utc

#: Clock id for time since boot including suspension (Linux); monotonic time where it is absent.
_BOOTTIME: int = getattr(time, "CLOCK_BOOTTIME", getattr(time, "CLOCK_MONOTONIC", -1))


class Clock(Protocol):
    """Time as this process sees it."""

    def now(self) -> datetime:
        """Wall-clock time, aware, in UTC."""

    def elapsed(self) -> float:
        """Seconds since some fixed point; never turns back, goes on during suspension."""


class SystemClock:
    """The machine's clocks."""

    def now(self) -> datetime:
        return datetime.now(UTC)

    def elapsed(self) -> float:
        if _BOOTTIME < 0:
            return time.monotonic()
        return time.clock_gettime(_BOOTTIME)


#: The clock used unless a caller passes another one.
SYSTEM: Clock = SystemClock()
