"""The options ``idem_scope``, ``idem_period`` and ``idem_publish``: how long a key is taken.

Owns what they may be together, and what the ledger is asked for by them. Must not know how a key is
made, nor what a publish does.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, Literal

from celery_idem import checks
from celery_idem.errors import ImproperlyConfigured
from celery_idem.policy import Publish, Scope

#: For annotations of tasks.
ScopeOption = Literal["forever", "until_done", "until_start"]
PublishOption = Literal["always", "once", "once_or_raise"]

#: The option of a publish.
ONCE = "idem_publish"

_A_YEAR = 366 * 86_400.0


@dataclass(frozen=True, slots=True)
class Terms:
    """How long a run has its key, and what a publish does that meets it.

    Attributes:
        period: seconds since the run was recorded for which it has its key at least; None: the
            scope alone counts.
    """

    scope: Scope = Scope.FOREVER
    period: float | None = None
    publish: Publish = Publish.ALWAYS

    @property
    def free_after(self) -> float | None:
        """Seconds since the record of a run after which, if it has ended, its key is free.

        None: never.
        """
        if self.period is not None:
            return self.period
        return None if self.scope is Scope.FOREVER else 0.0

    @property
    def is_once(self) -> bool:
        """True if a message is recorded before it is published, as the only one with its key."""
        return self.publish is not Publish.ALWAYS

    def with_publish(self, owner: str, publish: Any) -> Terms:
        """These, with what one publish has been given; itself if that is None.

        Raises:
            ImproperlyConfigured: it is not possible.
        """
        if publish is None:
            return self
        return replace(self, publish=checks.choice(Publish)(f"{ONCE} of {owner}", publish))


def terms_of(owner: str, scope: Any, period: Any, publish: Any) -> Terms:
    """The options of a task, or of a publish, checked.

    Arguments:
        owner: who has them, for errors.
        period: seconds, a `timedelta`, or None.

    Raises:
        ImproperlyConfigured: one is not possible, alone or beside the others.
    """
    seconds = period.total_seconds() if isinstance(period, timedelta) else period
    terms = Terms(
        checks.choice(Scope)(f"idem_scope of {owner}", scope),
        checks.seconds_or_none(1, _A_YEAR)(f"idem_period of {owner}", seconds),
        checks.choice(Publish)(f"{ONCE} of {owner}", publish),
    )
    if terms.scope is Scope.UNTIL_START and not terms.is_once:
        raise ImproperlyConfigured(
            f"idem_scope of {owner}",
            scope,
            "until its body begins, only a publish can meet it: set idem_publish = 'once'",
        )
    if terms.scope is Scope.UNTIL_START and terms.period is not None:
        raise ImproperlyConfigured(
            f"idem_period of {owner}", period, "with idem_scope = 'until_start', it would be longer"
        )
    return terms
