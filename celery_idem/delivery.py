"""A message as it arrives: which run it names, and the ways to hand it on.

Owns reading the run key of a message, publishing it anew, refusing it and writing of it in the
history. Must not know claims, nor what a body does.
"""

from __future__ import annotations

import random
import time
from contextlib import suppress
from typing import Any, NoReturn

from celery.exceptions import Ignore, Reject, SoftTimeLimitExceeded

from celery_idem import messages, signals
from celery_idem.errors import InvalidRunKey, LeaseLost, LedgerError
from celery_idem.keys import RunKey, Stamp
from celery_idem.member import Member
from celery_idem.naming import identify, note_key
from celery_idem.pausing import pause_if_asked

#: Bounds of the pause, in seconds, before a message that met an unreachable ledger comes again.
#: Jittered, so that a queue of them does not come back in one moment.
PAUSE = (1.0, 5.0)
#: Returns after which a message is published anew rather than risked once more: a quorum queue
#: drops it after its delivery limit, however often its run may be attempted.
MOST_RETURNS = 2
#: Returns after which the pause is doubled no more: it is an hour or more by then.
_MOST_TIMES = 12
#: Characters of a task id that cannot be part of a run key, by which the history names it.
LONGEST_SHOWN = 100


def soon() -> float:
    """A random number of seconds within `PAUSE`."""
    return random.uniform(*PAUSE)


def until_free(request: Any, lease_seconds: float) -> float:
    """Seconds after which the message of `request` is to come again, whose run has an owner.

    When the lease would have ended; but sooner at first, and then ever later: the owner may be
    dead, and its parent about to tell the ledger.
    """
    times = max(0, min(messages.times_put_back(request), _MOST_TIMES))
    return min(lease_seconds + 1, soon() * (1 << times))


def put_back(
    task: Any,
    request: Any,
    name: object,
    delay: float,
    reason: str,
    retries: int | None = None,
    *,
    is_owned: bool = False,
) -> NoReturn:
    """Publish the message of `request` anew, to come in `delay` seconds, and acknowledge this one.

    Never by a bare reject, which the broker delivers again at once, hundreds of times a second, and
    which a quorum queue drops after its delivery limit. Only if it cannot be published is it
    rejected, after a pause: whatever the reason is, it is not lost.

    Arguments:
        name: what logs and signals call the run.
        retries: another retry number for the message.
        is_owned: its run has an owner; see `until_free`.
    """
    number = request.retries if retries is None else retries
    try:
        seconds = messages.publish_anew(task, request, delay, number, is_owned=is_owned)
    except Exception as exc:
        signals.put_back(task, name, 0, f"{reason}; {_trouble(task.app, exc)}")
        with suppress(SoftTimeLimitExceeded):  # Which would fail the task, and lose the message.
            time.sleep(soon())
        raise Reject(reason, requeue=True) from exc
    signals.put_back(task, name, seconds, reason)
    raise Ignore(reason)


def _trouble(app: Any, exc: BaseException) -> str:
    """Why a message could not be published: the broker is away, or what is wrong with it."""
    root = messages.root_of(exc)
    if messages.is_broker_fault(app, root):
        return f"the broker does not answer: {root}"
    return f"it cannot be published anew: {root!r}"


class Delivery:
    """One delivery of a message to a task."""

    def __init__(self, task: Any, request: Any, member: Member) -> None:
        self.task = task
        self.request = request
        self.settings = member.settings
        self.member = member
        self.leases = member.leases
        self.ledger = member.leases.ledger
        self.stamp: Stamp | None = None
        #: Messages of other senders may have its key.
        self.is_shared = False
        #: The key under which it waits for its start, if that is another one.
        self.waits_as: RunKey | None = None

    def _key(self) -> RunKey | None:
        """The run key of the message; None if it is to run without a claim."""
        request = self.request
        try:
            found = identify(self.task, request.headers or {}, vars(request), self.settings)
        except SoftTimeLimitExceeded:
            name = f"{self.task.name}[{request.id}]"
            put_back(self.task, request, name, soon(), "its time limit ended before its key")
        except Exception as exc:  # Also what a callable of the project's raises.
            self._refuse(exc)
        self.stamp, self.is_shared, self.waits_as = found.stamp, found.is_shared, found.waits_as
        made = found.waits_as or (found.key if found.is_shared else None)
        if made is not None and found.stamp is None:
            note_key(request, made)
        return found.key

    def _option(self, name: str) -> Any:
        value = getattr(self.task, name)
        return getattr(self.settings, name) if value is None else value

    def _is_redelivered(self) -> bool:
        """True if this is a message that was with a worker before, rather than another copy."""
        return bool(
            (self.request.delivery_info or {}).get("redelivered")
            or messages.times_put_back(self.request)
        )

    def _renew_if_returned_often(self, key: RunKey) -> None:
        """Publish the message anew if its quorum queue could drop it."""
        returns = messages.returns(self.request)
        if returns >= MOST_RETURNS:
            self._put_back(key, 0.0, f"it was returned to its queue {returns} times")

    def _put_back(
        self,
        key: RunKey,
        delay: float,
        reason: str,
        retries: int | None = None,
        *,
        is_owned: bool = False,
    ) -> NoReturn:
        """Publish the message anew, to come in `delay` seconds, and acknowledge this one."""
        if self.request.is_eager:
            raise LeaseLost(key.text, 0, reason)
        put_back(self.task, self.request, key, delay, reason, retries, is_owned=is_owned)

    def _await_owner(
        self, key: RunKey, lease_seconds: float, reason: str, retries: int | None = None
    ) -> NoReturn:
        """Put the message back, whose run has an owner for so many seconds at least."""
        delay = until_free(self.request, lease_seconds)
        self._put_back(key, delay, reason, retries, is_owned=True)

    def _refuse(self, exc: Exception) -> NoReturn:
        """Fail a message that cannot name its run, and keep its content for people."""
        request = self.request
        content = messages.dump(
            self.task.name, request.args, request.kwargs, {"headers": request.headers}
        )
        try:
            key = RunKey.for_message(self.settings.namespace, self.task.name, str(request.id))
        except InvalidRunKey:
            shown = repr(request.id)[:LONGEST_SHOWN]
            key = RunKey.for_message(self.settings.namespace, self.task.name, shown)
        detail = f"{exc}\n{content or request.argsrepr}"
        try:
            self._write_line("refused", key, detail)
        except LedgerError as unavailable:
            self._put_back(key, soon(), str(unavailable))
        signals.refused(self.task, key, str(exc))
        raise exc

    def _pause_entry(self, key: RunKey, error: str) -> None:
        """The run has failed for good, with `error`."""
        namespace, headers = self.settings.namespace, self.request.headers
        pause_if_asked(self.ledger, namespace, headers, key, error)

    def _record(self, kind: str, key: RunKey, detail: str) -> None:
        try:
            self._write_line(kind, key, detail)
        except (LedgerError, SoftTimeLimitExceeded) as exc:
            # The history is for people; what it tells of was decided by the run's row. Nor does a
            # time limit, which is for bodies, turn a copy into a failure.
            signals.ledger_lost(f"The history has no line for {kind} of {key}", exc)

    def _write_line(self, kind: str, key: RunKey, detail: str) -> None:
        self.ledger.record(kind, key, task=self.task.name, task_id=self.request.id, detail=detail)
