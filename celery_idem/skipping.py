"""Messages that came too late, or were revoked: their run is not to begin any more.

Owns what the child reads of this in a request, and what it raises so that the parent announces it.
Whether the run has begun only the ledger knows. Must not know how a ledger stores anything.
"""

from __future__ import annotations

from typing import Any

from celery.exceptions import Ignore

from celery_idem import messages
from celery_idem.clock import SYSTEM
from celery_idem.keys import read_start_by

#: Where the parent notes, for the child, that the message was revoked.
NOTE = "idem_revoked"


class Skipped(Ignore):
    """The run was skipped by this message. The parent acknowledges it, as one that was revoked.

    Arguments:
        reason: Celery's word: "expired" or "revoked".
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def is_revoked(request: Any) -> bool:
    """True if the parent knows the message of this request to be revoked."""
    return bool((request.delivery_info or {}).get(NOTE))


def is_expired(request: Any) -> bool:
    """True if no run may begin by the message of this request any more."""
    return bool(request.expires) and messages.seconds_until(None, request.expires) <= 0


def is_late(request: Any) -> bool:
    """True if the slot of this request is too late to be started; a retry was started before."""
    start_by = read_start_by(request.headers or {})
    return start_by is not None and not request.retries and start_by <= SYSTEM.now()


def is_unwanted(request: Any) -> bool:
    """True if no run may begin by the message of this request, for whatever reason."""
    return is_revoked(request) or is_expired(request) or is_late(request)


def skipped(request: Any) -> Skipped:
    """What ends such a message."""
    return Skipped("revoked" if is_revoked(request) else "expired")
