"""Beats that hurry, and beats that stop at a certain point."""

from __future__ import annotations

import os
import time
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from celery_idem import IdempotentScheduler
from celery_idem.clock import SYSTEM
from celery_idem.due import Due
from celery_idem.ledger import Ledger
from celery_idem.member import Member
from celery_idem.outage import prompt
from celery_idem.publishing import Grace

#: The path of a file: a beat stops before its next publish while it is there.
STOP = "IDEM_BEATS_STOP"
#: The path of a file: seconds by which a beat's clock is ahead.
OFF = "IDEM_BEATS_OFF"


class Hasty(IdempotentScheduler):
    """Publishes again after two seconds rather than a minute."""

    grace = Grace(first=2.0)


class Stopping(Hasty):
    """Between the insert and the publish, it waits to be killed."""

    def publish(self, due: Due, **options: Any) -> Any:
        stop = Path(os.environ[STOP])
        if stop.exists():
            stop.with_suffix(f".{os.getpid()}").write_text(due.key.text)
            time.sleep(600)
        return super().publish(due, **options)


class Shifted:
    """A wall clock that is off by as many seconds as a file says."""

    def now(self) -> datetime:
        path = Path(os.environ[OFF])
        ahead = float(path.read_text() or 0) if path.exists() else 0.0
        return SYSTEM.now() + timedelta(seconds=ahead)

    def elapsed(self) -> float:
        return SYSTEM.elapsed()


class Astray(IdempotentScheduler):
    """Its clock is set by the test, and it is missed after a few seconds."""

    clock = Shifted()
    presence = 5.0


class Prompt(IdempotentScheduler):
    """Waits for the ledger for two seconds rather than for ten."""

    def make_ledger(self) -> Ledger:
        return prompt(Member.of(self.app).leases.ledger, limit=2.0)
