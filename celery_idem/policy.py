"""The choices a user has, as enums with a sentence per value.

Owns names and meaning of policies; what follows from a value is decided where it is used.
Strings are accepted wherever an enum is (``"latest"`` is ``CatchUp.LATEST``).
Must not know any other module of the package but `errors`.
"""

from __future__ import annotations

from enum import Enum


class Policy(str, Enum):
    """A setting's value; compares equal to its string."""

    def __str__(self) -> str:
        return str(self.value)


class CatchUp(Policy):
    """What happens to slots that were missed for more than a minute while no beat ran."""

    #: Only the most recent missed slot runs.
    LATEST = "latest"
    #: Every missed slot of the catch-up window runs.
    ALL = "all"
    #: Missed slots are dropped.
    NONE = "none"


class Overlap(Policy):
    """What happens to a slot whose entry's earlier run goes on when a worker would begin it."""

    #: Both run.
    ALLOW = "allow"
    #: It is skipped.
    SKIP = "skip"
    #: It waits until that run ends; of several that wait, the earliest, the others are skipped.
    BUFFER_ONE = "buffer_one"


class OnCrash(Policy):
    """What happens to a run whose owner died in its body."""

    #: It runs again, up to ``max_attempts`` claims: at least once.
    RETRY = "retry"
    #: It never runs again and becomes ``dead``: at most once.
    ABANDON = "abandon"


class OnDatabaseError(Policy):
    """What a worker does with a message whose run it cannot claim, as the database is down."""

    #: Put the message back with a delay; nothing runs unclaimed.
    RETRY = "retry"
    #: Run the body without a claim: an explicit opt-out of the promise.
    RUN = "run"


class OnDuplicate(Policy):
    """What the sender of a message gets whose run key was that of an earlier one.

    A copy of the same message is a no-op in any case.
    """

    #: `DuplicateRun`, if a result can be waited for.
    RAISE = "raise"
    #: The result of the earlier one, which must be stored (``idem_store_result``).
    REPLAY = "replay"
    #: Nothing, ever.
    IGNORE = "ignore"


class Scope(Policy):
    """For how long a run has its key for itself; afterwards another message may have it."""

    #: As long as the ledger has the run.
    FOREVER = "forever"
    #: Until it has ended, in whatever way.
    UNTIL_DONE = "until_done"
    #: Until its body begins: of what waits in a queue there is one. For `Publish.ONCE` alone.
    UNTIL_START = "until_start"


class Publish(Policy):
    """What a publish does whose key is that of an earlier message."""

    #: It publishes: the worker decides.
    ALWAYS = "always"
    #: It publishes nothing, and returns the result of the earlier one.
    ONCE = "once"
    #: It publishes nothing, and raises `AlreadyScheduled`.
    ONCE_OR_RAISE = "once_or_raise"


class OnContended(Policy):
    """What happens to a run whose critical section is somebody else's."""

    #: Its message comes again in a few seconds; no retry and no attempt is counted.
    RETRY = "retry"
    #: It is not executed: its row becomes ``skipped``, with the name of the lock.
    SKIP = "skip"
    #: `LockNotAcquired` is raised in its body.
    RAISE = "raise"


class Unstamped(Policy):
    """What a worker does with a message that carries no run key."""

    #: Its task id is its key: redeliveries and retries of the message are recognised.
    TASK_ID = "task_id"
    #: It is refused with an error.
    REJECT = "reject"
    #: It runs without a claim, as in plain Celery.
    RUN = "run"
