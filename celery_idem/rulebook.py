"""What holds for the slots of entries, kept once for all of those for which it is the same.

Owns the reading of an entry's options and schedule, and what a beat remembers of them so that many
entries take little memory. Must not know where a beat stands in the slots of an entry.
"""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any, NamedTuple

from celery.schedules import crontab

from celery_idem import signals
from celery_idem.clock import Clock
from celery_idem.config import Settings
from celery_idem.due import check_task
from celery_idem.entry import Options, checked, duration, in_time
from celery_idem.errors import ImproperlyConfigured
from celery_idem.keys import EPOCH, RunKey
from celery_idem.policy import CatchUp
from celery_idem.slots import agreed_by_ledger, check, fingerprint, next_slot

#: Slots younger than this are simply due, whatever beats and clocks are late by; older ones were
#: missed, and are for the catch-up policy.
YOUNG = timedelta(seconds=60)
#: Schedules whose next slots are remembered.
MOST = 1000
#: How Python shows an object that has no repr of its own.
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+>")


class Rules(NamedTuple):
    """What becomes of the slots of an entry.

    Attributes:
        catchup: of those that were missed.
        window: how old a slot may be that is made up.
        in_time: how old a slot may be that can still be started.
        custom: only the schedule's own `is_due` knows them.
    """

    catchup: CatchUp
    window: timedelta
    in_time: timedelta
    custom: bool


_rules = lru_cache(maxsize=1024)(Rules)


class Rulebook:
    """What one beat needs to know for all of its entries."""

    def __init__(self, settings: Settings, clock: Clock) -> None:
        self.settings = settings
        self.clock = clock
        self._after: datetime | None = None
        self._next: dict[str, datetime | None] = {}

    def read(self, name: str, entry: Any, own: Options) -> tuple[Rules, str]:
        """The rules of an entry, and the fingerprint of its schedule.

        Arguments:
            name: its key in the schedule.
            own: the options that are written in it.

        Raises:
            IdemError: the entry, or its schedule, cannot be used.
            Exception: whatever a schedule of somebody else's raises.
        """
        RunKey.for_slot(self.settings.namespace, name, EPOCH)
        # `add_periodic_task` takes the repr of the signature, which has that of its arguments.
        if _ADDRESS.search(name):
            signals.name_not_shared(name)
        if entry.name != name:
            raise ImproperlyConfigured(
                f"name of entry {name!r}", entry.name, "it must be its key in the schedule"
            )
        check_task(name, entry)
        options = checked(f"entry {name!r}", own, self.settings)
        window = max(duration(_window(entry, own, options.catchup_window)), YOUNG)
        check(entry.schedule)
        custom = agreed_by_ledger(entry.schedule)
        rules = _rules(options.catchup, window, in_time(entry, options.start_deadline), custom)
        return rules, fingerprint(entry.schedule)

    def next_slot(self, schedule: Any, print_: str, after: datetime) -> datetime | None:
        """The first slot after `after`; the same object for all schedules of this fingerprint."""
        # Entries are due together: all of them ask from the same moment on.
        if after != self._after:
            self._after, self._next = after, {}
        if print_ in self._next:
            return self._next[print_]
        slot = next_slot(schedule, after)
        # One that was changed in place has another fingerprint now: it is none of the others'.
        if len(self._next) < MOST and fingerprint(schedule) == print_:
            self._next[print_] = slot
        return slot


def _window(entry: Any, own: Options, seconds: float) -> float:
    """The catch-up window of an entry, which for crontabs has a setting of Celery's own too."""
    if own.catchup_window is None and isinstance(entry.schedule, crontab):
        limit = entry.schedule.app.conf.beat_cron_starting_deadline
        return seconds if limit is None else min(seconds, float(limit))
    return seconds
