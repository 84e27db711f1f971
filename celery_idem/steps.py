"""What a worker with idempotent tasks does beyond Celery.

Owns the checks that end its start, and how soon it notices a dead pool process. Must not know
tasks or runs.
"""

from __future__ import annotations

from typing import Any

from celery import Celery
from celery.bootsteps import StartStopStep

from celery_idem.config import Settings
from celery_idem.errors import ImproperlyConfigured
from celery_idem.lease import MARGIN
from celery_idem.member import make_ledger

#: Seconds between two looks for pool processes that have died, in a worker with an event loop.
LOOK = 1.0


class IdempotentWorker(StartStopStep):
    """The step of a worker with idempotent tasks.

    Settings with which no message could ever be claimed end its start. Nothing is connected: a
    database that does not answer may be there when a message comes.

    Raises:
        ImproperlyConfigured: the settings cannot be used.
    """

    def __init__(self, parent: Any, **kwargs: Any) -> None:
        super().__init__(parent, **kwargs)
        # As they are now: whoever wants to may change settings until here.
        settings = Settings.read(parent.app)
        if settings.enabled:
            make_ledger(settings).close()
            _check_visibility(parent.app, settings.lease)

    def register_with_event_loop(self, parent: Any, hub: Any) -> None:
        """See that a killed pool process is noticed.

        Celery looks once when its pipe is closed, which may be before it can be waited for, and
        else every 5 seconds (`AsynPool.timers`).
        """
        hub.call_repeatedly(LOOK, parent.pool.maintain_pool)


def _check_visibility(app: Celery, lease: float) -> None:
    """A message that is put back until a lease ends is held by a worker until then.

    A broker that delivers it again meanwhile, to the next worker which puts it back, multiplies it.
    """
    connection: Any = app.connection_for_read()
    visible = _visibility_timeout(connection)
    shortest = lease * (1 + MARGIN)
    if visible is not None and visible <= shortest:
        raise ImproperlyConfigured(
            "idem_lease",
            lease,
            f"a message is delivered again after {visible:g} s (visibility_timeout in "
            f"broker_transport_options), which must be more than {shortest:g} s, the lease and its "
            "margin, and more than the longest body",
        )


def _visibility_timeout(connection: Any) -> float | None:
    """Seconds after which the broker gives an unacknowledged message again; None if it waits."""
    channel = getattr(connection.get_transport_cls(), "Channel", None)
    names = ("visibility_timeout", "default_visibility_timeout")
    defaults = [getattr(channel, name, None) for name in names]
    numbers = [value for value in defaults if isinstance(value, int | float)]
    if not numbers:
        return None
    return float(connection.transport_options.get("visibility_timeout") or numbers[0])
