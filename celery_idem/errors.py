"""One tree of errors.

Owns every exception that celery_idem raises. Each one carries its facts as attributes and passes
them to ``Exception.__init__`` unchanged: Celery pickles exceptions between a pool process and its
parent, and an exception whose ``args`` do not fit its ``__init__`` cannot be unpickled there.
Must not know any other module of the package.
"""

from __future__ import annotations

from celery.exceptions import Ignore
from celery.exceptions import ImproperlyConfigured as CeleryImproperlyConfigured

#: Characters of a value that are shown.
LONGEST_VALUE = 80


class IdemError(Exception):
    """Root of all errors of celery_idem."""


class ImproperlyConfigured(IdemError, CeleryImproperlyConfigured):
    """A setting, or an option of a task or entry, has an unknown name or an impossible value."""

    def __init__(self, setting: str, value: object, allowed: str) -> None:
        super().__init__(setting, value, allowed)
        self.setting = setting
        self.value = value
        self.allowed = allowed

    def __str__(self) -> str:
        return f"{self.setting} = {_shown(self.value)} is not possible: {self.allowed}"


class InvalidSchedule(IdemError, ValueError):
    """A schedule has no computable slots."""

    def __init__(self, schedule: object, reason: str) -> None:
        super().__init__(schedule, reason)
        self.schedule = schedule
        self.reason = reason

    def __str__(self) -> str:
        return f"schedule {_shown(self.schedule)}: {self.reason}"


class InvalidRunKey(IdemError, ValueError):
    """A text cannot name a run."""

    def __init__(self, value: object, reason: str) -> None:
        value = _limited(value)
        super().__init__(value, reason)
        self.value = value
        self.reason = reason

    def __str__(self) -> str:
        return f"run key {self.value!r}: {self.reason}"


class NotCanonical(IdemError, ValueError):
    """A value of which a key is to be made has no canonical form."""

    def __init__(self, where: str, value: object, reason: str) -> None:
        # As a text: it may be anything, and need not be made again where the error is unpickled.
        value = _limited(value if isinstance(value, str) else repr(value))
        super().__init__(where, value, reason)
        self.where = where
        self.value = value
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.where} = {self.value} cannot be part of a key: {self.reason}"


class DuplicateRun(IdemError):
    """Another message, with another task id, has the same run key: this one is not executed.

    Attributes:
        task_id: of the other one; None if it is not known.
    """

    def __init__(self, key: str, reason: str, task_id: str | None = None) -> None:
        super().__init__(key, reason, task_id)
        self.key = key
        self.reason = reason
        self.task_id = task_id

    def __str__(self) -> str:
        return f"run {self.key} is not executed once more: {self.reason}"


class KeyReused(DuplicateRun):
    """Another message has the same run key, and other arguments: one of the two is mistaken."""

    def __str__(self) -> str:
        return (
            f"run {self.key} is that of a message with other arguments ({self.reason}): give each "
            "its own key, or set check_payload = False on the task if they are meant to differ"
        )


class AlreadyScheduled(DuplicateRun):
    """A message was not published, as an earlier one has its key."""

    def __str__(self) -> str:
        return f"run {self.key} is not published once more: {self.reason} (task {self.task_id})"


class InvalidHeader(IdemError, ValueError):
    """An ``idem_*`` header of a message is broken, or its signature is not ours."""

    def __init__(self, header: str, value: object, reason: str) -> None:
        value = _limited(value)
        super().__init__(header, value, reason)
        self.header = header
        self.value = value
        self.reason = reason

    def __str__(self) -> str:
        return f"message header {self.header} = {self.value!r}: {self.reason}"


class LedgerError(IdemError):
    """The ledger's database refused a statement; repeating it will not help."""

    def __init__(self, reason: str, way_out: str = "") -> None:
        super().__init__(reason, way_out)
        self.reason = reason
        self.way_out = way_out

    def __str__(self) -> str:
        return f"{self.reason} ({self.way_out})" if self.way_out else self.reason


class LedgerUnavailable(LedgerError):
    """The ledger's database did not answer; how the statement ended may be unknown."""


