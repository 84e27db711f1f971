"""A publish that is the only one of its key.

Owns how a message is recorded in the ledger before it is sent, what its sender gets if an earlier
one has the key, and what becomes of the record if the publish fails. Nothing rests on it but that:
whether a run is executed is for the worker's claim to decide. Must not know how a key is made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import wraps
from typing import Any
from uuid import uuid4

from celery import Celery, states
from celery.backends.base import DisabledBackend
from celery.exceptions import SoftTimeLimitExceeded
from kombu.utils.json import loads

from celery_idem import messages, signals
from celery_idem.clock import SYSTEM
from celery_idem.config import Settings
from celery_idem.errors import AlreadyScheduled, KeyReused, LedgerError
from celery_idem.keys import RunKey, Stamp
from celery_idem.ledger import Reservation
from celery_idem.member import Member
from celery_idem.policy import Publish
from celery_idem.run import RunRow, RunState
from celery_idem.scoping import Terms, terms_of

#: Bytes of JSON that the ledger keeps of a message.
LARGEST = 65_536
#: What follows a message, or waits for it among others: it would be swallowed with a duplicate.
_FOLLOWED = ("link", "link_error", "chord", "group_id", "task_id")
#: The same, whatever they are: a canvas has made it.
_OF_CANVAS = ("chain", "parent_id", "root_id", "replaced_task_nesting")
#: Seconds after a message is due at which it is published again if nobody has claimed it.
GRACE = 60.0
#: Seconds after the end of a run in which its result reaches the backend.
_ON_ITS_WAY = 60.0


@dataclass(frozen=True, slots=True)
class Sending:
    """A message that is to be published once.

    Attributes:
        task: it, or for a sender that does not know it, a `_Named`.
        options: of the publish, with its task id and the headers that have its key.
        payload: a digest of its arguments, if they are compared.
        awaited: others wait for this very message: if its key is taken, the worker tells them.
    """

    task: Any
    key: RunKey
    args: Any
    kwargs: Any
    options: Mapping[str, Any]
    terms: Terms
    payload: str | None = None
    awaited: bool = False


def is_awaited(options: Mapping[str, Any]) -> bool:
    """True if others wait for this very message, as the options of its publish tell."""
    is_made = any(options.get(name) is not None for name in _OF_CANVAS)
    return is_made or any(options.get(name) for name in _FOLLOWED)


def publish_once(sending: Sending, publish: Callable[[], Any]) -> Any:
    """Record the message, and publish it; or return what stands for the earlier one.

    Arguments:
        publish: sends the message, and returns its result.

    Raises:
        AlreadyScheduled: an earlier one has the key, and `terms` say that it be told so.
        KeyReused: the earlier one has other arguments.
        Exception: what `publish` raises.
    """
    app = sending.task.app
    if not _is_broker_there(app, sending.options):
        return publish()  # Which says so, as always; or the worker decides.
    member = Member.of(app)
    ledger = member.leases.ledger
    reservation = _reservation(sending, member.settings.namespace)
    if reservation is None:
        signals.not_reserved(
            sending.task, sending.key, f"its message is no JSON of at most {LARGEST} bytes"
        )
        return publish()
    try:
        seen = ledger.reserve(reservation)
    except LedgerError as exc:
        signals.not_reserved(sending.task, sending.key, str(exc))
        return publish()
    if seen is not None:
        tells = not sending.awaited and _is_heard(sending, seen)
        return _of_earlier(sending, seen, member) if tells else publish()
    try:
        return publish()
    except BaseException as exc:
        if _may_be_sent(app, exc):
            signals.publish_in_doubt(sending.task, sending.key, exc)
        else:
            # If this fails too, a beat publishes it: then it is executed, and not lost.
            with suppress(LedgerError):
                ledger.cancel(reservation)
        raise


def _reservation(sending: Sending, namespace: str) -> Reservation | None:
    now = SYSTEM.now()
    # For a beat that does not know the task; without the answers of a backend by RPC to others.
    options = {**sending.task._get_exec_options(), **sending.options}
    due_in = messages.seconds_until(options.get("countdown"), options.get("eta"))
    deadline = messages.instant(options.get("expires"), now)
    grace = GRACE
    if deadline is not None:
        grace = max(0.0, min(grace, (deadline - now).total_seconds() - due_in + 1.0))
    kept = {**options, "expires": deadline.isoformat() if deadline else None}
    start = messages.instant(due_in, now) if due_in else None
    message = messages.dump(sending.task.name, sending.args, sending.kwargs, kept, start)
    if message is None or len(message.encode()) > LARGEST:
        return None
    return Reservation(
        key=sending.key,
        namespace=namespace,
        task=sending.task.name,
        task_id=options["task_id"],
        claim_id=uuid4().hex,
        message=message,
        payload=sending.payload,
        due_in=due_in,
        grace=grace,
        deadline=deadline,
        free_after=sending.terms.free_after,
    )


def _is_heard(sending: Sending, seen: RunRow) -> bool:
    """False if the result of the earlier message may never come: the worker is to answer then."""
    if seen.task_id is None or sending.terms.publish is Publish.ONCE_OR_RAISE:
        return True
    task = sending.task
    if seen.state is RunState.RUNNING and seen.message is None and (seen.lease_seconds or 0) <= 0:
        return False  # Its owner is dead, and its message is with the broker, or lost.
    if isinstance(task.backend, DisabledBackend):
        return True
    kept = loads(seen.message)["options"] if seen.message else {}
    ignores = getattr(task, "ignore_result", False)
    if kept.get("ignore_result") and not sending.options.get("ignore_result", ignores):
        return False
    ended = seen.finished_at if seen.state.final else None
    if ended is None or (SYSTEM.now() - ended).total_seconds() < _ON_ITS_WAY:
        return True
    return task.AsyncResult(seen.task_id).state in states.READY_STATES


def _of_earlier(sending: Sending, seen: RunRow, member: Member) -> Any:
    task, key, task_id = sending.task, sending.key, sending.options["task_id"]
    reason = f"its key is that of an earlier message, whose run is {seen.state.label}"
    if seen.has_other_payload(sending.payload, task_id):
        raise KeyReused(key.text, reason, seen.task_id)
    with suppress(LedgerError):  # The history is for people.
        member.leases.ledger.record(
            "duplicate", key, task=task.name, task_id=task_id, detail=f"not published: {reason}"
        )
    signals.duplicate(task, key, task_id, f"it is not published: {reason}")
    if sending.terms.publish is Publish.ONCE_OR_RAISE or seen.task_id is None:
        raise AlreadyScheduled(key.text, reason, seen.task_id)
    return task.AsyncResult(seen.task_id)


# -- the broker ----------------------------------------------------------------------------------


def _is_broker_there(app: Celery, options: Mapping[str, Any]) -> bool:
    """Whether there is a connection: if not, the publish fails for certain, and leaves nothing."""
    try:
        with app.producer_or_acquire(options.get("producer")) as producer:
            connection = options.get("connection") or producer.connection
            # One try for each host.
            tries = max(0, len(connection.alt) - 1)
            connection.ensure_connection(max_retries=tries, interval_start=0)
            # Redis is not asked before.
            connection.default_channel  # noqa: B018
    except Exception as exc:
        return not messages.is_broker_fault(app, exc)
    return True


def _may_be_sent(app: Celery, exc: BaseException) -> bool:
    """False if the publish has failed for certain."""
    is_interrupted = isinstance(exc, SoftTimeLimitExceeded) or not isinstance(exc, Exception)
    return is_interrupted or messages.is_broker_fault(app, exc)


# -- senders that do not know the task -----------------------------------------------------------


def heed_names(app: Celery) -> None:
    """From now on, `app.send_task` publishes a task that is published once by its `apply_async`."""
    celerys = app.send_task
    if getattr(celerys, "idem_heeds", False):
        return

    @wraps(celerys)
    def send_task(
        name: str, args: Any = None, kwargs: Any = None, *more: Any, **options: Any
    ) -> Any:
        # Celery's own apply_async comes here too, and says for which task.
        task: Any = None if options.get("task_type") or more else app.tasks.get(name)
        if task is not None and getattr(task, "_idem_terms", Terms()).is_once:
            return task.apply_async(args, kwargs, **options)
        return celerys(name, args, kwargs, *more, **options)

    send_task.idem_heeds = True  # type: ignore[attr-defined]
    app.send_task = send_task  # type: ignore[method-assign]


class _Named:
    """A task of another process, as far as a publish needs it."""

    def __init__(self, app: Celery, name: str) -> None:
        self.app = app
        self.name = name
        self.AsyncResult = app.AsyncResult
        self.backend = app.backend

    def _get_exec_options(self) -> dict[str, Any]:
        return {}


def send_once(
    app: Celery,
    name: str,
    args: Any = None,
    kwargs: Any = None,
    *,
    idem_key: str,
    idem_scope: str = "forever",
    idem_period: Any = None,
    idem_publish: str = "once",
    **options: Any,
) -> Any:
    """`Celery.send_task` for a task that this process does not import, once for its key.

    Arguments:
        idem_key: a text; messages of this task with the same one are one run.
        idem_scope, idem_period: as the task has them.
        idem_publish: ``once`` returns the `AsyncResult` of the earlier message; ``once_or_raise``
            raises.
        options: of `Celery.send_task`.

    Raises:
        InvalidRunKey: it cannot be a key.
        AlreadyScheduled: an earlier message has the key.
        ImproperlyConfigured: a setting or an argument is not possible.
    """
    settings = Settings.of(app)
    if not settings.enabled:
        return app.send_task(name, args, kwargs, **options)
    terms = terms_of(f"send_once({name!r})", idem_scope, idem_period, idem_publish)
    key = RunKey.for_task(settings.namespace, name, idem_key)
    headers = Stamp(key).write(options.get("headers"), name, settings.signing_key)
    awaited = is_awaited(options)
    options = {"task_id": str(uuid4()), **options, "headers": headers}

    def publish() -> Any:
        return app.send_task(name, args, kwargs, **options)

    if not terms.is_once:
        return publish()
    sending = Sending(_Named(app, name), key, args, kwargs, options, terms, awaited=awaited)
    return publish_once(sending, publish)
