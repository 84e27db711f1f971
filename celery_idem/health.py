"""Whether beats are at work, for probes and for people.

Owns what is asked of the ledger for it. Must not change anything.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, replace

from celery import Celery

from celery_idem.config import Settings
from celery_idem.errors import LedgerError
from celery_idem.ledger import LiveBeat
from celery_idem.member import make_ledger
from celery_idem.outage import prompt


@dataclass(frozen=True, slots=True)
class Health:
    """What was found.

    Attributes:
        beats: those that tick: each has told the ledger so within the last minute.
        trouble: what is wrong; None if nothing is.
    """

    beats: tuple[LiveBeat, ...]
    trouble: str | None = None

    @property
    def healthy(self) -> bool:
        """True if nothing is wrong."""
        return self.trouble is None


def health(app: Celery, *, host: str | None = None, beats: int = 1) -> Health:
    """Ask the ledger of `app` whether beats are at work; it answers within ten seconds.

    Arguments:
        host: count only beats on the host of this name.
        beats: so many are wanted.

    Raises:
        ImproperlyConfigured: the settings cannot be used.
    """
    settings = Settings.of(app)
    where = f" on host {host!r}" if host else ""
    with closing(make_ledger(replace(settings, create_tables=False))) as ledger:
        try:
            found = prompt(ledger).live_beats(settings.namespace)
        except LedgerError as exc:
            return Health((), str(exc))
    live = tuple(beat for beat in found if host in (None, beat.host))
    if len(live) >= beats:
        return Health(live)
    return Health(
        live, f"{len(live)} of {beats} beats of namespace {settings.namespace!r} tick{where}"
    )