class LedgerVersionMismatch(LedgerError):
    """The ledger's tables are of another version than this celery_idem."""

    def __init__(self, found: str, wanted: str, way_out: str) -> None:
        super().__init__(
            f"the ledger has version {found}, this celery_idem needs {wanted}", way_out
        )
        self.args = (found, wanted, way_out)
        self.found = found
        self.wanted = wanted


class LeaseLost(IdemError):
    """The run is no longer owned by this thread: its lease ended, or it was taken over."""

    def __init__(self, key: str, fence: int, reason: str) -> None:
        super().__init__(key, fence, reason)
        self.key = key
        self.fence = fence
        self.reason = reason

    def __str__(self) -> str:
        return f"run {self.key} is no longer owned at fence {self.fence}: {self.reason}"


class CommitUnknown(IdemError):
    """A COMMIT was not answered: what it held may be in the database or not."""

    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key

    def __str__(self) -> str:
        return f"run {self.key}: the database has not answered the COMMIT of its transaction"


class ResultLost(IdemError):
    """The run has ended, but its result was lost: with a process, or with an answer."""

    def __init__(self, key: str, ending: str = "succeeded") -> None:
        super().__init__(key, ending)
        self.key = key
        self.ending = ending

    def __str__(self) -> str:
        return f"run {self.key} has ended ({self.ending}), but its result was lost"


class RunDead(IdemError):
    """The run is given up: its owners have died, and it is not to be executed once more."""

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(key, reason)
        self.key = key
        self.reason = reason

    def __str__(self) -> str:
        return f"run {self.key} is dead: {self.reason}"


class LockNotAcquired(IdemError):
    """A critical section could not be entered, as somebody else holds its lock."""

    def __init__(self, name: str, waited: float = 0.0) -> None:
        super().__init__(name, waited)
        self.name = name
        self.waited = waited

    def __str__(self) -> str:
        waited = f" after {self.waited:g} s" if self.waited else ""
        return f"lock {self.name!r} is not free{waited}"


class Contended(LockNotAcquired, Ignore):
    """`LockNotAcquired` in a run that is to be put back or skipped over it.

    An `Ignore`, as ``autoretry_for`` lets these alone: a retry would cost one.

    Attributes:
        then: what becomes of the run, a value of `celery_idem.policy.OnContended`.
        why: the reason for people, where it is not the lock alone.
        seconds: after which the run is to come again; None: after some.
    """

    def __init__(
        self, name: str, waited: float, then: str, why: str = "", seconds: float | None = None
    ) -> None:
        super().__init__(name, waited)
        self.args = (name, waited, then, why, seconds)
        self.then = then
        self.why = why
        self.seconds = seconds

    def __str__(self) -> str:
        return self.why or super().__str__()


class LockLost(IdemError):
    """A lock is no longer held for certain: somebody else may have it."""

    def __init__(self, name: str, fence: int, reason: str) -> None:
        super().__init__(name, fence, reason)
        self.name = name
        self.fence = fence
        self.reason = reason

    def __str__(self) -> str:
        return f"lock {self.name!r} is no longer held at fence {self.fence}: {self.reason}"


class LockReentered(IdemError):
    """A critical section was entered again by the one who is in it: it would wait for itself."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name

    def __str__(self) -> str:
        return f"lock {self.name!r} is held by the caller already: locks are not reentrant"


class NoCurrentRun(IdemError, LookupError):
    """`current_run` was called where no claimed run is being executed."""

    def __init__(self) -> None:
        super().__init__()

    def __str__(self) -> str:
        return (
            "no run is being executed here: current_run() works in the body of a task with "
            "base=IdempotentTask while a worker (or apply()) executes it, and outside of Celery in "
            "a block of Ledger.once() that has the run"
        )


def _shown(value: object) -> str:
    """Its repr; that of somebody's own class may raise, while the error is being logged."""
    try:
        return repr(value)
    except Exception as error:
        return f"<{type(value).__name__}, whose repr raises {type(error).__name__}>"


def _limited(value: object) -> object:
    """A value from outside, which may be of any size: Celery logs and stores an error's arguments.

    A limited value is limited to itself, as an error is made again where it is unpickled.
    """
    text = value if isinstance(value, str) else repr(value)
    return value if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}..."
