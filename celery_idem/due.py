"""A slot that is due, and its message.

Owns what the message of a slot is made of: arguments, options, the deadline that follows from
``expires``. Everything is a function of entry and slot, so that all copies of the message are
alike; what is not (lazy arguments) is evaluated once and kept.
Must not know when an entry is due, nor how messages are published.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from celery import Celery
from celery.beat import BeatLazyFunc

from celery_idem import messages
from celery_idem.clock import SYSTEM
from celery_idem.config import Settings
from celery_idem.entry import checked, own_options
from celery_idem.errors import ImproperlyConfigured
from celery_idem.keys import EPOCH, RunKey, Stamp
from celery_idem.policy import Overlap

#: Longer messages (characters) are not kept: some databases refuse them.
LONGEST_MESSAGE = 1_000_000


@dataclass(frozen=True, slots=True)
class Due:
    """The slot of an entry, with what its message gets.

    Attributes:
        options: the entry's own, with ``expires`` as an instant; never to be changed.
        delay: seconds from the publish to the start of the task (``countdown``, ``eta``, jitter).
        eta: when the task is to start, if that is not the slot; by ``jitter``.
        message: JSON of the message, if another one would have other arguments.
        deadline: when it is too late to start it: by ``expires`` or by ``start_deadline``.
        start_by: the latter, where the worker learns it from the stamp.
        pause_on_failure: a failure of the run pauses the entry.
        overlap: what becomes of it if an earlier run of the entry goes on.
    """

    entry: Any
    name: str
    task: str
    key: RunKey
    args: Any
    kwargs: Any
    options: dict[str, Any]
    deadline: datetime | None = None
    delay: float = 0.0
    message: str | None = None
    start_by: datetime | None = None
    pause_on_failure: bool = False
    overlap: Overlap = Overlap.ALLOW
    eta: datetime | None = None

    @classmethod
    def of(
        cls,
        name: str,
        entry: Any,
        slot: datetime,
        settings: Settings,
        app: Celery,
        is_bound: bool = True,
    ) -> Due:
        """The due slot of `entry`, which the schedule has as `name`.

        Arguments:
            is_bound: False if it may be started at any time, as somebody wants it.

        Raises:
            InvalidRunKey: the entry's name cannot be part of a run key.
            Exception: an option cannot be understood, or what a lazy argument raised.
        """
        key = RunKey.for_slot(settings.namespace, name, slot)
        return cls.made_again(key, name, entry, settings, app, is_bound)._kept(settings)

    @classmethod
    def made_again(
        cls,
        key: RunKey,
        name: str,
        entry: Any,
        settings: Settings,
        app: Celery,
        is_bound: bool,
        message: str | None = None,
    ) -> Due:
        """The slot of a run that is recorded; its message is not kept a second time.

        Arguments:
            message: that which was kept, for its arguments.
        """
        own = checked(f"entry {name!r}", own_options(entry), settings)
        options = dict(entry.options or {})
        expires = _expires(entry, options, app)
        start_by = deadline = None
        if is_bound:
            expires, start_by = _at(expires, key.slot), _at(own.start_deadline, key.slot)
            deadline = min(filter(None, (expires, start_by)), default=None)
            if start_by is not None and not may_claim(app, entry.task):
                # The worker of a plain task reads no stamps.
                expires = deadline
        if expires is not None:
            # None outdoes what the task's own class says.
            options["expires"] = expires if is_bound else None
        if message is not None:
            args, kwargs = messages.arguments(message)
        else:
            args = [_value(value) for value in entry.args or ()]
            kwargs = {name: _value(value) for name, value in (entry.kwargs or {}).items()}
        eta, delay = _start(options, key, own.jitter)
        return cls(
            entry=entry,
            name=name,
            task=entry.task,
            key=key,
            args=args,
            kwargs=kwargs,
            options=options,
            deadline=deadline,
            start_by=start_by,
            delay=delay,
            pause_on_failure=own.pause_on_failure,
            overlap=own.overlap,
            eta=eta,
        )

    def _kept(self, settings: Settings) -> Due:
        values = [*(self.entry.args or ()), *(self.entry.kwargs or {}).values()]
        if not any(isinstance(value, BeatLazyFunc) for value in values):
            return self
        options = self.publish_options(settings)
        # Of the entry's own delay each beat would know another start, when it is gone.
        eta = self.eta
        if eta is None and self.delay:
            eta = SYSTEM.now() + timedelta(seconds=self.delay)
        message = messages.dump(self.task, self.args, self.kwargs, options, eta)
        if message is not None and len(message) > LONGEST_MESSAGE:
            message = None
        return replace(self, message=message)

    def is_late(self, now: datetime) -> bool:
        """True if it must not be started any more."""
        return self.deadline is not None and self.deadline <= now

    def publish_options(self, settings: Settings) -> dict[str, Any]:
        """The options of the publish, stamped.

        With a copy of the headers: Celery copies options without what is in them, and writes a
        header of its own there.
        """
        stamp = Stamp(self.key, self.name, self.pause_on_failure, self.start_by, self.overlap)
        headers = stamp.write(self.options.get("headers"), self.task, settings.signing_key)
        return {**self.options, "headers": headers, "task_id": self.key.task_id}


def check_task(name: str, entry: Any) -> None:
    """Raise `ImproperlyConfigured` unless the entry names a task, as the message must."""
    if not isinstance(entry.task, str) or not entry.task:
        raise ImproperlyConfigured(
            f"task of entry {name!r}", entry.task, "it must be the name of a task"
        )


def delay_of(name: str, entry: Any, key: RunKey, settings: Settings, now: datetime) -> float:
    """Seconds for which the message of a slot, published now, waits in a worker.

    Raises:
        ImproperlyConfigured: an option of the entry is not possible.
    """
    own = checked(f"entry {name!r}", own_options(entry), settings)
    eta, delay = _start(dict(entry.options or {}), key, own.jitter)
    return delay if eta is None else max(0.0, (eta - now).total_seconds())


def _start(options: dict[str, Any], key: RunKey, jitter: float) -> tuple[datetime | None, float]:
    """When the task is to start, if that is not the slot; and seconds until then, from the publish.

    With a jitter, what `options` say of the start is moved in them.
    """
    offset = key.part() * jitter
    eta = _postponed(options, key.slot, offset) if offset else None
    delay = messages.seconds_until(options.get("countdown"), options.get("eta"))
    return eta, delay + (offset if eta else 0.0)


def _postponed(options: dict[str, Any], slot: datetime, offset: float) -> datetime | None:
    """Move the start that `options` ask for by `offset` seconds; else return the instant of it."""
    since = timedelta(seconds=offset)
    if options.get("eta"):
        moment = messages.instant(options["eta"], slot)
        assert moment is not None
        options["eta"] = moment + since
    elif options.get("countdown"):
        options["countdown"] = float(options["countdown"]) + offset
    else:
        return slot + since
    return None


def _value(value: Any) -> Any:
    return value() if isinstance(value, BeatLazyFunc) else value


def _expires(entry: Any, options: dict[str, Any], app: Celery) -> Any:
    # What the task's own class says counts from the slot too, as all copies must agree on it.
    if "expires" in options:
        return options["expires"]
    return getattr(app.tasks.get(entry.task), "expires", None)


def _at(expires: Any, slot: datetime) -> datetime | None:
    """Seconds count from the slot, not from the publish."""
    instant = messages.instant(expires, slot)
    # Databases differ in the earliest time that they store.
    return None if instant is None else max(instant, EPOCH)


def may_claim(app: Celery, task: str) -> bool:
    """False for a task that is registered here and is a plain one."""
    registered = app.tasks.get(task)
    return registered is None or bool(getattr(registered, "idem_claims", False))
